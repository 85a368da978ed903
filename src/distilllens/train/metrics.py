"""Logged terms as sums over counts: their means do not depend on how tokens were batched."""

from __future__ import annotations

import torch

from distilllens.layer_map import LayerMap
from distilllens.objective import LossTerms


def named_terms(terms: LossTerms, layer_map: LayerMap | None) -> dict[str, torch.Tensor]:
    """The sums of one batch under the names of the log, without terms that were not measured."""
    named = {"loss": terms.total.detach(), "cross_entropy": terms.cross_entropy}
    if terms.output is not None:
        named["output_loss"] = terms.output
    if terms.lens is not None:
        named["lens_loss"] = terms.lens
        pairs = zip(layer_map, terms.lens_by_pair, strict=True)
        named |= {f"lens_loss/{s}:{t}": value for (s, t), value in pairs}
    return named


class TermSums:
    """Sums and the number of tokens behind them, since the last reset."""

    def __init__(self):
        self._sums = {}

    def add(self, named: dict[str, torch.Tensor], num_tokens: int):
        """Add one batch."""
        device = named["loss"].device
        # A float32 sum over many batches would round differently by batch size; mps has no float64.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        count = torch.tensor(num_tokens, device=device)
        for name, value in {**named, "num_tokens": count}.items():
            # Stays on its device: a copy would make every step wait for it.
            self._sums[name] = self._sums.get(name, 0) + value.detach().to(dtype)

    def means(self, reduce) -> dict[str, float]:
        """Nats per valid token over all processes (``reduce`` sums over them), and forget."""
        if not self._sums:
            return {}
        names = list(self._sums)
        sums = reduce(torch.stack([self._sums[name] for name in names]))
        totals = dict(zip(names, sums.tolist(), strict=True))
        self._sums = {}
        num_tokens = max(totals.pop("num_tokens"), 1)
        return {name: value / num_tokens for name, value in totals.items()}
