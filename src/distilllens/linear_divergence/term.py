"""One term of the loss: rows of the student, what they are compared with, and their weights."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from distilllens.head import Head
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
        teacher, teacher_head: normed hidden states ``[N, Dt]`` and their head; constants.
        name, params: of the divergence, as in ``distilllens.divergence``.
        vocabularies: of models with two tokenizers; None for one.
    """

    student: Tensor
    weight: Tensor
    temperature: float
    labels: Tensor | None = None
    seen: Tensor | None = None
    teacher: Tensor | None = None
    teacher_head: Head | None = None
    name: str = "cross_entropy"
    params: dict[str, float] = field(default_factory=dict)
    vocabularies: Vocabularies | None = None

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
        return dtype if self.teacher is None else torch.promote_types(dtype, self.teacher.dtype)
