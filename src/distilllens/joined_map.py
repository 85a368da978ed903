"""The layer maps of several teachers as one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from distilllens.layer_map import LayerMap


class TeacherDepth(NamedTuple):
    """A depth of one of several teachers, from 0; in texts "8@1" is depth 8 of the first."""

    teacher: int
    depth: int

    def __str__(self):
        return f"{self.depth}@{self.teacher + 1}"

    def __format__(self, spec):
        return format(str(self), spec)


def depths_in(pair: str) -> list[int]:
    """The numbers of "2:8", or of "2:8@1" where 1 is one of several teachers; pairs sort by them.

    Raises:
        ValueError: another text.
    """
    return [*map(int, re.split("[:@]", pair))]


@dataclass(frozen=True, init=False)
class JoinedMap(LayerMap):
    """Pairs ``(student depth, TeacherDepth)``: each teacher's map, one after the other."""

    def __init__(self, pairs: Iterable[tuple[int, TeacherDepth]]):
        object.__setattr__(self, "pairs", tuple(pairs))

    @classmethod
    def of(cls, maps: Sequence[LayerMap | None]) -> JoinedMap | None:
        """The map of teachers with these maps; None if one of them has none."""
        if any(each is None for each in maps):
            return None
        return cls((s, TeacherDepth(n, t)) for n, each in enumerate(maps) for s, t in each)

    @property
    def student_depths(self) -> tuple[int, ...]:
        """The student's depths, rising, each once."""
        return tuple(sorted({student for student, _ in self.pairs}))

    def of_teachers(self) -> list[LayerMap]:
        """The map of each teacher, in their order."""
        parts = groupby(self.pairs, key=lambda pair: pair[1].teacher)
        return [LayerMap((student, place.depth) for student, place in part) for _, part in parts]

    def groups(self) -> list[slice]:
        """As for ``LayerMap``; pairs of two teachers are never in one group."""
        found, start = [], 0
        for each in self.of_teachers():
            found += [slice(start + group.start, start + group.stop) for group in each.groups()]
            start += len(each)
        return found
