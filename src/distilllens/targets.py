"""Which positions of a batch predict a target, and which token each must predict."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# The label of tokens that are no targets, as in transformers and torch's cross-entropy.
IGNORED = -100


@dataclass(frozen=True, eq=False)
class Targets:
    """The N positions of a batch whose next token is a target, in the order of the batch.

    Made once per batch from its labels, for the teacher and the objective. The shift between a
    position and the token that it predicts is made here and nowhere else.

    Args:
        mask: ``[B, T]`` bool, True where the next token is a target; never at the last position.
        index: ``[N]``, the same positions as places in the flattened batch.
        ids: ``[N]``, the tokens to predict.
    """

    mask: Tensor
    index: Tensor
    ids: Tensor

    @classmethod
    def of(cls, labels: Tensor) -> Targets:
        """The targets of labels ``[B, T]``, not shifted, -100 for tokens that are no targets."""
        mask = target_positions(labels)
        # The one place where an accelerator must be waited for: N is not known beforehand.
        index = mask.flatten().nonzero().squeeze(1)
        return cls(mask, index, labels.flatten()[index + 1])

    def __len__(self) -> int:
        return self.ids.numel()

    def to(self, device) -> Targets:
        """The same on another device."""
        return Targets(self.mask.to(device), self.index.to(device), self.ids.to(device))

    def rows(self, states: Tensor, kept: Tensor | None = None) -> Tensor:
        """The rows ``[N, D]`` of states ``[B, T, D]`` at these positions.

        Args:
            kept: numbers from 0 to N - 1: only these rows, in this order.
        """
        index = self.index if kept is None else self.index[kept]
        return states.flatten(0, 1).index_select(0, index.to(states.device))


def target_positions(labels: Tensor) -> Tensor:
    """``[B, T]`` bool: positions whose *next* token is a target. The last position never is."""
    mask = torch.zeros_like(labels, dtype=torch.bool)
    mask[:, :-1] = labels[:, 1:] != IGNORED
    return mask


def has_target(labels) -> bool:
    """Whether a list of labels has a target; the first label never is one."""
    return any(label != IGNORED for label in labels[1:])


def prompt_length(labels) -> int:
    """How many tokens stand before the last answer of a list of labels, its last run of targets.

    0 where a row begins with its answer, or has none.
    """
    start = len(labels)
    while start and labels[start - 1] == IGNORED:
        start -= 1
    while start and labels[start - 1] != IGNORED:
        start -= 1
    return start


def without_targets(labels: Tensor, where: Tensor) -> Tensor:
    """Labels in which the tokens at the mask ``where`` are no targets."""
    return labels.masked_fill(where, IGNORED)
