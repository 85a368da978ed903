"""Logged terms as sums over counts: their means do not depend on how tokens are batched."""

from __future__ import annotations

import torch
from torch import Tensor

from distilllens.layer_map import LayerMap
from distilllens.objective import TERMS, LossTerms


def named_terms(terms: LossTerms, layer_map: LayerMap | None) -> dict[str, tuple[Tensor, int]]:
    """Name in the log -> the sum of one batch and the number of tokens in it.

    Terms that were not measured are left out. ``lens_loss`` is an estimate for all tokens, like the
    total; the value of a pair is over the tokens that it was measured on.
    """
    named = {"loss": (terms.total.detach(), terms.num_tokens)}
    named |= {term.log_name: terms.sums[term.key] for term in TERMS if term.key in terms.sums}
    for term in TERMS:
        values, count = terms.by_pair.get(term.key, ((), 0))
        for (s, t), value in zip(layer_map or (), values, strict=term.key in terms.by_pair):
            named[f"{term.log_name}/{s}:{t}"] = (value, count)
    return named


class TermSums:
    """Sums and their numbers of tokens since the last reset.

    Processes add up their sums in the order of the names, which must be the same on all of them: it
    follows from settings, seed and step, never from the data.
    """

    def __init__(self):
        self._sums, self._counts = {}, {}
        self.num_tokens = 0  # of all processes, in the ``loss`` of the last means

    def add(self, named: dict[str, tuple[Tensor, int]]):
        """Add one batch."""
        for name, (value, count) in named.items():
            # The rounding of a float32 sum over many batches would depend on the batch size; mps
            # has no float64.
            dtype = torch.float32 if value.device.type == "mps" else torch.float64
            # On its device: a copy to the host would make every step wait.
            self._sums[name] = self._sums.get(name, 0) + value.detach().to(dtype)
            self._counts[name] = self._counts.get(name, 0) + count

    def means(self, reduce) -> dict[str, float]:
        """Nats per measured token over all processes, and reset; ``reduce`` sums over processes.

        A name without tokens is left out: nothing measured is not 0.
        """
        if not self._sums:
            self.num_tokens = 0
            return {}
        names = list(self._sums)
        sums = torch.stack([self._sums[name] for name in names])
        counts = sums.new_tensor([self._counts[name] for name in names])
        sums, counts = reduce(torch.stack([sums, counts])).tolist()
        self._sums, self._counts = {}, {}
        self.num_tokens = int(dict(zip(names, counts, strict=True)).get("loss", 0))
        rows = zip(names, sums, counts, strict=True)
        return {name: total / count for name, total, count in rows if count > 0}
