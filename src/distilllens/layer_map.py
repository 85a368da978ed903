"""Which depth of the student is matched to which depth of the teacher."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

_PAIR = re.compile(r"\s*(\d+)\s*:\s*(\d+)\s*")
# No model is deeper by far; a longer number is a slip, and nothing is built in proportion to it.
_DEEPEST, _MOST_DIGITS = 99_999, 5
_BLOCKS_HINT = 'write how many blocks to keep, such as 6, or which, from 0, such as "0,3,6"'
_YAML_HINT = (
    'write it as "2:8" or "2:8,4:16", in quotes in YAML '
    "(unquoted, YAML reads 2:8 as the number 128)"
)


@dataclass(frozen=True)
class Cut:
    """Which blocks of a deeper model a model consists of.

    Args:
        blocks: their indices there, from 0, rising.
        of: how many blocks that model has.
    """

    blocks: tuple[int, ...]
    of: int

    @classmethod
    def chosen(cls, blocks: int | str | Iterable[int], of: int) -> Cut:
        """So many blocks, evenly spread with the first and the last (a single one is the first).

        Or the blocks themselves: 5 of 13 are 0, 3, 6, 9 and 12.

        Args:
            blocks: as ``parse_blocks`` reads them.

        Raises:
            ValueError: more blocks than there are, or one that does not exist.
        """
        blocks = parse_blocks(blocks)
        if isinstance(blocks, int):
            if blocks > of:
                raise ValueError(f"{blocks} blocks cannot be kept: the model has {of}")
            steps = max(1, blocks - 1)
            blocks = tuple(round(k * (of - 1) / steps) for k in range(blocks))
        if blocks[-1] >= of:
            raise ValueError(
                f"block {blocks[-1]} does not exist: the model has blocks 0 to {of - 1}"
            )
        return cls(blocks, of)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(depth, the depth after the same block in the deeper model), for 1 to the last depth."""
        return [(depth, block + 1) for depth, block in enumerate(self.blocks, 1)]

    def fits(self, layers: int, of: int) -> bool:
        """Whether this can be a model of so many blocks, cut out of one of so many."""
        return (len(self.blocks), self.of) == (layers, of)


def parse_blocks(blocks: int | str | Iterable[int], name: str = "blocks") -> int | tuple[int, ...]:
    """How many blocks are kept (6 or "6"), or which ([0, 3, 6] or "0,3,6").

    Args:
        name: what messages call them.

    Raises:
        ValueError: anything else; no block; indices that do not rise.
    """
    if isinstance(blocks, str):
        parts = [part.strip() for part in blocks.split(",")]
        if not all(part.isdecimal() and part.isascii() and len(part) <= 5 for part in parts):
            raise ValueError(f"{name} {_shown(blocks)}: {_BLOCKS_HINT}")
        blocks = [int(part) for part in parts]
        blocks = blocks[0] if len(blocks) == 1 else blocks
    if isinstance(blocks, int) and not isinstance(blocks, bool):
        if blocks < 1:
            raise ValueError(f"{name} must be at least 1 block, got {blocks}")
        return blocks
    try:
        found = tuple(blocks)
    except TypeError:
        found = ()
    if not found or any(isinstance(b, bool) or not isinstance(b, int) or b < 0 for b in found):
        raise ValueError(f"{name} {blocks!r}: {_BLOCKS_HINT}")
    for before, after in pairwise(found):
        if after <= before:
            what = f"{after} is given twice" if after == before else f"{after} follows {before}"
            raise ValueError(f"{name} must rise, each once, but {what}")
    return found


@dataclass(frozen=True)
class LayerMap:
    """Pairs ``(student depth, teacher depth)``; the student's rise, the teacher's never fall.

    A depth counts blocks: 0 is the embeddings, L the state after the last of L blocks. Several
    depths of the student may be paired with one of the teacher.

    Raises:
        ValueError: no pair, a pair that is not two whole numbers >= 0, a student depth that does
            not rise, a teacher depth that falls.

    Source: arXiv 2602.13567; docs/paper.md.
    """

    pairs: tuple[tuple[int, int], ...]

    def __init__(self, pairs: Iterable[tuple[int, int]]):
        pairs = tuple(_checked_pair(pair) for pair in pairs)
        if not pairs:
            raise ValueError(f"a layer map needs at least one pair: {_YAML_HINT}")
        for (s0, t0), (s1, t1) in pairwise(pairs):
            if s1 <= s0 or t1 < t0:
                raise ValueError(
                    f"in a layer map the student's depths must rise strictly and the teacher's "
                    f"must not fall (valid: 0 to the number of blocks), but {s1}:{t1} follows "
                    f"{s0}:{t0}"
                )
        object.__setattr__(self, "pairs", pairs)

    @classmethod
    def parse(cls, text: str) -> LayerMap:
        """``"2:8,4:16"`` -> pairs (2, 8) and (4, 16).

        Raises:
            ValueError: anything else, with how to write it.
        """
        if not isinstance(text, str):
            raise ValueError(f"layer map {text!r} is not a text: {_YAML_HINT}")
        matches = [_PAIR.fullmatch(part) for part in text.split(",")]
        if not all(matches):
            raise ValueError(f"cannot read the layer map {_shown(text)}: {_YAML_HINT}")
        depths = [depth for match in matches for depth in match.groups()]
        if too_deep := [depth for depth in depths if len(depth) > _MOST_DIGITS]:
            raise ValueError(
                f"layer map {_shown(text)} has the depth {_shown(too_deep[0])}; the deepest that "
                f"can be written is {_DEEPEST}"
            )
        return cls((int(m[1]), int(m[2])) for m in matches)

    @classmethod
    def evenly(
        cls, n: int | str, student_layers: int, teacher_layers: int, cut: Cut | None = None
    ) -> LayerMap:
        """``n`` pairs, evenly spaced in the shallower model; the last block is left out.

        Its depths are ``round(k * L / (n + 1))``, k = 1..n, and the other model's are the nearest
        in relative depth: 2:6,3:9,5:15,7:21,8:24 for five pairs of 10 and 30 blocks. ``"auto"`` is
        as many as fit, at most 5: ``min(5, student_layers - 1, teacher_layers - 1)``.

        ``evenly(5, 12, 48)`` is the paper's 2:8,4:16,6:24,8:32,10:40 for GPT-2. Its maps for
        Qwen2.5 (6:7,11:14,17:22,22:29 of 28 and 36 blocks) and TinyLlama (4:5,7:10,11:16,15:21,
        18:26 of 22 and 32) round both sides apart, and must be written out.

        Args:
            cut: the teacher's blocks that the student consists of. If it is a cut of a model with
                this many blocks, each of its depths is paired with the one after the same block.

        Raises:
            ValueError: n is not a whole number >= 1, or the rounded depths do not rise.
        """
        # Steps of at least one block never round to the same depth, so up to this many always work.
        most = min(student_layers, teacher_layers) - 1
        if n == "auto":
            n = min(5, most)
            if n < 1:
                raise ValueError(
                    f"no pair of inner depths exists between {student_layers} student and "
                    f"{teacher_layers} teacher blocks; both need at least 2 (set lens_weight to 0 "
                    f"to train without the lens)"
                )
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"the number of layer pairs must be a whole number >= 1, got {n!r}")
        unfit = ValueError(
            f"{n} evenly spread pairs do not fit {student_layers} student and {teacher_layers} "
            f"teacher blocks; valid: 1 to {max(1, most)} pairs"
        )
        # L blocks have L + 1 depths; more pairs than that are not even built.
        if most < 0 or n > most + 2:
            raise unfit
        depths = [round(k * (most + 1) / (n + 1)) for k in range(1, n + 1)]
        if cut is not None and cut.fits(student_layers, teacher_layers):
            pairs = [(0, 0), *cut.pairs]
            pairs = [pairs[depth] for depth in depths]
        else:
            pairs = [
                tuple(round(depth * side / (most + 1)) for side in (student_layers, teacher_layers))
                for depth in depths
            ]
        if any(len(set(side)) < n for side in zip(*pairs, strict=True)):
            raise unfit
        return cls(pairs)

    @classmethod
    def exits(cls, student_layers: int, teacher_layers: int) -> LayerMap:
        """Every inner depth of the student, 1 to L - 1, with the teacher's last depth.

        Raises:
            ValueError: a student without an inner depth.
        """
        if student_layers < 2:
            raise ValueError(
                f"the student has no inner depth for exits: it has {student_layers} block, and at "
                "least 2 are needed (set lens_weight to 0 to train without the lens)"
            )
        return cls((depth, teacher_layers) for depth in range(1, student_layers))

    @classmethod
    def resolve(
        cls, spec: str, student_layers: int, teacher_layers: int, cut: Cut | None = None
    ) -> LayerMap:
        """The map that a recipe's ``lens_layers`` gives for two models.

        "auto", a number of pairs such as "3", pairs such as "2:8,4:16", or "exits".

        Args:
            cut: the blocks that the student was cut to, which "auto" and a number follow.

        Raises:
            ValueError: any other text, or depths that the models do not have.
        """
        if isinstance(spec, int) and not isinstance(spec, bool):
            spec = str(spec)
        if not isinstance(spec, str):
            raise ValueError(f"layer map {spec!r} is not a text: {_YAML_HINT}")
        if spec == "auto":
            return cls.evenly("auto", student_layers, teacher_layers, cut)
        if spec.strip() == "exits":
            return cls.exits(student_layers, teacher_layers)
        if (number := spec.strip()).isdecimal():
            number = int(number[: 2 * _MOST_DIGITS])  # Python refuses thousands of digits
            return cls.evenly(number, student_layers, teacher_layers, cut)
        return cls.parse(spec).check(student_layers, teacher_layers)

    @classmethod
    def resolve_or_none(
        cls, spec: str, student_layers: int, teacher_layers: int, cut: Cut | None = None
    ) -> LayerMap | None:
        """``resolve``, or None for "auto" and "exits" of models too shallow for an inner depth.

        Raises:
            ValueError: as ``resolve``.
        """
        shallow = {"auto": min(student_layers, teacher_layers) < 2, "exits": student_layers < 2}
        if shallow.get(str(spec).strip()):
            return None
        return cls.resolve(spec, student_layers, teacher_layers, cut)

    def check(self, student_layers: int, teacher_layers: int) -> LayerMap:
        """Return this map if every depth exists in both models.

        Raises:
            ValueError: a depth beyond 0..L, with the valid range.
        """
        for student_depth, teacher_depth in self.pairs:
            for who, depth, layers in (
                ("student", student_depth, student_layers),
                ("teacher", teacher_depth, teacher_layers),
            ):
                if depth > layers:
                    raise ValueError(
                        f"layer map pairs {who} depth {depth}, but the {who} has depths 0 to "
                        f"{layers}"
                    )
        return self

    @property
    def student_depths(self) -> tuple[int, ...]:
        """The student's depths, rising."""
        return tuple(pair[0] for pair in self.pairs)

    @property
    def teacher_depths(self) -> tuple[int, ...]:
        """The teacher's depths, rising, each once."""
        return tuple(dict.fromkeys(pair[1] for pair in self.pairs))

    def groups(self) -> list[slice]:
        """The pairs that are rows of one term: all, or each alone if they share a depth.

        So no row of the teacher is repeated.
        """
        number = len(self.pairs)
        if len(self.teacher_depths) == number:
            return [slice(0, number)]
        return [slice(at, at + 1) for at in range(number)]

    def __len__(self):
        return len(self.pairs)

    def __iter__(self):
        return iter(self.pairs)

    def __str__(self):
        return ",".join(f"{s}:{t}" for s, t in self.pairs)


def _shown(text):
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def _checked_pair(pair):
    try:
        student_depth, teacher_depth = pair
    except (TypeError, ValueError):
        raise ValueError(f"a layer pair is (student depth, teacher depth), got {pair!r}") from None
    for depth in (student_depth, teacher_depth):
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 0:
            raise ValueError(f"a depth is a whole number from 0, got {depth!r} in {pair!r}")
    return student_depth, teacher_depth
