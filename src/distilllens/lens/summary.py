"""What many tokens come to: means and quartiles by depth, when predictions settle, reliability."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distilllens.lens.reading import Reading


@dataclass(frozen=True)
class Band:
    """A quantity at K depths, over all tokens: its mean and its quartiles, one of each a depth."""

    mean: tuple[float, ...]
    lower: tuple[float, ...]
    median: tuple[float, ...]
    upper: tuple[float, ...]


@dataclass(frozen=True)
class Reliability:
    """How often a model is right when it is sure to some degree.

    Args:
        confidence: mean probability of the top token, for each bin that holds a token.
        accuracy: how often that token in fact follows.
        counts: the tokens of each bin.
        error: the expected calibration error: mean of |accuracy - confidence|, by counts, 0 to 1.
    """

    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    counts: tuple[int, ...]
    error: float


def band(values: Tensor) -> Band:
    """The band of ``[K, N]`` values; quartiles are interpolated linearly."""
    values = values.double()
    # Row by row: torch.quantile refuses more than 16 million values at once.
    at = values.new_tensor([0.25, 0.5, 0.75])
    quartiles = torch.stack([torch.quantile(row, at) for row in values], 1)
    return Band(*(tuple(row.tolist()) for row in (values.mean(1), *quartiles)))


def settled_share(reading: Reading) -> tuple[float, ...]:
    """The share of tokens, 0 to 1, whose top token has settled at each depth; 1 at the last."""
    depths = torch.arange(len(reading.tokens)).unsqueeze(1)
    return tuple((reading.settled <= depths).double().mean(1).tolist())


def reliability(reading: Reading, targets: Tensor, num_bins: int = 10) -> Reliability:
    """The reliability of a model's output over equal bins of the top token's probability.

    Args:
        targets: the tokens ``[N]`` that follow; where one is negative, none is known.

    Raises:
        ValueError: no target is known.
    """
    known = targets >= 0
    if not known.any():
        raise ValueError("reliability needs a token that is known to follow, and there is none")
    sure = reading.probabilities[-1, :, 0][known].double()
    right = (reading.tokens[-1, :, 0][known] == targets[known]).double()
    place = (sure * num_bins).long().clamp_max(num_bins - 1)
    counts = torch.bincount(place, minlength=num_bins)
    sums = (torch.bincount(place, x, minlength=num_bins) for x in (sure, right))
    confidence, accuracy = (s[counts > 0] / counts[counts > 0] for s in sums)
    counts = counts[counts > 0]
    error = float(((accuracy - confidence).abs() * counts).sum() / counts.sum())
    return Reliability(
        tuple(confidence.tolist()), tuple(accuracy.tolist()), tuple(counts.tolist()), error
    )
