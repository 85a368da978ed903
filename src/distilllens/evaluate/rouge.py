"""Rouge-L with the words and stems of rouge_score and a faster longest common subsequence."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import SimpleNamespace


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """F1 of Rouge-L with stemming against the best of the references, in percent, 0 to 100.

    Equals ``100 * max(scorer.score(r, answer)["rougeL"].fmeasure for r in references)`` with
    ``scorer = RougeScorer(["rougeL"], use_stemmer=True)`` of ``rouge_score``, to the last bit.
    Words are runs of a-z and 0-9 after lower-casing; a text without words scores 0.

    Source: Lin 2004; the metric of MiniLLM and DistillLens (arXiv 2602.13567).
    """
    words = _words()
    answer = words(answer)
    return 100 * max(_f1(answer, words(reference)) for reference in references)


def _f1(answer, reference):
    common = _longest_common(answer, reference)
    if common == 0:
        return 0.0
    precision, recall = common / len(answer), common / len(reference)
    return 2 * precision * recall / (precision + recall)


def _longest_common(ours, theirs):
    """Length of the longest common subsequence; each row of its table is the bits of one integer.

    Bit i of a row is 0 where the length grows at word i of ``ours``. rouge_score fills the table
    cell by cell, which takes most of its time.

    Source: Hyyrö 2004, "Bit-parallel LCS-length computation revisited".
    """
    places = {}
    for place, word in enumerate(ours):
        places[word] = places.get(word, 0) | 1 << place
    row = every = (1 << len(ours)) - 1
    for word in theirs:
        met = row & places.get(word, 0)
        row = (row + met | row - met) & every
    return len(ours) - row.bit_count()


@functools.cache
def _words() -> Callable[[str], list[str]]:
    """rouge_score's words of a text; each word is stemmed once per process."""
    from nltk.stem.porter import PorterStemmer
    from rouge_score.tokenize import tokenize

    stemmer = SimpleNamespace(stem=functools.lru_cache(2**16)(PorterStemmer().stem))
    return lambda text: tokenize(text, stemmer)
