"""The naive program: whole ``[N, V]`` matrices and autograd. The truth the engines are held to."""

from __future__ import annotations

import torch
from torch import Tensor

from distilllens.divergence import divergence as named_divergence
from distilllens.head import Head


def divergence(
    student: Tensor,
    student_head: Head,
    teacher: Tensor,
    teacher_head: Head,
    *,
    name: str,
    params: dict[str, float],
    temperature: float,
    weight: Tensor,
) -> tuple[Tensor, Tensor]:
    """``(sum(weight * D), D [N] detached)`` with D the named divergence of two heads' logits."""
    with torch.no_grad():
        teacher_logits = _comparable(teacher_head(teacher), student) / temperature
    student_logits = _comparable(student_head(student), teacher) / temperature
    size = min(student_head.vocab_size, teacher_head.vocab_size)
    per_token = named_divergence(name, **params)(student_logits[:, :size], teacher_logits[:, :size])
    return (weight * per_token).sum(), per_token.detach()


def cross_entropy(
    student: Tensor, student_head: Head, labels: Tensor, *, temperature: float, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """``(sum(weight * D), D [N] detached)`` with D the cross-entropy of the head's logits."""
    log_q = (_comparable(student_head(student), student) / temperature).log_softmax(-1)
    per_token = -log_q.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return (weight * per_token).sum(), per_token.detach()


def _comparable(logits, other):
    return logits.to(
        torch.promote_types(torch.promote_types(logits.dtype, other.dtype), torch.float32)
    )
