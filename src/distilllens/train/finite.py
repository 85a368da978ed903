"""Weights that are not finite are refused, and named as that."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def first_not_finite(model: nn.Module) -> tuple[str, float] | None:
    """``(name, value)`` of the first parameter or buffer that holds NaN or an infinity, or None.

    Of a sharded tensor the local part is read.
    """
    weights = dict(model.named_parameters())
    for name, tensor in (weights | dict(model.named_buffers())).items():
        tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        if not tensor.is_floating_point() or tensor.numel() == 0 or tensor.is_meta:
            continue
        # Both propagate NaN, and need no copy of the tensor's size.
        for value in torch.aminmax(tensor.detach()):
            # A buffer may be a mask, whose entries are -inf by design.
            if value.isnan() or (value.isinf() and name in weights):
                return name, float(value)
    return None


class NotFinite(ValueError):
    """Training has diverged, or a weight it starts from is not finite."""


def check_weights(role: str, model: nn.Module):
    """Refuse a model, or weights beside it, with weights that are not finite.

    Raises:
        NotFinite: with the first tensor and its value.
    """
    if (found := first_not_finite(model)) is not None:
        name, value = found
        raise NotFinite(
            f"the weights of the {role} are not finite: {name} holds {value}; the file may be "
            "damaged, its training may have diverged, or its dtype may be too narrow"
        )


def is_finite(value: float | Tensor) -> bool:
    """Whether a number, or a tensor with one, is finite; waits for its device."""
    return math.isfinite(float(value))
