"""Floating-point tensors inside the nested inputs and outputs of modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor


def floats(value) -> Iterator[Tensor]:
    """The floating-point tensors in a tensor, tuple, list or mapping, in order."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from floats(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from floats(item)


def first_float(value) -> Tensor | None:
    """The first floating-point tensor; in the output of a block, this is the stream."""
    return next(floats(value), None)


def rebuild(value, change: Callable[[int, Tensor], Tensor]):
    """``value`` with its i-th floating-point tensor ``t`` replaced by ``change(i, t)``."""
    count = iter(range(1 << 30))

    def walk(item):
        if isinstance(item, Tensor):
            return change(next(count), item) if item.is_floating_point() else item
        if isinstance(item, Mapping):
            inside = {key: walk(inner) for key, inner in item.items()}
            return inside if type(item) is dict else type(item)(**inside)
        if isinstance(item, tuple) and hasattr(item, "_fields"):
            return type(item)(*map(walk, item))
        if isinstance(item, tuple | list):
            return type(item)(map(walk, item))
        return item

    return walk(value)


def with_first(value, tensor: Tensor):
    """``value`` with its first floating-point tensor replaced."""
    return rebuild(value, lambda i, old: tensor if i == 0 else old)


def named_floats(args, kwargs) -> list[tuple[int | str, Tensor]]:
    """The floating-point tensors passed to a module directly, by position or keyword."""
    items = [*enumerate(args), *kwargs.items()]
    return [(key, t) for key, t in items if isinstance(t, Tensor) and t.is_floating_point()]


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers, up to a cast of either."""
    if a.shape != b.shape or a.device != b.device:
        return False
    return torch.equal(a, b.to(a.dtype)) or torch.equal(a.to(b.dtype), b)


def ratio(a: Tensor, b: Tensor) -> float | None:
    """The constant c with ``a = c * b``, or None if there is none."""
    if a.shape != b.shape or a.device != b.device:
        return None
    a, b = a.double().flatten(), b.double().flatten()
    square = torch.dot(b, b)
    if square == 0:
        return None
    constant = torch.dot(a, b) / square
    error = (a - constant * b).abs().max() / a.abs().max().clamp_min(1e-30)
    # One rounding of bfloat16 is 4e-3; any other operation than a constant differs by far more.
    return float(constant) if error < 1e-2 and constant != 0 else None


def worst(found: Tensor, truth: Tensor) -> float:
    """``max |found - truth| / max |truth|``; infinite if shapes differ or values are NaN.

    Logits that are -inf in both (masked vocabulary entries) count as equal.
    """
    if found.shape != truth.shape:
        return float("inf")
    found, truth = found.double(), truth.double()
    both = found == truth
    scale = torch.where(truth.isfinite(), truth.abs(), 0.0).max().clamp_min(1e-30)
    error = torch.where(both, 0.0, (found - truth).abs()).max() / scale
    return float("inf") if error.isnan() else float(error)
