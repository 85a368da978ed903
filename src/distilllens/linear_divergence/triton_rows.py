"""One Triton kernel for the comparison of a chunk: nats per row, gradient in the student's tile.

It replaces ``gradients.py`` and reads both tiles in the dtype of the projection, bfloat16 or
float32, without a float32 copy. One program per row, with up to three passes over the row:

1. the normalisers of both models, each an online log-sum-exp;
2. the sums of the row: the nats, and the ``sum(g)`` that its gradient ``g - q sum(g)`` needs
   (``g = dD/d log q``);
3. the gradient, in place. forward_kl needs no sum for it and writes it in pass 2.

Tested and timed on sm_90 (docs/performance.md); compiled in the tests for sm_80 as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from distilllens.head import Head

# All divergences but adaptive_kl, which sorts. The parameters are the kernel's A and B.
_PARAMETERS = {
    "forward_kl": (),
    "reverse_kl": (),
    "jsd": ("beta",),
    "jeffreys": ("forward_weight", "reverse_weight"),
    "skew_forward_kl": ("alpha",),
    "skew_reverse_kl": ("alpha",),
    "total_variation": (),
}
_BLOCK, _WARPS = 4096, 8  # words per step and threads / 32 per row; not tuned


class KernelError(RuntimeError):
    """Triton could not compile or launch the kernel: a missing compiler or cache, for example."""


def why_not(device: torch.device) -> str | None:
    """Why the kernel cannot run on tensors of ``device``, or None if it can."""
    if device.type == "cuda" or not isinstance(_compare_row, triton.JITFunction):
        return None
    return f"needs a CUDA device, but the student is on {device.type!r}"


def comparison(
    name: str, params: dict[str, float], temperature: float, dtype: torch.dtype
) -> Callable | None:
    """``compare_rows`` for a divergence, or None if torch has to compare."""
    if name not in _PARAMETERS or dtype != torch.float32:
        return None
    return functools.partial(compare_rows, name=name, params=params, temperature=temperature)


def compare_rows(
    student: tuple[Tensor, Head],
    teacher: tuple[Tensor, Head],
    nats: Tensor,
    *,
    name: str,
    params: dict[str, float],
    temperature: float,
    wants_gradient: bool,
) -> None:
    """Write the divergence of each row into ``nats [R]``, its gradient into the student's tile.

    A model is its tile ``[R, V]`` of ``W h + b`` and its head. The gradient is with respect to the
    tile, without the constant factor scale / temperature. Rows of a tile may be longer than V
    (``stride(0)``); what lies behind V is read, ignored and overwritten.

    Raises:
        KernelError: the kernel did not start.
    """
    (ours, our_head), (theirs, their_head) = student, teacher
    rows, size = ours.shape
    a, b = (*(params[key] for key in _PARAMETERS[name]), 0.0, 0.0)[:2]
    # With fewer words than threads, two threads would hold the same word, and one of them might
    # write it before the other has read it.
    block = _BLOCK if size > _BLOCK else max(32 * _WARPS, triton.next_power_of_2(size))
    options = {
        "NAME": name,
        "A": a,
        "B": b,
        "OURS_CAPPED": our_head.softcap is not None,
        "THEIRS_CAPPED": their_head.softcap is not None,
        "GRADIENT": wants_gradient,
        "BLOCK": block,
        "num_warps": _WARPS,
    }
    factors = (*_factors(our_head, temperature), *_factors(their_head, temperature))
    widths = (ours.stride(0), theirs.stride(0))
    # Triton launches on CUDA's current device, which need not be that of the tensors.
    with torch.cuda.device_of(ours):
        try:
            _compare_row[(rows,)](ours, theirs, nats, *widths, size, *factors, **options)
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            raise KernelError(
                f"Triton could not start its kernel for {name} ({type(error).__name__}: {reason}); "
                "impl 'chunked' needs none"
            ) from error


def _factors(head, temperature):
    # Before and after the tanh of a softcap; without a cap only the first is used.
    if head.softcap is None:
        return head.scale / temperature, 1.0
    return head.scale / head.softcap, head.softcap / temperature


@triton.jit
def _compare_row(
    ours,
    theirs,
    nats,
    our_width,
    their_width,
    size,
    our_inner,
    our_outer,
    their_inner,
    their_outer,
    NAME: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
    OURS_CAPPED: tl.constexpr,
    THEIRS_CAPPED: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    ours += row * our_width
    theirs += row * their_width
    lanes = tl.arange(0, BLOCK)

    our_top, our_mass = -float("inf"), 0.0
    their_top, their_mass = -float("inf"), 0.0
    for start in range(0, size, BLOCK):
        at = start + lanes
        x = _logits(ours, at, our_width, size, our_inner, our_outer, OURS_CAPPED)
        y = _logits(theirs, at, their_width, size, their_inner, their_outer, THEIRS_CAPPED)
        our_top, our_mass = _gather_mass(x, our_top, our_mass)
        their_top, their_mass = _gather_mass(y, their_top, their_mass)
    our_norm = our_top + tl.log(our_mass)
    their_norm = their_top + tl.log(their_mass)

    value, total = 0.0, 0.0
    for start in range(0, size, BLOCK):
        at = start + lanes
        x = _logits(ours, at, our_width, size, our_inner, our_outer, OURS_CAPPED)
        y = _logits(theirs, at, their_width, size, their_inner, their_outer, THEIRS_CAPPED)
        d, g, q = _terms(x - our_norm, y - their_norm, NAME, A, B)
        value += tl.sum(d)
        if NAME != "forward_kl":
            total += tl.sum(g)
        elif GRADIENT:
            _put(ours, at, our_width, g + q, x, our_outer, OURS_CAPPED)
    tl.store(nats + row, value)

    if GRADIENT and NAME != "forward_kl":
        for start in range(0, size, BLOCK):
            at = start + lanes
            x = _logits(ours, at, our_width, size, our_inner, our_outer, OURS_CAPPED)
            y = _logits(theirs, at, their_width, size, their_inner, their_outer, THEIRS_CAPPED)
            d, g, q = _terms(x - our_norm, y - their_norm, NAME, A, B)
            _put(ours, at, our_width, g - q * total, x, our_outer, OURS_CAPPED)


@triton.jit
def _logits(row, at, width, size, inner, outer, CAPPED: tl.constexpr):
    # Masked by the width of a row, which is a multiple of 16 numbers in padded tiles: so one load
    # takes 16 bytes. With the mask at < size and an odd size it would take one number.
    z = tl.load(row + at, mask=at < width, other=0.0).to(tl.float32) * inner
    if CAPPED:
        z = outer * (1 - 2 / (tl.exp(2 * z) + 1))  # tanh; exp may reach 0 or inf
    return tl.where(at < size, z, -float("inf"))


@triton.jit
def _gather_mass(z, top, mass):
    new = tl.maximum(top, tl.max(z))
    # While all logits so far are -inf, exp(-inf - -inf) would be NaN.
    shift = tl.where(new == -float("inf"), 0.0, new)
    return new, mass * tl.exp(top - shift) + tl.sum(tl.exp(z - shift))


@triton.jit
def _terms(log_q, log_p, NAME: tl.constexpr, A: tl.constexpr, B: tl.constexpr):
    """Each word's share of the divergence, g = dD/d log q up to a multiple of q, and q."""
    q, p = tl.exp(log_q), tl.exp(log_p)
    gap = log_q - log_p
    if NAME == "forward_kl":
        d, g = tl.where(p > 0, -p * gap, 0.0), -p
    elif NAME == "reverse_kl":
        d = tl.where(q > 0, q * gap, 0.0)
        g = d
    elif NAME == "jeffreys":
        # A weight of 0 must not meet an infinite divergence.
        d, g = q * 0, q * 0
        if B > 0:
            d = B * tl.where(q > 0, q * gap, 0.0)
            g = d
        if A > 0:
            d -= A * tl.where(p > 0, p * gap, 0.0)
            g -= A * p
    elif NAME == "total_variation":
        d = tl.abs(q - p) / 2
        g = q * tl.where(q > p, 0.5, tl.where(q < p, -0.5, 0.0))
    else:
        # Never 0, so that ratios and their logarithms are finite, as in gradients.py.
        q, p = tl.maximum(q, 1.1754943508222875e-38), tl.maximum(p, 1.1754943508222875e-38)
        if NAME == "jsd":
            middle = p + (1 - A) * (q - p)
            g = (1 - A) * (q * tl.log(q / middle))
            d = A * (p * tl.log(p / middle)) + g
        elif NAME == "skew_forward_kl":
            ratio = p / (q + A * (p - q))
            d, g = p * tl.log(ratio), (A - 1) * (ratio * q)
        else:
            tl.static_assert(NAME == "skew_reverse_kl")
            ratio = q / (p + A * (q - p))
            d = q * tl.log(ratio)
            g = d - A * (ratio * q)
    return d, g, q


@triton.jit
def _put(row, at, width, gradient, z, outer, CAPPED: tl.constexpr):
    if CAPPED:
        slope = z / outer
        gradient *= 1 - slope * slope
    tl.store(row + at, gradient.to(row.dtype.element_ty), mask=at < width)
