"""The output head of a language model: a normed hidden state -> logits; of several, a mixture."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
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

    def at(self, depth) -> Head:
        """The head that reads a depth: this one."""
        return self

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


@dataclass(frozen=True, eq=False)
class MixedHead:
    """``log(sum_i weight_i softmax(head_i(h_i) / T))``: several models' predictions as one.

    Each model's are restricted to the tokens that all have and renormalised, then mixed.

    Args:
        heads: one for each model.
        weights: theirs, at least 0; scaled to a sum of 1.

    Raises:
        ValueError: not one weight for each head, or weights that no mixture can have.
    """

    heads: tuple[Head, ...]
    weights: tuple[float, ...]

    def __post_init__(self):
        object.__setattr__(self, "heads", tuple(self.heads))
        object.__setattr__(self, "weights", mixture_weights(self.weights))
        if len(self.heads) != len(self.weights):
            raise ValueError(
                f"a mixture needs one weight for each of its {len(self.heads)} heads, got "
                f"{len(self.weights)}"
            )

    @property
    def vocab_size(self) -> int:
        """The tokens that all have."""
        return min(head.vocab_size for head in self.heads)

    def first(self, size: int) -> MixedHead:
        """The mixture over the first tokens of the vocabulary."""
        return replace(self, heads=tuple(head.first(size) for head in self.heads))

    def at(self, depth) -> Head:
        """The head of the model that a ``TeacherDepth`` belongs to."""
        return self.heads[depth.teacher]

    def __call__(self, hidden: Sequence[Tensor], temperature: float = 1.0) -> Tensor:
        """Logits ``[..., V]`` of the mixture, from normed states ``[..., D_i]`` of each model."""
        size, parts = self.vocab_size, []
        for head, states, weight in zip(self.heads, hidden, self.weights, strict=True):
            logits = head.first(size)(states)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            parts.append((logits / temperature).log_softmax(-1) + _log(weight))
        dtype = functools.reduce(torch.promote_types, (part.dtype for part in parts))
        return torch.stack([part.to(dtype) for part in parts]).logsumexp(0)


def mixture_weights(weights: Iterable[float]) -> tuple[float, ...]:
    """Weights scaled to a sum of 1.

    Raises:
        ValueError: a weight that is below 0 or not finite, or none above 0.
    """
    weights = tuple(float(weight) for weight in weights)
    for weight in weights:
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"the weight of a teacher must be finite and at least 0, got {weight}")
    if not (total := math.fsum(weights)) > 0:
        raise ValueError(f"one teacher must have a weight above 0, got {list(weights)}")
    return tuple(weight / total for weight in weights)


def _log(weight):
    return math.log(weight) if weight > 0 else -math.inf
