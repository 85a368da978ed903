"""The output head of a language model: a normed hidden state -> logits."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class Head:
    """``logits = cap(scale * (W h + b))`` with ``cap(z) = softcap * tanh(z / softcap)``.

    Holds references to a model's own parameters, no copies: training the model trains the head.

    Args:
        weight: ``[V, D]``.
        bias: ``[V]`` or None.
        scale: multiplies the logits, bias included (Granite, Cohere, MiniCPM).
        softcap: bounds the logits to ``(-softcap, softcap)`` (Gemma 2); None for no cap.

    Raises:
        ValueError: shapes that do not fit, a scale that is 0 or not finite, a softcap not above 0.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def __post_init__(self):
        if self.weight.ndim != 2:
            raise ValueError(f"head weight must be [V, D], got shape {list(self.weight.shape)}")
        if self.bias is not None and self.bias.shape != self.weight.shape[:1]:
            raise ValueError(
                f"head bias must be [{self.weight.shape[0]}] like the weight's rows, "
                f"got shape {list(self.bias.shape)}"
            )
        if not math.isfinite(self.scale) or self.scale == 0:
            raise ValueError(f"head scale must be finite and not 0, got {self.scale}")
        if self.softcap is not None and not self.softcap > 0:
            raise ValueError(f"head softcap must be above 0, got {self.softcap}")

    @property
    def vocab_size(self) -> int:
        """V, the number of rows of the weight (padding of the vocabulary included)."""
        return self.weight.shape[0]

    @property
    def tensors(self) -> list[Tensor]:
        """The weight, and the bias if there is one."""
        return [tensor for tensor in (self.weight, self.bias) if tensor is not None]

    def first(self, size: int) -> Head:
        """The head over the first tokens of its vocabulary."""
        bias = None if self.bias is None else self.bias[:size]
        return replace(self, weight=self.weight[:size], bias=bias)

    def constant(self) -> Head:
        """The head without gradients of its own; those of the states that it reads stay."""
        bias = None if self.bias is None else self.bias.detach()
        return replace(self, weight=self.weight.detach(), bias=bias)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., V]`` of normed hidden states ``[..., D]``, in the model's dtype."""
        logits = F.linear(hidden, self.weight, self.bias)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits
