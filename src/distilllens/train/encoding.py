"""A data set encoded row by row, whole or streamed; what was noticed of its rows is said."""

from __future__ import annotations

import logging
from collections.abc import Callable

from datasets import Dataset

logger = logging.getLogger(__name__)
# Columns of what was noticed of a row, beside its tokens and labels.
_NOTES = ["lost", "wrote_bos"]


def encoded(dataset, columns: list[str], row: Callable, num_proc: int | None):
    """A data set as ``input_ids`` and ``labels``, after warnings of what was noticed.

    Args:
        columns: of the data set.
        row: encodes a row, by its number; it has ``kind`` (of the data) and ``tokenizer``.
    """
    settings = {"with_indices": True, "remove_columns": columns}
    if not isinstance(dataset, Dataset):
        dataset = dataset.map(row, **settings).map(_SayOnce(row), with_indices=True)
        return dataset.select_columns(["input_ids", "labels"])  # rows may differ in their fields
    settings |= {"num_proc": num_proc, "desc": f"Tokenizing {row.kind} data"}
    dataset = dataset.map(row, **settings)
    lost = [(index, text) for index, text in enumerate(dataset["lost"]) if text]
    if lost:
        _say_lost(row, f"{len(lost)} of {len(dataset)}", *lost[0])
    if num := sum(dataset["wrote_bos"]):
        _say_bos(row, f"{num} of {len(dataset)}")
    return dataset.remove_columns(_NOTES)


class _SayOnce:
    """Says what is noticed of a stream at the first row of which it is."""

    def __init__(self, row):
        self.row, self.said = row, set()

    def __call__(self, example, index):
        new = {note for note in _NOTES if example[note]} - self.said
        self.said |= new
        if "lost" in new:
            _say_lost(self.row, "some", index, example["lost"])
        if "wrote_bos" in new:
            _say_bos(self.row, "some")
        return {}


def _say_lost(row, how_many, index, text):
    logger.warning(
        "in %s %s examples, prompt and completion together do not begin with the tokens of the "
        "prompt alone (first in example %d, counted from 0, whose prompt alone ends in %r): their "
        "targets begin where the two differ, and an answer is generated after other tokens than in "
        "training; end prompts at a token's end, or use a chat template that writes a prompt the "
        "same with and without its answer",
        how_many,
        row.kind,
        index,
        text,
    )


def _say_bos(row, how_many):
    logger.warning(
        "%s %s examples begin with %r themselves; it is not added a second time",
        how_many,
        row.kind,
        row.tokenizer.bos_token,
    )
