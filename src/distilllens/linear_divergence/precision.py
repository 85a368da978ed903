"""In which dtype a model projects: that of its head, or autocast's."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import torch

from distilllens.head import MixedHead
from distilllens.top_predictions import TopPredictions


def projection_dtype(device, head):
    """The dtype in which a model's own head would project."""
    dtype = head.weight.dtype
    if _knows_autocast(device) and torch.is_autocast_enabled(device) and dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return dtype


def head_in(dtype, head):
    """A head in a dtype."""
    bias = None if head.bias is None else head.bias.to(dtype)
    return replace(head, weight=head.weight.to(dtype), bias=bias)


def projecting_head(head):
    """A head in the dtype of its own projections, without a gradient."""
    with torch.no_grad():
        return head_in(projection_dtype(head.weight.device.type, head), head)


def term_in(dtype, term, cast):
    """The term with the states of both models in the dtype of their heads' projections."""
    student = term.student.to(dtype)
    if term.labels is not None:
        return replace(term, student=student)
    if isinstance(term.teacher, TopPredictions):
        return replace(term, student=student)
    if isinstance(term.teacher_head, MixedHead):
        heads = tuple(map(cast, term.teacher_head.heads))
        parts = zip(term.teacher, heads, strict=True)
        teacher = tuple(states.detach().to(head.weight.dtype) for states, head in parts)
        mixed = replace(term.teacher_head, heads=heads)
        return replace(term, student=student, teacher=teacher, teacher_head=mixed)
    head = cast(term.teacher_head)
    with torch.no_grad():
        teacher = term.teacher.to(head.weight.dtype)
    return replace(term, student=student, teacher=teacher, teacher_head=head)


def outside_autocast(device):
    """A block in which nothing is cast."""
    return torch.autocast(device, enabled=False) if _knows_autocast(device) else nullcontext()


def _knows_autocast(device):
    return torch.amp.is_autocast_available(device)  # False for "meta"
