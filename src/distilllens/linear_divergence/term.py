"""One term of the loss: rows of the student, what they are compared with, and their weights."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from distilllens.head import Head, MixedHead
from distilllens.top_predictions import TopPredictions
from distilllens.vocabularies import Side, Vocabularies


@dataclass(frozen=True, eq=False)
class Term:
    """``sum(weight * D)`` of a divergence from a teacher, or of the cross-entropy with labels.

    Attributes:
        student: normed hidden states ``[N, Ds]``.
        weight: ``[N]``, a constant.
        temperature: divides all logits.
        labels: ``[N]`` tokens, or None for a divergence from a teacher.
        seen: ``[2, N]``, beside labels only: filled with 1 where the label is the most likely token
            and 0 elsewhere, and with the entropy in nats. None fills nothing.
        teacher, teacher_head: normed hidden states ``[N, Dt]`` and their head; constants. Of a
            mixture, states of each model and a ``MixedHead``; of a model whose logits are
            elsewhere, ``TopPredictions`` and None.
        name, params: of the divergence, as in ``distilllens.divergence``.
        vocabularies: of models with two tokenizers; None for one.
    """

    student: Tensor
    weight: Tensor
    temperature: float
    labels: Tensor | None = None
    seen: Tensor | None = None
    teacher: Tensor | tuple[Tensor, ...] | TopPredictions | None = None
    teacher_head: Head | MixedHead | None = None
    name: str = "cross_entropy"
    params: dict[str, float] = field(default_factory=dict)
    vocabularies: Vocabularies | None = None

    @property
    def teacher_states(self) -> tuple[Tensor, ...]:
        """The states of each model that the student is compared with, if these are here."""
        if self.teacher_head is None:
            return ()
        return self.teacher if isinstance(self.teacher, tuple) else (self.teacher,)

    def shared_size(self, head: Head) -> int:
        """The number of tokens compared: all, or the prefix that both vocabularies share."""
        if self.labels is not None:
            return head.vocab_size
        return min(head.vocab_size, self.teacher_head.vocab_size)

    def sides(self, head: Head) -> tuple[Side, Side] | None:
        """What is compared of the student's logits and of the teacher's; None for the prefix."""
        if self.vocabularies is None:
            return None
        sizes = head.vocab_size, self.teacher_head.vocab_size
        return self.vocabularies.sides(*sizes, self.student.device)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the comparison: float32, or float64 if a model is float64."""
        dtype = torch.promote_types(self.student.dtype, torch.float32)
        for states in self.teacher_states:
            dtype = torch.promote_types(dtype, states.dtype)
        return dtype


def checked_teacher(teacher, head, vocabularies, temperature):
    """What a student is compared with, and its head; of a mixture without models of weight 0.

    Raises:
        ValueError: shapes that do not match; a temperature or vocabularies that go with neither.
    """
    if isinstance(teacher, TopPredictions):
        if temperature != 1:
            raise ValueError(
                f"temperature must be 1 for top predictions, got {temperature}: how it changes the "
                "tokens that are not listed is not known"
            )
        return teacher, None
    if not isinstance(head, MixedHead):
        check_rows("teacher", teacher, head)
        return teacher, head
    if vocabularies is not None:
        raise ValueError("a mixture needs one tokenizer for all; leave vocabularies out")
    if len(teacher) != len(head.heads):
        raise ValueError(f"a mixture of {len(head.heads)} heads got states of {len(teacher)}")
    for states, each in zip(teacher, head.heads, strict=True):
        check_rows("teacher", states, each)
    parts = zip(teacher, head.heads, head.weights, strict=True)
    teachers, heads, weights = zip(*(part for part in parts if part[2] > 0), strict=True)
    if len(teachers) == 1:
        return teachers[0], heads[0]
    return tuple(teachers), MixedHead(heads, weights)


def check_matrix(who, hidden):
    """Refuse states that are not ``[N, D]``."""
    if hidden.ndim != 2:
        raise ValueError(f"{who} must be [N, D], got shape {list(hidden.shape)}")


def check_rows(who, hidden, head):
    """Refuse states that a head does not read."""
    check_matrix(who, hidden)
    if hidden.shape[1] != head.weight.shape[1]:
        raise ValueError(
            f"{who} has width {hidden.shape[1]}, but its head reads width {head.weight.shape[1]}"
        )
