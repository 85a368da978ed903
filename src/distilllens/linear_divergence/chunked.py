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

_TILE_BYTES = 256 * 2**20  # of four tiles
_TILE_BYTES_ACCELERATOR = 2 * 2**30
_FIRST_ADDMM = (2, 10)
_BLOCK_BYTES = 2**20  # of one block of rows: an L2 cache; 2**17 to 2**22 differ by 3 % (LOG.md)


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
    chunk_size: int | None,
    comparison: Callable = lambda *given: None,
) -> tuple[Tensor, Tensor]:
    """As ``reference.divergence``, without the ``[N, V]`` matrices.

    ``comparison`` is ``triton_rows.comparison``, or says None: to compare in torch.
    """
    size = min(student_head.vocab_size, teacher_head.vocab_size)
    dtype = _promoted(student.dtype, teacher.dtype)
    plan = _Plan(
        kernel=functools.partial(gradients.DIVERGENCES[name], **params),
        head=student_head,
        other=(teacher.detach(), teacher_head),
        size=size,
        temperature=temperature,
        chunk_size=chunk_size,
        dtype=dtype,
        compare_rows=comparison(name, params, temperature, dtype),
    )
    return _apply(plan, student, weight)


def cross_entropy(
    student: Tensor,
    student_head: Head,
    labels: Tensor,
    *,
    temperature: float,
    weight: Tensor,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor]:
    """As ``reference.cross_entropy``, without the ``[N, V]`` matrix."""
    plan = _Plan(
        kernel=gradients.cross_entropy,
        head=student_head,
        other=labels,
        size=student_head.vocab_size,
        temperature=temperature,
        chunk_size=chunk_size,
        dtype=_promoted(student.dtype),
    )
    return _apply(plan, student, weight)


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
    """What a call compares, beside the tensors that get gradients."""

    kernel: Callable
    head: Head
    other: Tensor | tuple[Tensor, Head]
    size: int
    temperature: float
    chunk_size: int | None
    dtype: torch.dtype
    compare_rows: Callable | None = None


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


class _Gradients:
    """Gradients of hidden rows, head weight and bias, summed chunk by chunk in ``plan.dtype``."""

    def __init__(self, student, head, plan, needs):
        empty = functools.partial(student.new_empty, dtype=plan.dtype)
        zeros = functools.partial(student.new_zeros, dtype=plan.dtype)
        self.hidden = torch.empty_like(student) if needs[0] else None
        self.weight = self.bias = None
        if needs[1]:
            self.weight = empty(head.weight.shape)
            self.weight[plan.size if len(student) else 0 :].zero_()
        if needs[2]:
            self.bias = zeros(head.bias.shape)

    def add(self, logits, start, stop, row_weight):
        """Add the chunk whose gradient of ``W h + b`` lies in the tile, but for ``row_weight``."""
        tile, hidden = logits.tile[: stop - start], logits.hidden[start:stop]
        size = tile.shape[1]
        if self.hidden is not None:
            rows = torch.mm(tile, logits.weight, out=self.hidden[start:stop])
            rows.mul_(row_weight.unsqueeze(-1))
        if self.weight is not None:
            hidden = (hidden * row_weight.unsqueeze(-1)).to(tile.dtype)
            self._add_weight(self.weight[:size], tile, hidden, first=start == 0)

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


def _evaluate(plan, student, head, weight, needs):
    """Nats ``[N]`` and the three gradients of ``sum(weight * nats)``, None where not needed."""
    wants_gradient = any(needs)
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
    result = _Gradients(student, head, plan, needs)
    for start in range(0, len(student), chunk):
        stop = min(start + chunk, len(student))
        logits.project(start, stop)
        other.project(start, stop)
        row_weight = weight[start:stop] * logits.constant
        compare = _compare_rows if plan.compare_rows else _compare_blocks
        nats = per_token[start:stop]
        for first, last, rows in compare(plan, logits, other, nats, work, wants_gradient):
            if result.bias is not None:
                result.bias[: plan.size].addmv_(rows.T, row_weight[first:last])
        if wants_gradient:
            result.add(logits, start, stop, row_weight)
    return per_token, (result.hidden, result.weight, result.bias)


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
    """Inputs with gradients come first; everything else is in the plan."""

    @staticmethod
    def forward(ctx, student, head_weight, head_bias, plan, weight, needs):
        head = replace(plan.head, weight=head_weight, bias=head_bias)
        per_token, found = _evaluate(plan, student, head, weight, needs)
        ctx.save_for_backward(student, head_weight, head_bias, weight)
        ctx.plan, ctx.needs, ctx.found = plan, needs, found
        ctx.mark_non_differentiable(per_token)
        return (weight * per_token).sum(), per_token

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream, _):
        student, head_weight, head_bias, weight = ctx.saved_tensors
        found, ctx.found = ctx.found, None
        if found is None:  # a second backward (retain_graph): the first has given its tensors away
            head = replace(ctx.plan.head, weight=head_weight, bias=head_bias)
            _, found = _evaluate(ctx.plan, student, head, weight, ctx.needs)
        dtypes = (student, head_weight, head_bias)
        gradients = [
            None if gradient is None else gradient.mul_(upstream).to(like.dtype)
            for gradient, like in zip(found, dtypes, strict=True)
        ]
        return (*gradients, None, None, None)


def _apply(plan, student, weight):
    tensors = (student, plan.head.weight, plan.head.bias)
    needs = tuple(
        torch.is_grad_enabled() and tensor is not None and tensor.requires_grad
        for tensor in tensors
    )
    return _Chunked.apply(*tensors, plan, weight.to(plan.dtype), needs)


def _promoted(*dtypes):
    return functools.reduce(torch.promote_types, dtypes, torch.float32)
