"""Records that are read when they are needed, as a stream of training examples."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice

from distilllens.data.format import to_training_examples
from distilllens.data.records import read_record
from distilllens.data.sources import Source, check_forms, fingerprint_of

logger = logging.getLogger(__name__)
# The column of a streamed example that names its file and line.
PLACE = "distilllens_place"
# So many rows are read in vain before a stream is taken for one without any that can be used.
_MOST_IN_VAIN = 10_000
_FIRST_EMPTY = {}  # a source -> its first record without a target


@dataclass(frozen=True)
class RecordStream:
    """The records of some sources, for training.

    Sources without shares are read together; with shares (``fraction``), each row is drawn from a
    source with that probability, and a source that ends begins again until all have ended.

    Args:
        chat: a chat template will write instruction records.
        seed: of the draws and of the shuffling.
        buffer_size: how many rows are shuffled at a time; 0 and 1 keep their order.
        keeps: whether an example takes part.
        warn: log the fields that nothing reads, and files that are not read.

    Raises:
        ValueError: a source that cannot be found or streamed, whose first record is invalid, or
            whose records have another form than those of the others.
    """

    sources: tuple[Source, ...]
    chat: bool = False
    seed: int = 0
    buffer_size: int = 1000
    keeps: CountedFilter | None = None
    warn: bool = True

    def __post_init__(self):
        check_forms(self.sources, [first.record for first in self._firsts], chat=self.chat)

    @cached_property
    def _shards(self):
        return [source.shards(warn=self.warn) for source in self.sources]

    @cached_property
    def _firsts(self):
        """The first record with a target of each source."""
        return [
            _first(source, shards, self.chat, self.warn)
            for source, shards in zip(self.sources, self._shards, strict=True)
        ]

    @property
    def first(self) -> dict:
        """The first record."""
        return self._firsts[0].record

    @property
    def first_example(self) -> dict:
        """The first record as a training example."""
        return to_training_examples([self.first], chat=self.chat)[0]

    def fingerprint(self) -> str:
        """What distinguishes the data; not all of it is read."""
        return fingerprint_of([*chain.from_iterable(self._shards)])

    def records(self) -> Iterator[dict]:
        """The records, not shuffled; of several sources in turns."""
        kinds = [(first.kind, first.is_conversation) for first in self._firsts]
        readers = [
            islice(_records(shards, kind, self.chat), source.rows)
            for source, shards, kind in zip(self.sources, self._shards, kinds, strict=True)
        ]
        while readers:
            for reader in [*readers]:
                record = next(reader, None)
                if record is None:
                    readers.remove(reader)
                else:
                    yield record

    def dataset(self, *, shuffled: bool = True):
        """The training examples as a ``datasets.IterableDataset``, each with its ``PLACE``.

        Args:
            shuffled: the first of them costs reading ``buffer_size`` rows.
        """
        from datasets import IterableDataset

        kinds = [(first.kind, first.is_conversation) for first in self._firsts]
        parts = [
            [(shard, kind, self.chat) for shard in shards]
            for shards, kind in zip(self._shards, kinds, strict=True)
        ]
        if self.sources[0].fraction is None:
            # Lists are what datasets shuffles and reads together.
            read, given = _read, {"parts": [*chain.from_iterable(parts)]}
        else:
            shares = tuple(source.fraction for source in self.sources)
            parts = tuple(map(tuple, parts))
            read, given = _draw, {"parts": parts, "shares": shares, "seed": self.seed}
        found = IterableDataset.from_generator(read, gen_kwargs=given)
        if shuffled and self.buffer_size > 1:
            found = found.shuffle(seed=self.seed, buffer_size=self.buffer_size)
        return found if self.keeps is None else found.filter(self.keeps, with_indices=True)


class CountedFilter:
    """Keeps rows of a stream, and says how many it does not keep: the first, the tenth, ...

    For ``IterableDataset.filter(..., with_indices=True)``; a reader that begins again counts anew.

    Args:
        keeps: whether a row is kept.
        what: the rows, for messages.
        problem: what those that are not kept have in common.
        remedy: what to do if no row is kept.

    Raises:
        ValueError: none of the first ten thousand rows is kept.
    """

    def __init__(self, keeps: Callable[[dict], bool], what: str, problem: str, remedy: str):
        self.keeps, self.what, self.problem, self.remedy = keeps, what, problem, remedy
        self.num_left_out, self.next_said = 0, 1

    def __call__(self, row, index: int) -> bool:
        if index == 0:
            self.num_left_out = 0
        if self.keeps(row):
            return True
        self.num_left_out += 1
        if self.num_left_out == index + 1 >= _MOST_IN_VAIN:
            raise ValueError(
                f"the first {index + 1:,} streamed {self.what} {self.problem}; {self.remedy}"
            )
        if self.num_left_out == self.next_said:
            self.next_said *= 10
            logger.warning(
                "%d of the first %d streamed %s %s; they are left out",
                *(self.num_left_out, index + 1, self.what, self.problem),
            )
        return False


def _first(source, shards, chat, warn):
    """What ``read_record`` makes of the first row of a source with a target."""
    where = None
    for shard in shards:
        for where, row in shard.read():
            found = read_record(row, where, skip_empty=True, chat=chat)
            if found.record is not None:
                if found.unused and warn:
                    named = ", ".join(map(repr, sorted(found.unused)))
                    logger.warning("nothing reads these fields of %s: %s", source.label, named)
                return found
    which = "" if where is None else " with a target"
    raise ValueError(f"{source.label} holds no record{which}; it needs at least one")


def _records(shards, kind, chat):
    for shard in shards:
        for where, row in shard.read():
            found = read_record(row, where, skip_empty=True, chat=chat)
            if found.record is None:
                _say_empty(shard.source.label, where)
                continue
            if (found.kind, found.is_conversation) != kind:
                raise ValueError(
                    f"{where}: a {found.kind!r} record, but the first of "
                    f"{shard.source.label} is a {kind[0]!r} record; train on one kind at a time"
                )
            yield found.record


def _say_empty(label, where):
    if _FIRST_EMPTY.setdefault(label, where) == where:
        logger.warning("leaving out records of %s without a target; the first is %s", label, where)


def _read(parts):
    """The examples of some shards, each with the kind of its source and whether chat is set."""
    for shard, kind, chat in parts:
        records = islice(_records([shard], kind, chat), shard.source.rows)
        for record in records:
            (example,) = to_training_examples([record], chat=chat)
            yield {PLACE: record.place, **example}


def _draw(parts, shares, seed):
    """Examples of several sources, each drawn with the probability of its source."""
    draws, ended = random.Random(seed), set()
    readers = [*map(_read, parts)]
    while True:
        (at,) = draws.choices(range(len(parts)), shares)
        example = next(readers[at], None)
        if example is None:
            ended.add(at)
            if len(ended) == len(parts):
                return
            readers[at] = _read(parts[at])
            example = next(readers[at])
        yield example
