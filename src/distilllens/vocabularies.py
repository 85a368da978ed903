"""How the vocabularies of two tokenizers are compared: the tokens that both have, and the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

RULES = ("shared", "uld")


class Side(NamedTuple):
    """What is compared of one model's logits ``[R, V]``: ``width`` columns.

    Attributes:
        ids: the tokens with a column of their own, in the order of the columns.
        rest: the tokens that are one column together, the last; None for none.
        width: of columns; those without a token are -inf.
    """

    ids: Tensor
    rest: Tensor | None
    width: int

    def fold(self, logits: Tensor) -> Tensor:
        """Logits ``[R, width]`` of the columns: a softmax over them adds up probabilities."""
        found = logits.index_select(-1, self.ids)
        if self.rest is not None:
            rest = logits.index_select(-1, self.rest)
            found = torch.cat([found, rest.logsumexp(-1, keepdim=True)], -1)
        empty = self.width - found.shape[-1]
        return torch.nn.functional.pad(found, (0, empty), value=float("-inf")) if empty else found


@dataclass(frozen=True, eq=False)
class Vocabularies:
    """The tokens of a student and of a teacher with another tokenizer.

    ``"shared"``: each token that both have is a column, with its probability as it is; the
    probability of all others is one more column. If one of the models has no others, there is no
    such column, and the other's distribution is renormalised over the shared tokens. ``"uld"``:
    all tokens of each model, in any order; the smaller vocabulary is filled up with tokens of
    probability 0. Rows of a head that are no token of its tokenizer take no part.

    Args:
        shared: ``[K, 2]``, the ids of a token for the student and for the teacher.
        student_ids, teacher_ids: all tokens of each tokenizer.
        rule: "shared" or "uld".

    Raises:
        ValueError: another rule; no shared token, where they are compared.

    Source: Boizard et al. 2024 (arXiv 2402.12030) for "uld".
    """

    shared: Tensor
    student_ids: Tensor
    teacher_ids: Tensor
    rule: str = "shared"
    _sides: dict = field(default_factory=dict, repr=False)

    def __post_init__(self):
        if self.rule not in RULES:
            raise ValueError(f"cross_tokenizer is one of {', '.join(RULES)}, got {self.rule!r}")
        if self.rule == "shared" and not len(self.shared):
            raise ValueError(
                "student and teacher share no token; cross_tokenizer: uld compares without any"
            )

    @classmethod
    def of(
        cls,
        student: Mapping[int, object],
        teacher: Mapping[int, object],
        rule: str = "shared",
        same: Sequence[tuple[int, int]] = (),
    ) -> Vocabularies:
        """The vocabularies of two maps from ids to what tokens are; equal ones are one token.

        Args:
            same: (id of the student, of the teacher) that are one token whatever they are.
        """
        same = dict(same)
        ids = {token: i for i, token in reversed(teacher.items()) if i not in {*same.values()}}
        taken = set()
        for i, token in student.items():
            if i not in same and (other := ids.get(token)) is not None and other not in taken:
                same[i] = other
                taken.add(other)
        shared = torch.tensor(sorted(same.items()), dtype=torch.long).view(-1, 2)
        return cls(shared, torch.tensor(sorted(student)), torch.tensor(sorted(teacher)), rule)

    @property
    def renormalises(self) -> bool:
        """Whether a model has no token but the shared ones, so that no column holds the rest."""
        return len(self.shared) in (len(self.student_ids), len(self.teacher_ids))

    def sides(self, student_rows: int, teacher_rows: int, device) -> tuple[Side, Side]:
        """What is compared of heads with so many rows; tokens beyond them take no part."""
        key = student_rows, teacher_rows, str(device)
        if key not in self._sides:
            self._sides[key] = self._made(student_rows, teacher_rows, device)
        return self._sides[key]

    def _made(self, student_rows, teacher_rows, device):
        ours = self.student_ids[self.student_ids < student_rows]
        theirs = self.teacher_ids[self.teacher_ids < teacher_rows]
        if self.rule == "uld":
            width = max(len(ours), len(theirs))
            return tuple(Side(ids.to(device), None, width) for ids in (ours, theirs))
        limit = torch.tensor([student_rows, teacher_rows])
        shared = self.shared[(self.shared < limit).all(1)]
        rest = [
            ids[~torch.isin(ids, column)]
            for ids, column in zip((ours, theirs), shared.T, strict=True)
        ]
        bucket = all(map(len, rest))
        return tuple(
            Side(
                column.contiguous().to(device),
                others.to(device) if bucket else None,
                len(shared) + bucket,
            )
            for column, others in zip(shared.T, rest, strict=True)
        )

    @torch.no_grad()
    def shared_mass(self, head: Callable, states: Tensor, number: int) -> Tensor:
        """The probability ``[N]`` of the shared tokens for the student (0) or the teacher (1).

        Args:
            head: of that model, a ``Head``.
            states: normed ``[N, D]``.
        """
        ids = self.shared[:, number].to(states.device)
        every = (self.student_ids, self.teacher_ids)[number].to(states.device)
        size = head.vocab_size
        ids, every = ids[ids < size], every[every < size]
        parts = []
        for rows in states.split(64):  # no [N, V] matrix
            logits = head(rows.to(head.weight.dtype)).float()
            total = logits.index_select(-1, every).logsumexp(-1)
            parts.append((logits.index_select(-1, ids).logsumexp(-1) - total).exp())
        return torch.cat(parts) if parts else states.new_empty(0, dtype=torch.float32)


@dataclass(frozen=True, eq=False)
class Compared:
    """Which of a batch's N targets the M rows of a teacher are compared at, and how.

    Without arguments all N, as they are: those of a teacher with the student's tokenizer.

    Attributes:
        places: ``[M]``, their numbers from 0 to N - 1, rising; None for all.
        weights: ``[M]``, 1 / the share of the data's targets that are compared, so that sums are,
            on average, estimates for all targets; None for ones.
        vocabularies: of two tokenizers; None for one.
    """

    places: Tensor | None = None
    weights: Tensor | None = None
    vocabularies: Vocabularies | None = None

    def targets(self, kept: Tensor | None = None) -> Tensor | None:
        """The numbers of the targets of the rows, or of those ``kept``; None for all."""
        if self.places is None or kept is None:
            return kept if self.places is None else self.places
        return self.places[kept]

    def weighted(self, values: Tensor, kept: Tensor | None = None) -> Tensor:
        """Values ``[..., M]`` of the rows, or of those ``kept``, times their weights."""
        if self.weights is None:
            return values
        return values * (self.weights if kept is None else self.weights[kept]).to(values)


EVERY = Compared()
