"""The demo in plain sentences, computed from its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import NamedTuple

import numpy as np

from distilllens.evaluate.scores import Samples, bootstrap, compare

FIRST, SECOND = "DistillLens", "plain KD"
_CLAUSES = {
    "better": f"is nearer to the teacher than {SECOND} at",
    "worse": f"is farther from the teacher than {SECOND} at",
    "no difference beyond noise": f"differs from {SECOND} by no more than noise at",
    "equal on every example": f"equals {SECOND} at",
    "too few examples to tell": f"answered too few questions to be told from {SECOND} at",
}


class ByQuestion(NamedTuple):
    """A model on each of n questions.

    Args:
        jsd: for each pair of depths, the divergence from the teacher in nats, summed over the
            answer's tokens, n values.
        tokens: the numbers of these tokens.
        right: whether the greedy answer equals the reference.
    """

    jsd: Sequence[Sequence[float]]
    tokens: Sequence[int]
    right: Sequence[bool]


def compared(first: ByQuestion, second: ByQuestion) -> dict:
    """The first student minus the second, as JSON: ``jsd`` by pair, and ``exact_match`` in points.

    Each is a ``Difference``: 95 % intervals of a paired bootstrap over questions.
    """
    jsd = [
        _difference(
            "kl", *((one, of.tokens) for one, of in zip(pair, (first, second), strict=True))
        )
        for pair in zip(first.jsd, second.jsd, strict=True)
    ]
    each = [1] * len(first.right)
    right = [([100.0 * value for value in one.right], each) for one in (first, second)]
    return {"jsd": jsd, "exact_match": _difference("exact_match", *right)}


def verdict(result: Mapping) -> str:
    """What a demo's numbers say of the two students, and what they cannot say.

    Args:
        result: its ``questions`` and ``comparison``, of ``compared``; the last pair is the output.
    """
    found = result["comparison"]
    *inner, output = [one["verdict"] for one in found["jsd"]]
    places = [*((v, f"depth {n}") for n, v in enumerate(inner, 1)), (output, "the output")]
    said = [
        f"{words} {_listed(at)}"
        for name, words in _CLAUSES.items()
        if (at := [place for given, place in places if given == name])
    ]
    exact = found["exact_match"]
    return (
        f"On these {result['questions']} questions {FIRST} {_listed(said)}. Its share of exact "
        f"answers differs by {exact['difference']:+.1f} points, with a 95 % interval from "
        f"{exact['low']:+.1f} to {exact['high']:+.1f}: {exact['verdict']}. All this holds for one "
        "training seed. Another one moves these numbers too, so that one seed cannot tell the "
        "methods apart: train at least three (--seed 1, --seed 2)."
    )


def _difference(metric, *samples):
    """Whether lower ("kl") or higher ("exact_match") totals per count are better."""
    columns = [[np.array(part, dtype=float)[:, None] for part in sample] for sample in samples]
    numbers = np.arange(len(columns[0][0]))
    drawn = bootstrap([(metric, Samples(numbers, *column)) for column in columns], 0)
    return asdict(compare(metric, *drawn))


def _listed(words):
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last
