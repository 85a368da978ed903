"""Rouge-L against rouge_score's own scorer and against a program that shares nothing with it."""

import itertools
import json
import random
import re
import time
import unicodedata
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
        if text.isascii():
            found = re.findall("[a-z0-9]+", text.lower())
        else:
            found = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text.lower())
            found = unicodedata.normalize("NFC", found).split()
        return [STEMMER.stem(word) if len(word) > 3 and word.isascii() else word for word in found]

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
    """1,000 pairs, a quarter with several references: both others give the same to 1e-12.

    rouge_score cuts words at the letters that it does not know; it decides for ASCII texts.
    """
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    found, num_ascii = [], 0
    for answer, references in mixed_pairs(shared):
        theirs = max(scorer.score(r, answer)["rougeL"].fmeasure for r in references)
        found.append(rouge_l(answer, references))
        if "".join([answer, *references]).isascii():
            num_ascii += 1
            assert found[-1] == 100 * theirs
        assert found[-1] == pytest.approx(independent(answer, references), abs=1e-12)
    # Every kind of overlap occurs: none, all, and mostly some.
    assert min(found) == 0.0 and max(found) == 100.0
    assert sum(0 < score < 100 for score in found) > 600
    assert num_ascii > 800


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
        ("naïve café", ["naïve café"], 100.0),
        ("naïve cafe", ["naïve café"], 50.0),  # an accent splits no word and is no trifle
        ("cafe\u0301", ["caf\u00e9"], 100.0),  # the accent as a character of its own
        ("I don’t run", ["I do run"], 200 * 2 / 7),  # i don t run, i do run
        ("don\u2019t", ["don't"], 100.0),
        ("今天天气很好。", ["今天天气不好"], 200 * 5 / 12),  # characters
        ("東京タワー", ["東京タワー。"], 100.0),
        ("我爱 GPT models", ["我 gpt model"], 200 * 3 / 7),
        ("Москва большая", ["москва маленькая"], 50.0),
        ("مرحبا يا عالم", ["مرحبا، عالم"], 80.0),
        ("हिन्दी भाषा", ["हिन्दी"], 200 / 3),  # vowel signs belong to their word
        ("한국어 문장", ["한국어 문장 둘"], 80.0),
        ("한국어".encode().decode(), [unicodedata.normalize("NFD", "한국어")], 100.0),
        ("ดีมาก", ["ดี"], 200 / 5),  # ดี ม า ก, as four characters with their marks
        ("می\u200cخواهم", ["میخواهم"], 100.0),  # a joiner is invisible
        ("café", ["!!!"], 0.0),
        ("😀", ["😀"], 100.0),
        ("😀", ["😀😀"], 200 / 3),
    ],
)
def test_by_hand(answer, references, expected):
    """Small cases counted by hand."""
    assert rouge_l(answer, references) == pytest.approx(expected, abs=1e-12)


SENTENCES = {
    "Chinese": "模型预测下一个词。",
    "Japanese": "モデルは次の単語を予測します。",
    "Korean": "모델이 다음 단어를 예측한다.",
    "Russian": "Модель предсказывает следующее слово.",
    "Greek": "Το μοντέλο προβλέπει την επόμενη λέξη.",
    "Arabic": "يتوقع النموذج الكلمة التالية؟",
    "Hebrew": "המודל חוזה את המילה הבאה.",
    "Hindi": "मॉडल अगले शब्द की भविष्यवाणी करता है।",
    "Tamil": "மாதிரி அடுத்த சொல்லை கணிக்கிறது.",
    "Thai": "แบบจำลองทำนายคำถัดไป",
    "Lao": "ແບບຈຳລອງຄາດເດົາຄຳຕໍ່ໄປ",
    "Khmer": "គំរូទស្សន៍ទាយពាក្យបន្ទាប់។",
    "Burmese": "မော်ဒယ်က နောက်စကားလုံးကို ခန့်မှန်းသည်။",
    "Amharic": "ሞዴሉ ቀጣዩን ቃል ይተነብያል።",
    "French": "Le modèle prédit l’élément suivant.",
    "symbols": "→ ✓",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_an_answer_equal_to_its_reference_scores_100(language):
    """In every script, and less with a part missing; nothing in common scores 0."""
    text = SENTENCES[language]
    assert rouge_l(text, [text]) == 100.0
    assert 0 < rouge_l(text[: len(text) // 2], [text]) < 100
    assert rouge_l("zzz", [text]) == rouge_l(text, ["zzz"]) == 0.0


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
