"""Answers that need no model: a score that does not beat theirs tells nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from distilllens.evaluate.benchmarks import Example
from distilllens.evaluate.exact import exact_match
from distilllens.evaluate.rouge import rouge_l
from distilllens.evaluate.scores import METRICS, NOTHING, Difference, Score

NEAR_ZERO = 1.0  # percent of Rouge-L
_SCORES = {"rouge_l": rouge_l, "exact_match": exact_match}
_REPLACED = ("better", "worse", "no difference beyond noise")


def trivial_scores(examples: Collection[Example]) -> dict[str, dict[str, float]]:
    """metric -> trivial answer -> its mean over the examples, in percent, 0 to 100.

    The answers are: nothing; each question, repeated; and the reference that most questions accept,
    to every question. Of equally frequent ones the first is taken; there is none if all differ.
    """
    counts = Counter(r for example in examples for r in dict.fromkeys(example.references))
    ((frequent, count),) = counts.most_common(1)
    answers = {
        "an empty answer": lambda example: "",
        "the question repeated": lambda example: example.question,
    }
    if count > 1:
        answers["the most frequent reference"] = lambda example: frequent
    return {
        metric: {
            name: float(np.mean([score(answer(one), one.references) for one in examples]))
            for name, answer in answers.items()
        }
        for metric, score in _SCORES.items()
    }


def best_trivial(settings: Mapping, benchmark: str, metric: str) -> tuple[str, float] | None:
    """The best trivial answer of an evaluation, and its score; None if none was noted."""
    noted = (settings.get("trivial") or {}).get(benchmark, {}).get(metric)
    return max(noted.items(), key=lambda item: item[1]) if noted else None


def why_useless(metric: str, score: Score, trivial: tuple[str, float] | None) -> str | None:
    """Why the score of a model's answers tells nothing; None if it may tell something.

    Args:
        trivial: as of ``best_trivial``.
    """
    if metric not in _SCORES:
        return None
    title = METRICS[metric].title.removesuffix(" (%)")
    if trivial is not None and 0 < trivial[1] >= score.mean:
        return f"{title} does not beat a trivial answer ({trivial[0]}: {trivial[1]:.2f} %)"
    return f"{title} is near 0" if metric == "rouge_l" and score.mean < NEAR_ZERO else None


def without_verdicts(
    pairs: Mapping[tuple[str, str], Mapping[str, Difference]],
    useless: Mapping[str, Collection[str]],
) -> dict[tuple[str, str], dict[str, Difference]]:
    """Comparisons, without a verdict where the scores of both models are useless.

    Args:
        useless: column -> the models whose score tells nothing there.
    """
    verdict = f"{NOTHING}: neither beats a trivial answer"
    return {
        pair: {
            column: replace(one, verdict=verdict)
            if one.verdict in _REPLACED and {*pair} <= {*useless.get(column, ())}
            else one
            for column, one in row.items()
        }
        for pair, row in pairs.items()
    }
