"""The rows of a run, as far as its cost depends on them: how many, and how long."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from distilllens.data.encode import encode_example
from distilllens.data.format import to_training_examples
from distilllens.data.streams import PLACE, RecordStream

_SAMPLE, _LONGEST = 256, 8  # rows that are encoded: spread evenly, and the longest texts
_STREAMED = 64  # the first of a stream
_BATCHES = 200


@dataclass(frozen=True)
class Batch:
    """A micro-batch of one device.

    Args:
        rows: sequences; one if they are packed or free of padding.
        length: tokens of each, padding included: a mean over batches.
        targets: of all rows, a mean.
        longest, most: the largest length and number of targets.
    """

    rows: int
    length: float
    targets: float
    longest: int
    most: int


@dataclass(frozen=True)
class Rows:
    """Training rows.

    Args:
        num: how many; None if it is not known.
        sample: (tokens, targets) of some, spread evenly.
        extreme: the same of the longest texts, which no mean counts.
        unique: the share of rows that no earlier row repeats.
        whole: whether ``sample`` has every row.
    """

    num: int | None
    sample: tuple[tuple[int, int], ...]
    extreme: tuple[tuple[int, int], ...] = ()
    unique: float = 1.0
    whole: bool = False

    @property
    def tokens(self) -> float:
        """Of a row, a mean."""
        return sum(tokens for tokens, _ in self.sample) / len(self.sample)

    @property
    def targets(self) -> float:
        """Of a row, a mean."""
        return sum(targets for _, targets in self.sample) / len(self.sample)

    def batch(self, size: int, length: int, *, packing: bool = False, free: bool = False) -> Batch:
        """A micro-batch of ``size`` rows; with ``packing``, of packs of ``length`` tokens.

        Args:
            free: rows are put into one, without padding.
        """
        if packing:
            share = self.targets / self.tokens
            whole = size * length
            return Batch(1, whole, whole * share, whole, math.ceil(whole * share))
        draw = random.Random(0)
        batches = [draw.choices(self.sample, k=size) for _ in range(_BATCHES)]
        sizes = [(sum if free else max)(n for n, _ in rows) for rows in batches]
        targets = [sum(n for _, n in rows) for rows in batches]
        known = (*self.sample, *self.extreme)
        longest = max(tokens for tokens, _ in known)
        most = max(max(targets), max(n for _, n in known))
        mean, of_targets = sum(sizes) / _BATCHES, sum(targets) / _BATCHES
        return Batch(1 if free else size, mean, of_targets, max(longest, *sizes), most)


def rows_of(examples: Sequence[dict] | RecordStream, tokenizer, max_length: int | None) -> Rows:
    """The rows of training examples, some of which are encoded.

    Raises:
        ValueError: an example that the chat template cannot write.
    """
    if isinstance(examples, RecordStream):
        found = (_sizes(example, tokenizer, max_length) for example in _first(examples))
        return Rows(None, tuple(found))
    step = max(1, len(examples) // _SAMPLE)
    longest = []
    if step > 1:
        texts = [len(str([*example.values()])) for example in examples]
        longest = sorted(range(len(examples)), key=texts.__getitem__)[-_LONGEST:]
    sample, extreme = (
        tuple(_sizes(examples[at], tokenizer, max_length) for at in chosen)
        for chosen in (range(0, len(examples), step), longest)
    )
    different = {hash(json.dumps(example, sort_keys=True, default=str)) for example in examples}
    unique = len(different) / len(examples)
    return Rows(len(examples), sample, extreme, unique=unique, whole=step == 1)


def _first(stream):
    """Examples of the first rows: drawn by the shares of the sources, else of each in turns.

    Not shuffled, which would read a whole buffer of rows.
    """
    if stream.sources[0].fraction is not None:
        return islice(stream.dataset(shuffled=False), _STREAMED)
    records = [*islice(stream.records(), _STREAMED)]
    examples = to_training_examples(records, chat=stream.chat)
    if stream.keeps is None:
        return examples
    pairs = zip(records, examples, strict=True)
    kept = [e for record, e in pairs if stream.keeps.keeps({PLACE: record.place, **e})]
    return kept or examples


def unknown_rows(max_length: int | None) -> Rows:
    """Rows of which nothing is known: all as long as they may be."""
    length = max_length or 1024
    return Rows(None, ((length, length - 1),))


def _sizes(example, tokenizer, max_length):
    ids, first = encode_example(example, tokenizer, max_length)
    length = len(ids) if max_length is None else min(len(ids), max_length)
    return length, max(0, length - max(first, 1))
