"""Logged terms as sums over counts: their means do not depend on how tokens are batched."""

from __future__ import annotations

import torch
from torch import Tensor

from distilllens.layer_map import LayerMap
from distilllens.objective import TERMS, LossTerms

# In the log of TRL too, and in this order in ``LossTerms.seen``.
SEEN = ("mean_token_accuracy", "entropy")


def named_terms(terms: LossTerms, layer_map: LayerMap | None) -> dict[str, tuple[Tensor, int]]:
    """Name in the log -> the sum of one batch and the number of tokens in it.

    Terms that were not measured are left out. ``lens_loss`` is an estimate for all tokens, like the
    total, with the weights of pairs and tokens; the value of a pair is over the tokens that it was
    measured on, without weights. ``mean_token_accuracy``
    and ``entropy`` are TRL's: over the student's predictions at the targets. ``compared_share`` is
    the share of the targets at which a teacher with another tokenizer was compared;
    ``teacher_tail`` the mean probability of the tokens that a teacher at a server did not list.
    """
    named = {"loss": (terms.total.detach(), terms.num_tokens)}
    named |= {term.log_name: terms.sums[term.key] for term in TERMS if term.key in terms.sums}
    if terms.seen is not None:
        named |= {name: (terms.seen[at], terms.num_tokens) for at, name in enumerate(SEEN)}
    if terms.num_compared is not None:
        named["compared_share"] = (terms.total.new_tensor(terms.num_compared), terms.num_tokens)
    if terms.tail is not None:
        named["teacher_tail"] = (terms.tail, terms.num_tokens)
    for term in TERMS:
        values, count = terms.by_pair.get(term.key, ((), 0))
        pairs = terms.pairs.get(term.key, layer_map or ())
        for (s, t), value in zip(pairs, values, strict=term.key in terms.by_pair):
            named[f"{term.log_name}/{s}:{t}"] = (value, count)
    return named


class TermSums:
    """Sums and their numbers of tokens since the last reset.

    Processes add up their sums in the order of the names, which must be the same on all of them: it
    follows from settings, seed and step, never from the data.
    """

    def __init__(self):
        self._sums, self._counts = {}, {}
        # Of all processes, in the ``loss`` of the last means; without those before a resume.
        self.num_tokens = 0
        self._resumed_tokens = 0

    def add(self, named: dict[str, tuple[Tensor, int]]):
        """Add one batch."""
        for name, (value, count) in named.items():
            # On its device: a copy to the host would make every step wait.
            self._sums[name] = self._sums.get(name, 0) + wide(value.detach())
            self._counts[name] = self._counts.get(name, 0) + count

    def resume(self, totals: dict[str, list[float]], *, main: bool):
        """Go on from ``totals`` of another process; the main process takes them all."""
        for name, (value, count) in totals.items():
            self._sums[name] = value if main else 0.0
            self._counts[name] = count if main else 0
        self._resumed_tokens = int(totals.get("loss", [0, 0])[1])

    def totals(self, reduce) -> dict[str, tuple[float, float]]:
        """Name -> sum and number of tokens; ``reduce`` sums over processes."""
        if not self._sums:
            return {}
        names = list(self._sums)
        tensors = [value for value in self._sums.values() if isinstance(value, Tensor)]
        like = tensors[0] if tensors else torch.empty(0, dtype=torch.float64)
        sums = torch.stack(
            [torch.as_tensor(v, dtype=like.dtype, device=like.device) for v in self._sums.values()]
        )
        counts = sums.new_tensor([self._counts[name] for name in names])
        sums, counts = reduce(torch.stack([sums, counts])).tolist()
        return dict(zip(names, zip(sums, counts, strict=True), strict=True))

    def means(self, reduce) -> dict[str, float]:
        """Nats per measured token over all processes, and reset; ``reduce`` sums over processes.

        A name without tokens is left out: nothing measured is not 0.
        """
        totals = self.totals(reduce)
        self._sums, self._counts = {}, {}
        self.num_tokens = int(totals.get("loss", (0, 0))[1]) - self._resumed_tokens
        self._resumed_tokens = 0
        return {name: total / count for name, (total, count) in totals.items() if count > 0}


def num_tokens(inputs: dict) -> Tensor | int:
    """The tokens of a batch, padding excluded, as TRL counts them."""
    if (mask := inputs.get("attention_mask")) is not None:
        return mask.sum()
    ids = inputs.get("input_ids")
    return 0 if ids is None else ids.numel()


def wide(value: Tensor) -> Tensor:
    """In float64: the rounding of a float32 sum over many batches would depend on their size."""
    return value.to(torch.float32 if value.device.type == "mps" else torch.float64)
