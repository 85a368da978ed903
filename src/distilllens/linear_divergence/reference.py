"""The naive program: whole ``[N, V]`` matrices and autograd. The engines are tested against it."""

from __future__ import annotations

import torch
from torch import Tensor

from distilllens.divergence import divergence
from distilllens.head import Head, MixedHead
from distilllens.linear_divergence.term import Term
from distilllens.top_predictions import TopPredictions


def evaluate(head: Head, terms: list[Term]) -> tuple[Tensor, list[Tensor]]:
    """The sum over all terms of ``sum(weight * D)``, and each D ``[N]`` detached."""
    per_token = [_compare(head, term) for term in terms]
    total = sum((term.weight * nats).sum() for term, nats in zip(terms, per_token, strict=True))
    return total, [nats.detach() for nats in per_token]


def _compare(head, term):
    student = head(term.student).to(term.dtype) / term.temperature
    if term.labels is not None:
        logs = student.log_softmax(-1)
        if term.seen is not None:
            term.seen[0] = logs.argmax(-1) == term.labels
            term.seen[1] = torch.special.entr(logs.detach().exp()).sum(-1)
        return -logs.gather(-1, term.labels.unsqueeze(-1)).squeeze(-1)
    teacher = _teacher_logits(head, term)
    if isinstance(term.teacher, TopPredictions):
        student = term.teacher.fold(student, slice(None))
    elif sides := term.sides(head):
        student, teacher = sides[0].fold(student), sides[1].fold(teacher)
    else:
        size = term.shared_size(head)
        student, teacher = student[:, :size], teacher[:, :size]
    return divergence(term.name, **term.params)(student, teacher)


@torch.no_grad()
def _teacher_logits(head, term):
    if isinstance(term.teacher, TopPredictions):
        return term.teacher.columns(slice(None), head.vocab_size, term.dtype)
    if isinstance(term.teacher_head, MixedHead):
        mixed = term.teacher_head.first(term.shared_size(head))
        return mixed(term.teacher, term.temperature).to(term.dtype)
    return term.teacher_head(term.teacher).to(term.dtype) / term.temperature
