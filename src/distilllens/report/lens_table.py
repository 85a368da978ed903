"""The lens table's data: depth x token, what each model says there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from distilllens.lens.reading import Inspection, Reading

# What the table may take of the page, and about what one cell takes: ten tokens, their
# probabilities and an entropy. With the figures, the page stays under 3 MB.
_BYTES = 2_000_000
_BYTES_PER_CELL = 140
# Rather fewer documents than fewer tokens of each.
_FEW = 40


def lens_table(
    inspection: Inspection,
    names: Sequence[str],
    say: Callable[[int], str],
) -> dict:
    """What the page's lens table shows, ready for JSON.

    Args:
        names: of the teacher, then of the students.
        say: what a token says; asked once for each.

    Returns:
        ``words`` (texts, each once; other entries are places in it), ``models`` (names, numbers of
        depths), ``pairs`` of each student, the student depths that are ``trained``, how many tokens
        were ``left_out``, and ``documents``: what was ``read``, what follows (``next``), ``cells``
        of each model and depth (top tokens, their probabilities, entropy, by token; None for a
        depth that is not shown) and the ``jsd`` of each student, by depth and token.
    """
    words = _Words(say)
    shown = _tokens_shown(inspection)
    readings = (inspection.teacher, *inspection.students)
    return {
        "models": [
            {"name": name, "depths": len(reading.tokens)}
            for name, reading in zip(names, readings, strict=True)
        ],
        "pairs": [c.pairs for c in inspection.comparisons],
        "trained": [[s for s, _ in pairs] for pairs in inspection.trained],
        "left_out": len(inspection.targets) - sum(shown),
        "documents": list(_documents(inspection, shown, words)),
        "words": words.all,
    }


def _documents(inspection, shown, words):
    start = 0
    used = _teacher_depths(inspection)
    for document, kept in zip(inspection.documents, shown, strict=True):
        total = len(document.positions)
        part = slice(start, start + kept)
        start += total
        if kept == 0:
            continue
        yield {
            "read": [words[i] for i in document.ids[document.positions[:kept]].tolist()],
            "next": [words[i] if i >= 0 else None for i in document.targets[:kept].tolist()],
            "cells": [
                _cells(inspection.teacher, part, words, used),
                *(_cells(r, part, words, range(len(r.tokens))) for r in inspection.students),
            ],
            "jsd": [_rounded(c.divergences[:, part, 0]) for c in inspection.comparisons],
        }


def _cells(reading: Reading, part, words, depths):
    """For each depth ``[top, p, entropy]``, or None where the table does not show it."""
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
    """How many tokens of each document the page has room for: as evenly as can be."""
    rows = len(_teacher_depths(inspection)) + sum(len(c.pairs) for c in inspection.comparisons)
    left = max(1, _BYTES // (rows * _BYTES_PER_CELL))
    lengths = [len(document.positions) for document in inspection.documents]
    shown = [0] * len(lengths)
    chosen = range(min(len(lengths), max(1, left // _FEW)))
    for waiting, i in enumerate(sorted(chosen, key=lengths.__getitem__)):
        shown[i] = min(lengths[i], left // (len(chosen) - waiting))
        left -= shown[i]
    return shown


def _rounded(values: Tensor):
    """Nested lists of numbers with four digits."""
    return _four_digits(values.tolist())


def _four_digits(value):
    return [_four_digits(v) for v in value] if isinstance(value, list) else float(f"{value:.4g}")


class _Words:
    """Token -> the place of its text among ``all``, in which each text stands once."""

    def __init__(self, say):
        self._say, self._places, self._texts = say, {}, {}

    def __getitem__(self, token):
        if token not in self._places:
            self._places[token] = self._texts.setdefault(self._say(token), len(self._texts))
        return self._places[token]

    @property
    def all(self):
        return list(self._texts)
