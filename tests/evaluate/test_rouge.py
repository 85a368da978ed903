"""Rouge-L against rouge_score's own scorer and against a program that shares nothing with it."""

import itertools
import json
import random
import re
import time
from bisect import bisect_left

import pytest
from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer

from distilllens.evaluate.rouge import rouge_l

FILES = ("eval_dolly", "eval_selfinst", "eval_vicuna", "eval_sni", "eval_unni_short")
STEMMER = PorterStemmer()


def independent(answer, references):
    """Words by their pattern; the subsequence as the longest rising run of matching places."""

    def words(text):
        found = re.findall("[a-z0-9]+", text.lower())
        return [STEMMER.stem(word) if len(word) > 3 else word for word in found]

    def longest(a, b):
        places = {}
        for place, word in enumerate(b):
            places.setdefault(word, []).insert(0, place)
        ends = []  # ends[k]: where the earliest common subsequence of k + 1 words ends in b
        for place in itertools.chain.from_iterable(places.get(word, []) for word in a):
            at = bisect_left(ends, place)
            ends[at : at + 1] = [place]
        return len(ends)

    ours = words(answer)
    theirs = [words(reference) for reference in references]
    scores = [2 * longest(ours, t) / (len(ours) + len(t)) if ours and t else 0.0 for t in theirs]
    return 100 * max(scores)


def benchmarks(shared):
    """The references of every row of the five benchmark files."""
    found = []
    for name in FILES:
        for line in (shared / "data" / f"{name}.jsonl").read_text().splitlines():
            output = json.loads(line)["output"]
            found.append([output] if isinstance(output, str) else output)
    return found


def mixed_pairs(shared, count=1000):
    """Answers that are foreign to their references, near to them, or parts of them."""
    rng = random.Random(0)
    rows = benchmarks(shared)
    several = [row for row in rows if len(row) > 1]
    for number in range(count):
        references = rng.choice(several if number % 4 == 0 else rows)
        other = rng.choice(rng.choice(rows)).split()
        words = rng.choice(references).split()
        kept = [word for word in words if rng.random() < rng.choice([0.3, 0.9])]
        at = rng.randrange(len(kept) + 1)
        yield " ".join(rng.choice([other, kept, kept[:at] + other[:20] + kept[at:]])), references


def test_agrees_with_two_other_programs(shared):
    """1,000 pairs, a quarter with several references: both others give the same to 1e-12."""
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    found = []
    for answer, references in mixed_pairs(shared):
        theirs = max(scorer.score(r, answer)["rougeL"].fmeasure for r in references)
        found.append(rouge_l(answer, references))
        assert found[-1] == 100 * theirs
        assert found[-1] == pytest.approx(independent(answer, references), abs=1e-12)
    # Every kind of overlap occurs: none, all, and mostly some.
    assert min(found) == 0.0 and max(found) == 100.0
    assert sum(0 < score < 100 for score in found) > 600


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("the cat sat", ["the cat sat"], 100.0),
        ("cats running", ["cat runs"], 100.0),  # stems
        ("ads", ["ad"], 0.0),  # words of three letters stay as they are
        ("the dog", ["a cat", "the dog ran"], 80.0),  # P 1, R 2/3
        ("a b c d", ["d c b a"], 25.0),
        ("a a a", ["a"], 50.0),
        ("", ["yes"], 0.0),
        ("...", ["yes"], 0.0),
        ("yes", ["?!"], 0.0),
        ("東京", ["東京"], 0.0),  # rouge_score reads a-z and 0-9 only
        ("naïve café", ["naïve café"], 100.0),
    ],
)
def test_by_hand(answer, references, expected):
    """Small cases counted by hand."""
    assert rouge_l(answer, references) == pytest.approx(expected, abs=1e-12)


def test_a_long_answer_of_one_letter():
    """What a broken student writes costs no recursion and no overflow."""
    answer = "y" * 5000 + " yes" * 3000
    assert rouge_l(answer, ["yes"]) == pytest.approx(100 * 2 / 3002, abs=1e-12)


def test_is_fast_enough(shared):
    """More than 300 answers of a benchmark a second, each against five references.

    Four times that was measured; processor time counts, since machines are busy.
    """
    rng = random.Random(0)
    texts = [row[0] for row in benchmarks(shared)[:500]]
    pairs = [(rng.choice(texts), rng.sample(texts, 5)) for _ in range(150)]
    rouge_l("import", ["first"])
    start = time.process_time()
    for answer, references in pairs:
        rouge_l(answer, references)
    assert len(pairs) / (time.process_time() - start) > 300
