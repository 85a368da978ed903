"""One model's logits, a chunk at a time in a tile; or, of two vocabularies, what is compared."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distilllens.head import Head, MixedHead
from distilllens.linear_divergence.tiles import new_tile, product_slices
from distilllens.top_predictions import TopPredictions
from distilllens.vocabularies import Side


class Logits:
    """One model's logits: one chunk at a time in a tile, read in blocks of ``dtype``.

    Args:
        hidden: ``[N, D]``.
        head: over its first ``size`` tokens.
        temperature: divides the logits.
        dtype: of the comparison.
        chunk: rows of the tile.
        block: rows of a block, 0 if a kernel reads the tile itself.
        beside: another model's logits, whose tile is overwritten if it can be.
    """

    def __init__(
        self,
        hidden: Tensor,
        head: Head,
        size: int,
        *,
        temperature: float,
        dtype: torch.dtype,
        chunk: int,
        block: int,
        beside: Logits | None = None,
    ):
        self.hidden, self.head, self.temperature = hidden, head, temperature
        # d(logits over the temperature) / d(W h + b), but for the slope of a softcap.
        self.constant = head.scale / temperature
        self.weight = head.weight.detach()[:size]
        self.bias = None if head.bias is None else head.bias.detach()[:size]
        self.slices = product_slices(hidden, size)
        tile = None if beside is None else beside.tile
        can_share = tile is not None and tile.dtype == hidden.dtype
        self.tile = tile if can_share else new_tile(hidden, chunk, size)
        # Elementwise kernels are slow on rows that are not contiguous: those get a block too.
        in_place = self.tile.dtype == dtype and self.tile.is_contiguous()
        self.block = None if in_place else hidden.new_empty(block, size, dtype=dtype)
        self.slope = None
        if head.softcap is not None:
            self.slope = hidden.new_empty(block, size, dtype=dtype)

    def project(self, start, stop):
        """Write ``W h + b`` of these rows into the tile."""
        for words in self.slices:
            sides = self.hidden[start:stop], self.weight[words].T
            tile = self.tile[: stop - start, words]
            if self.bias is None:
                torch.mm(*sides, out=tile)
            else:
                torch.addmm(self.bias[words], *sides, out=tile)

    def rows(self, first, last):
        """Logits divided by the temperature, which the caller overwrites."""
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
        """Write the gradient of ``W h + b`` into the tile, but for the constant; returns it.

        ``rows`` holds the gradient of what ``rows()`` returned.
        """
        if self.slope is not None:
            rows.mul_(self.slope[: last - first])
        if self.block is not None:
            self.tile[first:last].copy_(rows)
        return rows

    def put_hidden_gradient(self, out):
        """Multiply the gradient in the first rows of the tile by the weight, into ``out``."""
        tile, (first, *rest) = self.tile[: len(out)], self.slices
        torch.mm(tile[:, first], self.weight[first], out=out)
        for words in rest:
            torch.addmm(out, tile[:, words], self.weight[words], out=out)


class FoldedLogits(Logits):
    """Logits of which ``side`` says what is compared: the columns of ``side.fold``."""

    def __init__(self, *args, side: Side, **kwargs):
        super().__init__(*args, **kwargs)
        self.side, self.whole, self.rest = side, None, None

    def rows(self, first, last):
        """The columns that are compared, which the caller overwrites."""
        self.whole = super().rows(first, last)
        columns = self.side.fold(self.whole)
        if self.side.rest is not None:
            # Above -inf, so that tokens of probability 0 have a gradient of 0, not NaN.
            lowest = torch.finfo(columns.dtype).min
            self.rest = columns[:, -1:].clamp_min(lowest)
        return columns

    def put_gradient(self, rows, first, last):
        """As for ``Logits``, from the gradient of the columns; those of the rest share theirs."""
        whole, ids = self.whole, self.side.ids
        if self.side.rest is not None:
            shares = whole.index_select(-1, self.side.rest).sub_(self.rest).exp_()
            shares.mul_(rows[:, -1:])
        whole.zero_().index_copy_(-1, ids, rows[:, : len(ids)])
        if self.side.rest is not None:
            whole.index_copy_(-1, self.side.rest, shares)
        return super().put_gradient(whole, first, last)


class TopLogits(Logits):
    """Logits that are folded to the columns of ``TopPredictions``, other tokens in each row."""

    def __init__(self, *args, top: TopPredictions, **kwargs):
        super().__init__(*args, **kwargs)
        self.top, self.start, self.whole = top, 0, None

    def project(self, start, stop):
        """Write ``W h + b`` of these rows into the tile."""
        super().project(start, stop)
        self.start = start

    def rows(self, first, last):
        """The columns that are compared, which the caller overwrites."""
        self.whole = super().rows(first, last)
        return self.top.fold(self.whole, slice(self.start + first, self.start + last))

    def put_gradient(self, rows, first, last):
        """As for ``Logits``, from the gradient of the columns; those of the rest share theirs."""
        whole, at = self.whole, slice(self.start + first, self.start + last)
        if self.top.has_rest(whole.shape[-1]):
            # Above -inf, so that a rest of probability 0 has a gradient of 0, not NaN.
            whole.copy_(self.top.rest_of(whole, at))
            lowest = torch.finfo(whole.dtype).min
            whole.sub_(whole.logsumexp(-1, keepdim=True).clamp_min_(lowest)).exp_()
            whole.mul_(rows[:, -1:])
            rows = rows[:, :-1]
        else:
            whole.zero_()
        self.top.add_back(rows, whole, at)
        return super().put_gradient(whole, first, last)


class MixedLogits:
    """The logarithm of a mixture of models' predictions, from one tile of logits after another.

    Beside the tile of the mixture there is one for all models' logits (one more, if they differ in
    dtype): the memory does not grow with their number.

    Args:
        hidden: ``[N, D]`` of each model.
        head: the mixture.
        size, rows: as for ``Logits``.
    """

    def __init__(self, hidden: tuple[Tensor, ...], head: MixedHead, size: int, **rows):
        self.models, beside = [], None
        for states, each in zip(hidden, head.heads, strict=True):
            beside = Logits(states, each, size, beside=beside, **rows)
            self.models.append(beside)
        self.logs = [math.log(weight) if weight > 0 else -math.inf for weight in head.weights]
        self.step = rows["block"]
        self.total = hidden[0].new_empty(rows["chunk"], size, dtype=rows["dtype"])

    def project(self, start, stop):
        """Write the logarithm of the mixture at these rows into the tile."""
        for number, (model, log) in enumerate(zip(self.models, self.logs, strict=True)):
            model.project(start, stop)
            for first in range(0, stop - start, self.step):
                last = min(first + self.step, stop - start)
                rows = model.rows(first, last)
                torch.log_softmax(rows, -1, out=rows)
                rows.add_(log)
                total = self.total[first:last]
                torch.logaddexp(total, rows, out=total) if number else total.copy_(rows)

    def rows(self, first, last):
        """The logarithms of these rows, which the caller overwrites."""
        return self.total[first:last]


class TopColumns:
    """The columns of ``TopPredictions`` instead of a second model."""

    def __init__(self, top: TopPredictions, vocab_size: int, dtype: torch.dtype):
        self.top, self.vocab_size, self.dtype, self.start = top, vocab_size, dtype, 0

    def project(self, start, stop):
        """Remember where the chunk begins."""
        self.start = start

    def rows(self, first, last):
        """The columns of these rows, which the caller overwrites."""
        rows = slice(self.start + first, self.start + last)
        return self.top.columns(rows, self.vocab_size, self.dtype)


class Labels:
    """The same two steps for labels instead of a second model."""

    def __init__(self, labels, seen):
        self.labels, self.seen, self.start = labels, seen, 0

    def project(self, start, stop):
        """Remember where the chunk begins."""
        self.start = start

    def rows(self, first, last):
        """The labels of these rows, and where what is seen of them goes."""
        rows = slice(self.start + first, self.start + last)
        return self.labels[rows], None if self.seen is None else self.seen[:, rows]
