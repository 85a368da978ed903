"""The most likely tokens of a model whose logits are elsewhere, and one column for all others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# What float32 log-probabilities leave uncertain of the mass that they do not list.
_LEAST_TAIL = 1e-6
_NOTHING = float("-inf")


@dataclass(frozen=True, eq=False)
class TopPredictions:
    """The k most likely next tokens at N positions, each a column; all others are one more.

    Merging tokens never raises an f-divergence (a KL, jsd or their skewed forms, total variation):
    what is compared so is a lower bound of the divergence over the whole vocabulary, and equals it
    with k = V, where there is no other token.

    Args:
        ids: ``[N, k]``, each token once in a row; those that the student does not have take no
            part.
        logs: ``[N, k]``, their log-probabilities in nats.
        tail: ``[N]``, the probability of all other tokens.
        whole: whether there are no others: then every row lists all tokens of the model.
    """

    ids: Tensor
    logs: Tensor
    tail: Tensor
    whole: bool = False

    @classmethod
    def of(cls, ids: Tensor, logs: Tensor, *, whole: bool = False):
        """Those of log-probabilities in float32: what is missing from a sum of 1 is the tail.

        It is at least 1e-6: less could be the rounding of the sum.
        """
        listed = logs.double().exp().sum(-1)
        tail = torch.zeros_like(listed) if whole else (1 - listed).clamp(_LEAST_TAIL, 1)
        return cls(ids, logs.float(), tail.float(), whole)

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device) -> TopPredictions:
        """The same on another device."""
        moved = (each.to(device) for each in (self.ids, self.logs, self.tail))
        return TopPredictions(*moved, self.whole)

    def has_rest(self, vocab_size: int) -> bool:
        """Whether a student of so many tokens has others than those of a row."""
        return not self.whole and self.ids.shape[1] < vocab_size

    def width(self, vocab_size: int) -> int:
        """The columns that are compared with a student of so many tokens."""
        return self.ids.shape[1] + self.has_rest(vocab_size)

    def columns(self, rows: slice, vocab_size: int, dtype: torch.dtype) -> Tensor:
        """Log-probabilities ``[R, width]`` of these rows, as new memory."""
        logs = self.logs[rows].to(dtype).masked_fill(self._unknown(rows, vocab_size), _NOTHING)
        if not self.has_rest(vocab_size):
            return logs
        return torch.cat([logs, self.tail[rows].to(dtype).log().unsqueeze(-1)], -1)

    def fold(self, logits: Tensor, rows: slice) -> Tensor:
        """A student's logits ``[R, V]`` of these rows as the columns ``[R, width]``."""
        unknown = self._unknown(rows, logits.shape[-1])
        found = logits.gather(-1, self.ids[rows].masked_fill(unknown, 0))
        found = found.masked_fill(unknown, _NOTHING)
        if not self.has_rest(logits.shape[-1]):
            return found
        rest = self.rest_of(logits, rows).logsumexp(-1, keepdim=True)
        return torch.cat([found, rest], -1)

    def rest_of(self, logits: Tensor, rows: slice) -> Tensor:
        """A student's logits ``[R, V]`` with -inf at the tokens of these rows."""
        unknown = self._unknown(rows, logits.shape[-1])
        lowest = torch.full_like(unknown, _NOTHING, dtype=logits.dtype)
        lowest = lowest.masked_fill(unknown, -_NOTHING)
        return logits.scatter_reduce(-1, self.ids[rows].masked_fill(unknown, 0), lowest, "amin")

    def add_back(self, columns: Tensor, logits: Tensor, rows: slice):
        """Add the gradients ``[R, k]`` of the tokens' columns to those ``[R, V]`` of logits."""
        unknown = self._unknown(rows, logits.shape[-1])
        ids = self.ids[rows].masked_fill(unknown, 0)
        logits.scatter_add_(-1, ids, columns.masked_fill(unknown, 0))

    def _unknown(self, rows, vocab_size):
        return self.ids[rows] >= vocab_size
