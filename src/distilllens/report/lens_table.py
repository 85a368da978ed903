"""Data of the lens table: the predictions of each model by depth and token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from distilllens.lens.reading import Inspection, Reading

# Size limit of the table, and the approximate size of a cell: ten tokens, their probabilities and
# an entropy. Together with the figures, the page stays under 3 MB.
_BYTES = 2_000_000
_BYTES_PER_CELL = 140
# If space is short, drop whole texts before cutting the others to fewer tokens than this.
_MIN_TOKENS = 40


def lens_table(
    inspection: Inspection,
    names: Sequence[str],
    text_of: Callable[[int], str],
) -> dict:
    """The data of the page's lens table, ready for JSON.

    Args:
        names: of the teacher, then of the students.
        text_of: token id -> its text; called once per token.

    Returns:
        ``words`` (distinct texts of tokens; every token below is an index into it), ``models``
        (name and number of depths), ``pairs`` of each student, the ``trained`` student depths, the
        number of tokens ``left_out``, whether each position predicts its ``own`` token instead of
        the next one, and ``documents``, one per text: the tokens ``read``, the tokens ``next`` (to
        predict), the ``cells`` of each model and depth (top tokens, their probabilities and
        entropy, by token; None for a depth that is not shown), and the ``jsd`` of each student, by
        depth and token.
    """
    words = _Words(text_of)
    shown = _tokens_shown(inspection)
    readings = (inspection.teacher, *inspection.students)
    return {
        "models": [
            {"name": name, "depths": len(reading.tokens)}
            for name, reading in zip(names, readings, strict=True)
        ],
        "pairs": [c.pairs for c in inspection.comparisons],
        "trained": [[s for s, _ in pairs] for pairs in inspection.trained],
        "own": any(passage.own for passage in inspection.passages),
        "left_out": len(inspection.targets) - sum(shown),
        "documents": list(_texts(inspection, shown, words)),
        "words": words.all,
    }


def _texts(inspection, shown, words):
    start = 0
    used = _teacher_depths(inspection)
    for passage, kept in zip(inspection.passages, shown, strict=True):
        total = len(passage.positions)
        part = slice(start, start + kept)
        start += total
        if kept == 0:
            continue
        yield {
            "read": [words[i] for i in passage.ids[passage.positions[:kept]].tolist()],
            "next": [words[i] if i >= 0 else None for i in passage.targets[:kept].tolist()],
            "cells": [
                _cells(inspection.teacher, part, words, used),
                *(_cells(r, part, words, range(len(r.tokens))) for r in inspection.students),
            ],
            "jsd": [_rounded(c.divergences[:, part, 0]) for c in inspection.comparisons],
        }


def _cells(reading: Reading, part, words, depths):
    """``[top, p, entropy]`` of each depth, or None if the table does not show the depth."""
    return [
        [
            [[words[i] for i in row] for row in reading.tokens[depth, part].tolist()],
            _rounded(reading.probabilities[depth, part]),
            _rounded(reading.entropy[depth, part]),
        ]
        if depth in depths
        else None
        for depth in range(len(reading.tokens))
    ]


def _teacher_depths(inspection):
    if not inspection.comparisons:
        return set(range(len(inspection.teacher.tokens)))
    return {t for c in inspection.comparisons for _, t in c.pairs}


def _tokens_shown(inspection) -> list[int]:
    """How many tokens of each passage the page has room for, as evenly as possible."""
    rows = len(_teacher_depths(inspection)) + sum(len(c.pairs) for c in inspection.comparisons)
    left = max(1, _BYTES // (rows * _BYTES_PER_CELL))
    lengths = [len(passage.positions) for passage in inspection.passages]
    shown = [0] * len(lengths)
    chosen = range(min(len(lengths), max(1, left // _MIN_TOKENS)))
    for waiting, i in enumerate(sorted(chosen, key=lengths.__getitem__)):
        shown[i] = min(lengths[i], left // (len(chosen) - waiting))
        left -= shown[i]
    return shown


def _rounded(values: Tensor):
    """Nested lists of numbers with four significant digits."""
    return _four_digits(values.tolist())


def _four_digits(value):
    return [_four_digits(v) for v in value] if isinstance(value, list) else float(f"{value:.4g}")


class _Words:
    """Token -> index of its text in ``all``, a list of distinct texts."""

    def __init__(self, text_of):
        self._text_of, self._indices, self._texts = text_of, {}, {}

    def __getitem__(self, token):
        if token not in self._indices:
            self._indices[token] = self._texts.setdefault(self._text_of(token), len(self._texts))
        return self._indices[token]

    @property
    def all(self):
        return list(self._texts)
