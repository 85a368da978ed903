"""One model's logits, a chunk at a time in a tile; or, of two vocabularies, what is compared."""

from __future__ import annotations

import torch
from torch import Tensor

from distilllens.head import Head
from distilllens.linear_divergence.tiles import new_tile, product_slices
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
    ):
        self.hidden, self.head, self.temperature = hidden, head, temperature
        # d(logits over the temperature) / d(W h + b), but for the slope of a softcap.
        self.constant = head.scale / temperature
        self.weight = head.weight.detach()[:size]
        self.bias = None if head.bias is None else head.bias.detach()[:size]
        self.slices = product_slices(hidden, size)
        self.tile = new_tile(hidden, chunk, size)
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
