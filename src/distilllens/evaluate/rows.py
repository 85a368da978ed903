"""Rows of a results folder, read back with a check of their examples and numbers."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from distilllens.jsonl import parse_row
from distilllens.stored import DamagedFile, check_stored, read_stored_rows


class AnswerRow(TypedDict):
    """One answer; its metrics are added when it is scored."""

    example: int
    answer: str
    num_tokens: int
    finished: bool
    near_ties: int
    seed: NotRequired[int | None]
    rouge_l: NotRequired[float]
    exact_match: NotRequired[float]
    sbert: NotRequired[float]
    judge: NotRequired[float | None]
    judge_reference: NotRequired[float | None]
    judge_win: NotRequired[float | None]


class ReferenceRow(TypedDict):
    """The likelihood of one reference, as ``ReferenceLikelihood``; all but the count may be inf."""

    example: int
    num_tokens: int
    nll: Any
    kl: Any
    teacher_nll: NotRequired[Any]


# Name -> lowest and highest value. Rounding may take a divergence a little below 0.
_ANSWER_RANGES = {
    "example": (0, math.inf),
    "num_tokens": (0, math.inf),
    "near_ties": (0, math.inf),
    "rouge_l": (0, 100),
    "exact_match": (0, 100),
    "sbert": (-1, 1),
    "judge": (1, 10),
    "judge_reference": (1, 10),
    "judge_win": (0, 100),
}
_REFERENCE_RANGES = {
    "example": (0, math.inf),
    "num_tokens": (1, math.inf),
    "nll": (-0.001, math.inf),
    "kl": (-0.001, math.inf),
    "teacher_nll": (-0.001, math.inf),
}


def read_answers(
    path: Path, seed: int | None, examples: Collection[int] | None = None
) -> list[AnswerRow]:
    """The finished answers of one seed, by example.

    Args:
        examples: the numbers of exactly those that must be there; None for any.

    Raises:
        DamagedFile: a row is not one of ours, an example is missing, unknown or there twice, or a
            number is outside its range; the message starts with file and line.
    """
    rows = read_stored_rows(path, AnswerRow)
    for line, row in enumerate(rows, 1):
        _check_answer(row, seed, f"{path}:{line}")
    return _by_example(path, rows, examples)


def read_parts(path: Path, seed: int | None) -> dict[int, AnswerRow]:
    """example -> answer of a part file, in which lines that a crash tore are left out.

    Raises:
        DamagedFile: a whole line is not one of ours.
    """
    rows = {}
    for line, text in enumerate(path.read_bytes().split(b"\n"), 1):
        if (row := parse_row(text)) is not None:
            where = f"{path}:{line}"
            row = check_stored(row, AnswerRow, where)
            _check_answer(row, seed, where)
            rows[row["example"]] = row
    return rows


def read_references(path: Path, examples: Collection[int] | None = None) -> list[ReferenceRow]:
    """The likelihoods of the references, by example.

    Args:
        examples: as of ``read_answers``.

    Raises:
        DamagedFile: as ``read_answers``.
    """
    rows = read_stored_rows(path, ReferenceRow)
    for line, row in enumerate(rows, 1):
        if row["nll"] is None:
            raise DamagedFile(f"{path}:{line}: nll is null; it must be a number")
        _check_ranges(row, _REFERENCE_RANGES, f"{path}:{line}")
    return _by_example(path, rows, examples)


def _check_answer(row, seed, where):
    if row.get("seed", seed) != seed:
        raise DamagedFile(f"{where}: the answer is of seed {row['seed']}, the file of seed {seed}")
    _check_ranges(row, _ANSWER_RANGES, where)


def _check_ranges(row: Mapping, ranges, where):
    for name, (low, high) in ranges.items():
        value = row.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise DamagedFile(f"{where}: {name} is {value!r}; it must be a number")
        if not low <= value <= high:  # so is NaN
            right = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise DamagedFile(f"{where}: {name} is {value:g}; it must be {right}")


def _by_example(path, rows: Sequence[Mapping], examples):
    lines = {}
    for line, row in enumerate(rows, 1):
        number = row["example"]
        if number in lines:
            raise DamagedFile(
                f"{path}:{line}: example {number} is there already, on line {lines[number]}"
            )
        if examples is not None and number not in examples:
            raise DamagedFile(
                f"{path}:{line}: example {number} is none of the {len(examples)} of this evaluation"
            )
        lines[number] = line
    if examples is not None and (missing := sorted({*examples} - lines.keys())):
        raise DamagedFile(
            f"{path}: example {missing[0]} is missing ({len(missing)} of {len(examples)} are)"
        )
    return sorted(rows, key=lambda row: row["example"])
