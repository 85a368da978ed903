"""The engine: chunks of tokens, each projected once, value and gradient computed together.

The logits of a chunk live in one ``[chunk, V]`` tile per model, which is allocated once per call
and overwritten in place. The float32 comparison works through the tiles in blocks of rows that fit
into the cache. The gradient replaces the student's logits in their tile, so the backward pass only
multiplies by the upstream scalar. Cost: ``2 N V (Dt + 3 Ds)`` flops per call, and
``2 N V (Dt + 2 Ds)`` with a frozen head.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distilllens.head import Head, MixedHead
from distilllens.linear_divergence import gradients
from distilllens.linear_divergence.logits import (
    FoldedLogits,
    Labels,
    Logits,
    MixedLogits,
    TopColumns,
    TopLogits,
)
from distilllens.linear_divergence.term import Term
from distilllens.linear_divergence.tiles import default_chunk_size
from distilllens.top_predictions import TopPredictions
from distilllens.vocabularies import Side

_FIRST_ADDMM = (2, 10)
_BLOCK_BYTES = 2**20  # of one block of rows: an L2 cache; 2**17 to 2**22 differ by 3 % (LOG.md)


def evaluate(
    head: Head,
    terms: list[Term],
    *,
    chunk_size: int | None = None,
    comparison: Callable = lambda *given: None,
) -> tuple[Tensor, list[Tensor]]:
    """As ``reference.evaluate``, without the ``[N, V]`` matrices; the head has one gradient sum.

    ``comparison`` is ``triton_rows.comparison``, or returns None: then torch compares.
    """
    plans = [_plan(head, term, chunk_size, comparison) for term in terms]
    students = [term.student for term in terms]
    tensors = (head.weight, head.bias, *students)
    needs = tuple(
        torch.is_grad_enabled() and tensor is not None and tensor.requires_grad
        for tensor in tensors
    )
    total, *per_token = _Chunked.apply(head.weight, head.bias, plans, needs, *students)
    return total, per_token


@dataclass(frozen=True, eq=False)
class _Plan:
    """What a term compares, apart from the tensors that get gradients.

    Attributes:
        sizes: the tokens that are projected, of the student and of the teacher.
        sides: what is compared of them, for two vocabularies; None for all.
        top: what is compared, of a teacher whose logits are elsewhere.
        width: the columns that are compared.
    """

    kernel: Callable
    head: Head
    other: Labels | TopColumns | tuple[Tensor | tuple[Tensor, ...], Head | MixedHead]
    weight: Tensor
    sizes: tuple[int, int]
    sides: tuple[Side, Side] | None
    top: TopPredictions | None
    width: int
    temperature: float
    chunk_size: int | None
    dtype: torch.dtype
    compare_rows: Callable | None


def _plan(head, term, chunk_size, comparison):
    kernel, other, compare_rows = gradients.cross_entropy, Labels(term.labels, term.seen), None
    sides, top = term.sides(head), None
    if term.labels is None:
        kernel = gradients.kernel(term.name, term.params)
    if isinstance(term.teacher, TopPredictions):
        top, width = term.teacher, term.teacher.width(head.vocab_size)
        sizes, other = (head.vocab_size, width), TopColumns(top, head.vocab_size, term.dtype)
    else:
        width = sides[0].width if sides else term.shared_size(head)
        sizes = (head.vocab_size, term.teacher_head.vocab_size) if sides else (width, width)
    if isinstance(term.teacher_head, MixedHead):
        other = (term.teacher, term.teacher_head)
    elif term.teacher_head is not None:
        other = (term.teacher.detach(), term.teacher_head)
        if sides is None:
            compare_rows = comparison(term.name, term.params, term.temperature, term.dtype)
    return _Plan(
        kernel=kernel,
        head=head,
        other=other,
        weight=term.weight.to(term.dtype),
        sizes=sizes,
        sides=sides,
        top=top,
        width=width,
        temperature=term.temperature,
        chunk_size=chunk_size,
        dtype=term.dtype,
        compare_rows=compare_rows,
    )


class _HeadGradients:
    """Gradients of the head's weight and bias, summed over the chunks of all terms in ``dtype``."""

    def __init__(self, head, dtype, needs):
        self.weight = torch.empty_like(head.weight, dtype=dtype) if needs[0] else None
        self.bias = torch.zeros_like(head.bias, dtype=dtype) if needs[1] else None
        self._empty = True

    def add(self, tile, slices, hidden, row_weight):
        """Add a chunk whose gradient of ``W h + b`` lies in the tile, but for ``row_weight``."""
        if self.weight is None:
            return
        hidden = (hidden * row_weight.unsqueeze(-1)).to(tile.dtype)
        size = tile.shape[1]
        for words in slices:
            self._add_weight(self.weight[words], tile[:, words], hidden, first=self._empty)
        if self._empty:
            self.weight[size:].zero_()
        self._empty = False

    def finished(self):
        """The gradients of weight and bias, None where not needed."""
        if self.weight is not None and self._empty:
            self.weight.zero_()
        return self.weight, self.bias

    def _add_weight(self, total, tile, hidden, first):
        if total.dtype == tile.dtype:
            torch.addmm(total, tile.T, hidden, beta=0 if first else 1, out=total)
            return
        if _adds_in_float32(total):
            given = {"beta": 0 if first else 1, "out_dtype": total.dtype, "out": total}
            torch.addmm(total, tile.T, hidden, **given)
            return
        # A few rows of the vocabulary at a time: no second [V, D] beside the float32 sum.
        for rows in range(0, len(total), 8192):
            part = torch.mm(tile[:, rows : rows + 8192].T, hidden)
            target = total[rows : rows + 8192]
            target.copy_(part) if first else target.add_(part)


def _adds_in_float32(total):
    """Whether ``torch.addmm`` adds a product of half precision to ``total`` without rounding it.

    cuBLAS does for a float32 sum, in every torch whose addmm accepts one with half factors.
    """
    cuda = total.device.type == "cuda" and torch.version.hip is None
    return cuda and total.dtype == torch.float32 and torch.__version__ >= _FIRST_ADDMM


def _evaluate(plans, head, students, needs):
    """Nats ``[N]`` of each plan and the gradients of all weighted nats, None where not needed."""
    dtype = functools.reduce(torch.promote_types, (plan.dtype for plan in plans))
    of_head = _HeadGradients(head, dtype, needs)
    of_students = [
        torch.empty_like(student) if need else None
        for student, need in zip(students, needs[2:], strict=True)
    ]
    per_token = [
        _run(plan, head, student, of_student, of_head, any((*needs[:2], of_student is not None)))
        for plan, student, of_student in zip(plans, students, of_students, strict=True)
    ]
    return per_token, (*of_head.finished(), *of_students)


def _run(plan, head, student, of_student, of_head, wants_gradient):
    """Nats ``[N]`` of one plan; its gradients are added to ``of_student`` and ``of_head``."""
    chunk = plan.chunk_size or _default_chunk(plan, student)
    chunk = max(1, min(chunk, len(student)))
    block = _block_rows(chunk, plan, student.device)
    in_tiles = 0 if plan.compare_rows else block
    rows = {"chunk": chunk, "block": in_tiles}
    logits, other = _logits(plan, 0, student, head, **rows), plan.other
    if isinstance(other, tuple):
        other = _logits(plan, 1, *other, **rows)
    # The kernel needs no scratch; the bias's gradient is summed from float32 blocks.
    scratch = 2 if in_tiles else int(of_head.bias is not None)
    work = student.new_empty(scratch, block, plan.width, dtype=plan.dtype)
    per_token = student.new_empty(len(student), dtype=plan.dtype)
    compare = _compare_rows if plan.compare_rows else _compare_blocks
    for start in range(0, len(student), chunk):
        stop = min(start + chunk, len(student))
        logits.project(start, stop)
        other.project(start, stop)
        row_weight = plan.weight[start:stop] * logits.constant
        nats = per_token[start:stop]
        for first, last, rows in compare(plan, logits, other, nats, work, wants_gradient):
            if of_head.bias is not None:
                dtype = of_head.bias.dtype
                parts = rows.T.to(dtype), row_weight[first:last].to(dtype)
                of_head.bias[: rows.shape[1]].addmv_(*parts)
        if not wants_gradient:
            continue
        if of_student is not None:
            logits.put_hidden_gradient(of_student[start:stop])
            of_student[start:stop].mul_(row_weight.unsqueeze(-1))
        tile = logits.tile[: stop - start]
        of_head.add(tile, logits.slices, student[start:stop], row_weight)
    return per_token


def _logits(plan, number, hidden, head, **rows):
    """The logits of the student (0) or the teacher (1) of a plan."""
    rows |= {"temperature": plan.temperature, "dtype": plan.dtype}
    if isinstance(head, MixedHead):
        return MixedLogits(hidden, head, plan.sizes[number], **rows)
    if plan.top is not None:
        return TopLogits(hidden, head, plan.sizes[number], top=plan.top, **rows)
    if plan.sides is None:
        return Logits(hidden, head, plan.sizes[number], **rows)
    return FoldedLogits(hidden, head, plan.sizes[number], side=plan.sides[number], **rows)


def _default_chunk(plan, student):
    dtype = None
    if plan.compare_rows:
        dtype = max(student.dtype, plan.other[0].dtype, key=lambda dtype: dtype.itemsize)
    return default_chunk_size(len(student), max(plan.sizes), student.device, dtype)


def _compare_blocks(plan, logits, other, nats, work, wants_gradient):
    """Compare a chunk in torch; yields the gradient of each block while it is in the cache."""
    block = work.shape[1]
    for first in range(0, len(nats), block):
        last = min(first + block, len(nats))
        rows = logits.rows(first, last)
        scratch = work[:, : last - first].unbind()
        nats[first:last] = plan.kernel(rows, other.rows(first, last), scratch, wants_gradient)
        if wants_gradient:
            rows = logits.put_gradient(rows, first, last)
        yield first, last, rows


def _compare_rows(plan, logits, other, nats, work, wants_gradient):
    """Compare a chunk by the plan's own kernel; yields the gradient in float32 blocks."""
    tiles = [(each.tile[: len(nats)], each.head) for each in (logits, other)]
    plan.compare_rows(*tiles, nats, wants_gradient=wants_gradient)
    if not len(work):  # the blocks are not needed
        return
    block = work.shape[1]
    for first in range(0, len(nats), block):
        last = min(first + block, len(nats))
        yield first, last, work[0, : last - first].copy_(logits.tile[first:last])


def _block_rows(chunk, plan, device):
    # An eighth of a chunk at most, so that all blocks together stay within two tiles.
    rows = chunk // 8
    if device.type == "cpu":
        rows = min(rows, _BLOCK_BYTES // (max(plan.sizes) * plan.dtype.itemsize))
    return max(1, rows)


class _Chunked(torch.autograd.Function):
    """Head and students get gradients; everything else is in the plans."""

    @staticmethod
    def forward(ctx, head_weight, head_bias, plans, needs, *students):
        head = replace(plans[0].head, weight=head_weight, bias=head_bias)
        per_token, found = _evaluate(plans, head, students, needs)
        ctx.save_for_backward(head_weight, head_bias, *students)
        ctx.plans, ctx.needs, ctx.found = plans, needs, found
        ctx.mark_non_differentiable(*per_token)
        weighted = ((p.weight * nats).sum() for p, nats in zip(plans, per_token, strict=True))
        return sum(weighted), *per_token

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream, *_):
        head_weight, head_bias, *students = ctx.saved_tensors
        found, ctx.found = ctx.found, None
        if found is None:  # a second backward (retain_graph): the first has given its tensors away
            head = replace(ctx.plans[0].head, weight=head_weight, bias=head_bias)
            _, found = _evaluate(ctx.plans, head, students, ctx.needs)
        of_weight, of_bias, *of_students = (
            None if gradient is None else gradient.mul_(upstream).to(like.dtype)
            for gradient, like in zip(found, (head_weight, head_bias, *students), strict=True)
        )
        return (of_weight, of_bias, None, None, *of_students)
