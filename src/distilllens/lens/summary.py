"""Summaries over tokens: means and quartiles by depth, where predictions settle, calibration."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distilllens.lens.reading import Reading

# Equal bins of confidence for every calibration error of the package, as in Guo et al. 2017.
# calibration.json files of evaluations hold this many numbers: another value makes them unreadable.
NUM_CONFIDENCE_BINS = 15


@dataclass(frozen=True)
class Band:
    """A quantity at K depths, over all tokens: for each depth its mean and its quartiles."""

    mean: tuple[float, ...]
    lower: tuple[float, ...]
    median: tuple[float, ...]
    upper: tuple[float, ...]


@dataclass(frozen=True)
class Reliability:
    """Accuracy against confidence, bin by bin; empty bins are left out.

    Args:
        confidence: mean probability of the top token in each bin.
        accuracy: share of the tokens in each bin whose top token is the next token of the text.
        counts: number of tokens in each bin.
        error: expected calibration error, 0 to 1: mean of |accuracy - confidence| over the bins,
            weighted by their counts.
    """

    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    counts: tuple[int, ...]
    error: float


def band(values: Tensor) -> Band:
    """Mean and quartiles of ``[K, N]`` values over N; quartiles are interpolated linearly."""
    values = values.double()
    # One row at a time: torch.quantile refuses more than 16 million values.
    at = values.new_tensor([0.25, 0.5, 0.75])
    quartiles = torch.stack([torch.quantile(row, at) for row in values], 1)
    return Band(*(tuple(row.tolist()) for row in (values.mean(1), *quartiles)))


def settled_share(reading: Reading) -> tuple[float, ...]:
    """For each depth, the share of tokens (0 to 1) whose top token has settled; 1 at the last."""
    depths = torch.arange(len(reading.tokens)).unsqueeze(1)
    return tuple((reading.settled <= depths).double().mean(1).tolist())


def reliability(reading: Reading, targets: Tensor) -> Reliability:
    """Accuracy against confidence at a model's output, the confidence in bins of equal width.

    Args:
        targets: the next tokens ``[N]``; negative where the next token is unknown.

    Raises:
        ValueError: no next token is known.

    Source: Naeini et al. 2015; Guo et al. 2017.
    """
    known = targets >= 0
    if not known.any():
        raise ValueError("reliability needs at least one position whose next token is known")
    top = reading.probabilities[-1, :, 0][known].double()
    correct = (reading.tokens[-1, :, 0][known] == targets[known]).double()
    bins = (top * NUM_CONFIDENCE_BINS).long().clamp_max(NUM_CONFIDENCE_BINS - 1)
    counts = torch.bincount(bins, minlength=NUM_CONFIDENCE_BINS)
    sums = (torch.bincount(bins, x, minlength=NUM_CONFIDENCE_BINS) for x in (top, correct))
    confidence, accuracy = (s[counts > 0] / counts[counts > 0] for s in sums)
    counts = counts[counts > 0]
    error = float(((accuracy - confidence).abs() * counts).sum() / counts.sum())
    return Reliability(
        tuple(confidence.tolist()), tuple(accuracy.tolist()), tuple(counts.tolist()), error
    )
