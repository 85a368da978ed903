"""The engine: chunks of tokens, each projected once, its value and gradient taken together.

A chunk's logits live in one ``[chunk, V]`` tile a model, allocated once a call and worked on in
place; the float32 comparison goes through them in blocks of rows small enough for the cache. The
gradient takes the student tile's place, so that backward only multiplies by the upstream scalar.
Cost: ``2 N V (Dt + 3 Ds)`` flops a call, ``2 N V (Dt + 2 Ds)`` with a frozen head.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distilllens.head import Head
from distilllens.linear_divergence import gradients
from distilllens.linear_divergence.term import Term

_TILE_BYTES = 256 * 2**20  # of four tiles
_TILE_BYTES_ACCELERATOR = 2 * 2**30
_FIRST_ADDMM = (2, 10)
_BLOCK_BYTES = 2**20  # of one block of rows: an L2 cache; 2**17 to 2**22 differ by 3 % (LOG.md)


def evaluate(
    head: Head,
    terms: list[Term],
    *,
    chunk_size: int | None = None,
    comparison: Callable = lambda *given: None,
) -> tuple[Tensor, list[Tensor]]:
    """As ``reference.evaluate``, without the ``[N, V]`` matrices; the head's gradient is one sum.

    ``comparison`` is ``triton_rows.comparison``, or says None: to compare in torch.
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


def default_chunk_size(num_tokens: int, vocab_size: int, device: torch.device) -> int:
    """The largest power of two of which four float32 tiles fit the budget, from 16 up to N.

    The budget is 256 MiB on the CPU, where larger tiles are no faster (LOG.md), and on a device
    that does not say what it has free. It is 2 GiB elsewhere, where every operation is a launch and
    products want a thousand rows or more. It is never more than a quarter of what is free, even if
    fewer than 16 rows fit: so on a device that is nearly full, sums may round otherwise from call
    to call, unless a ``chunk_size`` is given.
    """
    free = free_bytes(device)
    large = free is not None and device.type != "cpu"
    row = 4 * 4 * vocab_size
    size = max(16, _power_of_two((_TILE_BYTES_ACCELERATOR if large else _TILE_BYTES) // row))
    if free is not None:
        size = min(size, _power_of_two(free // 4 // row))
    return max(1, min(num_tokens, size))


def _power_of_two(number):
    return 1 << max(number, 1).bit_length() - 1


def free_bytes(device: torch.device) -> int | None:
    """What could be allocated on ``device`` without swapping, None if it is not known.

    On the CPU what the kernel of Linux calls available, page cache included; the limit of a
    container is not looked at. On CUDA what the driver has and what the allocator keeps unused:
    neither waits for a stream.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type == "cpu":
        try:
            with open("/proc/meminfo", encoding="ascii") as lines:
                return next(1024 * int(x.split()[1]) for x in lines if x.startswith("MemAvailable"))
        except (OSError, StopIteration):
            return None
    return None


@dataclass(frozen=True, eq=False)
class _Plan:
    """What a term compares, beside the tensors that get gradients."""

    kernel: Callable
    head: Head
    other: Tensor | tuple[Tensor, Head]
    weight: Tensor
    size: int
    temperature: float
    chunk_size: int | None
    dtype: torch.dtype
    compare_rows: Callable | None


def _plan(head, term, chunk_size, comparison):
    kernel, other, compare_rows = gradients.cross_entropy, term.labels, None
    if term.labels is None:
        kernel = gradients.kernel(term.name, term.params)
        other = (term.teacher.detach(), term.teacher_head)
        compare_rows = comparison(term.name, term.params, term.temperature, term.dtype)
    return _Plan(
        kernel=kernel,
        head=head,
        other=other,
        weight=term.weight.to(term.dtype),
        size=term.shared_size(head),
        temperature=term.temperature,
        chunk_size=chunk_size,
        dtype=term.dtype,
        compare_rows=compare_rows,
    )


class _Logits:
    """One model's logits: a chunk at a time in one tile, read block by block in ``dtype``."""

    def __init__(self, hidden, head, plan, chunk, block):
        self.hidden, self.head, self.temperature = hidden, head, plan.temperature
        # d(logits over the temperature) / d(W h + b), but for the slope of a softcap.
        self.constant = head.scale / plan.temperature
        self.weight = head.weight.detach()[: plan.size]
        self.bias = None if head.bias is None else head.bias.detach()[: plan.size]
        self.tile = hidden.new_empty(chunk, plan.size)
        in_place = self.tile.dtype == plan.dtype
        self.block = None if in_place else hidden.new_empty(block, plan.size, dtype=plan.dtype)
        self.slope = None
        if head.softcap is not None:
            self.slope = hidden.new_empty(block, plan.size, dtype=plan.dtype)

    def project(self, start, stop):
        """Put the rows' ``W h + b`` into the tile."""
        tile = self.tile[: stop - start]
        if self.bias is None:
            torch.mm(self.hidden[start:stop], self.weight.T, out=tile)
        else:
            torch.addmm(self.bias, self.hidden[start:stop], self.weight.T, out=tile)

    def rows(self, first, last):
        """Logits over the temperature, to be overwritten."""
        rows = self.tile[first:last]
        if self.block is not None:
            rows = self.block[: last - first].copy_(rows)
        softcap = self.head.softcap
        if softcap is None:
            return rows if self.constant == 1 else rows.mul_(self.constant)
        rows.mul_(self.head.scale / softcap).tanh_()
        torch.mul(rows, rows, out=self.slope[: last - first]).neg_().add_(1)
        return rows.mul_(softcap / self.temperature)

    def put_gradient(self, rows, first, last):
        """Turn the gradient of what ``rows`` gave into that of the tile, but for the constant."""
        if self.slope is not None:
            rows.mul_(self.slope[: last - first])
        if self.block is not None:
            self.tile[first:last].copy_(rows)


class _Labels:
    """The same two steps for targets that are tokens."""

    def __init__(self, labels):
        self.labels = labels

    def project(self, start, stop):
        self.chunk = self.labels[start:stop]

    def rows(self, first, last):
        return self.chunk[first:last]


class _HeadGradients:
    """Gradients of the head's weight and bias, summed over the chunks of all terms in ``dtype``."""

    def __init__(self, head, dtype, needs):
        self.weight = torch.empty_like(head.weight, dtype=dtype) if needs[0] else None
        self.bias = torch.zeros_like(head.bias, dtype=dtype) if needs[1] else None
        self._empty = True

    def add(self, tile, hidden, row_weight):
        """Add a chunk whose gradient of ``W h + b`` lies in the tile, but for ``row_weight``."""
        if self.weight is None:
            return
        hidden = (hidden * row_weight.unsqueeze(-1)).to(tile.dtype)
        size = tile.shape[1]
        self._add_weight(self.weight[:size], tile, hidden, first=self._empty)
        if self._empty:
            self.weight[size:].zero_()
        self._empty = False

    def finished(self):
        """Weight's and bias' gradients, None where not needed."""
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

    cuBLAS does, for a float32 sum, in the first torch whose addmm takes one beside half factors.
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
    """Nats ``[N]`` of one plan; its gradients go where they are collected."""
    chunk = plan.chunk_size or default_chunk_size(len(student), plan.size, student.device)
    chunk = max(1, min(chunk, len(student)))
    block = _block_rows(chunk, plan, student.device)
    logits = _Logits(student, head, plan, chunk, block)
    if isinstance(plan.other, Tensor):
        other = _Labels(plan.other)
    else:
        other = _Logits(*plan.other, plan, chunk, block)
    work = student.new_empty(2, block, plan.size, dtype=plan.dtype)
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
                of_head.bias[: plan.size].addmv_(*parts)
        if not wants_gradient:
            continue
        tile = logits.tile[: stop - start]
        if of_student is not None:
            rows = torch.mm(tile, logits.weight, out=of_student[start:stop])
            rows.mul_(row_weight.unsqueeze(-1))
        of_head.add(tile, student[start:stop], row_weight)
    return per_token


def _compare_blocks(plan, logits, other, nats, work, wants_gradient):
    """Compare a chunk in torch; gives the gradient of each block while it is in the cache."""
    block = work.shape[1]
    for first in range(0, len(nats), block):
        last = min(first + block, len(nats))
        rows = logits.rows(first, last)
        scratch = work[:, : last - first].unbind()
        nats[first:last] = plan.kernel(rows, other.rows(first, last), scratch, wants_gradient)
        if wants_gradient:
            logits.put_gradient(rows, first, last)
        yield first, last, rows


def _compare_rows(plan, logits, other, nats, work, wants_gradient):
    """Compare a chunk by the plan's own kernel; gives the gradient in float32, part by part."""
    tiles = [(each.tile[: len(nats)], each.head) for each in (logits, other)]
    plan.compare_rows(*tiles, nats, wants_gradient=wants_gradient)
    if plan.head.bias is None:  # nobody reads the parts
        return
    block = work.shape[1]
    for first in range(0, len(nats), block):
        last = min(first + block, len(nats))
        yield first, last, work[0, : last - first].copy_(logits.tile[first:last])


def _block_rows(chunk, plan, device):
    # An eighth of a chunk at most, so that all blocks together stay within two tiles.
    rows = chunk // 8
    if device.type == "cpu":
        rows = min(rows, _BLOCK_BYTES // (plan.size * plan.dtype.itemsize))
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
