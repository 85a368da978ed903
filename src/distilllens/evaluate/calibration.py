"""Calibration: the confidence of predictions against their accuracy, in bins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from distilllens.lens.summary import NUM_CONFIDENCE_BINS

_NOTHING = (0,) * NUM_CONFIDENCE_BINS


@dataclass(frozen=True)
class Calibration:
    """Next-token predictions in 15 bins of equal width, by confidence.

    The confidence of a prediction is its largest probability; the prediction is correct if that
    token is the label. Bin b holds confidences in [b / 15, (b + 1) / 15); 1.0 is in the last bin.
    Only sums are kept, so ``+`` merges two parts of a data set exactly, up to rounding.

    Args:
        count: number of predictions in each bin.
        confidence: sum of their confidences.
        correct: number of correct ones.

    Source: Naeini et al. 2015; Guo et al. 2017.
    """

    count: tuple[int, ...] = _NOTHING
    confidence: tuple[float, ...] = _NOTHING
    correct: tuple[int, ...] = _NOTHING

    def add(self, confidence: Tensor, correct: Tensor) -> Calibration:
        """This calibration with N more predictions.

        Args:
            confidence: ``[N]`` probabilities.
            correct: ``[N]`` bool.

        Raises:
            ValueError: a confidence is not in [0, 1], or NaN.
        """
        confidence = confidence.detach().double().cpu()
        outside = confidence[~((confidence >= 0) & (confidence <= 1))]
        if len(outside):
            raise ValueError(f"a confidence must be a probability, 0 to 1, got {float(outside[0])}")
        bins = (confidence * NUM_CONFIDENCE_BINS).long().clamp(max=NUM_CONFIDENCE_BINS - 1)
        correct = correct.cpu().double()
        sums = [torch.bincount(bins, w, NUM_CONFIDENCE_BINS) for w in (None, confidence, correct)]
        count, confidence, correct = (s.tolist() for s in sums)
        return self + Calibration(tuple(count), tuple(confidence), tuple(map(int, correct)))

    def __add__(self, other: Calibration) -> Calibration:
        pairs = zip(asdict(self).values(), asdict(other).values(), strict=True)
        return Calibration(*(tuple(map(sum, zip(a, b, strict=True))) for a, b in pairs))

    @property
    def ece(self) -> float:
        """Expected calibration error: mean |confidence - accuracy| over bins, by count; 0 to 1."""
        return self.overconfidence + self.underconfidence

    @property
    def overconfidence(self) -> float:
        """The share of ``ece`` from bins whose confidence is above their accuracy."""
        return sum(max(gap, 0.0) for gap in self._gaps())

    @property
    def underconfidence(self) -> float:
        """The share of ``ece`` from bins whose confidence is below their accuracy."""
        return sum(max(-gap, 0.0) for gap in self._gaps())

    def _gaps(self):
        """Confidence minus accuracy of each bin, times the bin's share of all predictions."""
        total = max(sum(self.count), 1)  # nothing predicted: no error, not NaN
        sums = zip(self.confidence, self.correct, strict=True)
        return [(confidence - correct) / total for confidence, correct in sums]

    def to_dict(self) -> dict[str, list]:
        """Lists by name, for JSON."""
        return {name: list(values) for name, values in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, list]) -> Calibration:
        """The inverse of ``to_dict``.

        Raises:
            ValueError: a name is missing or unknown, does not have 15 numbers, or a bin has more
                correct predictions or confidence than predictions.
        """
        names = {name: len(numbers) for name, numbers in values.items()}
        if names != dict.fromkeys(cls.__dataclass_fields__, NUM_CONFIDENCE_BINS):
            raise ValueError(
                f"a calibration has {NUM_CONFIDENCE_BINS} numbers each by "
                f"{', '.join(cls.__dataclass_fields__)}, got {names}"
            )
        columns = (values[name] for name in cls.__dataclass_fields__)
        for at, (count, *sums) in enumerate(zip(*columns, strict=True)):
            # Sums of probabilities may round to a little more than their number.
            if count < 0 or not all(0 <= part <= count * (1 + 1e-6) for part in sums):
                raise ValueError(
                    f"bin {at} has {count} predictions, confidence {sums[0]} and {sums[1]} correct "
                    "ones; both must be from 0 to the number of predictions"
                )
        return cls(**{name: tuple(numbers) for name, numbers in values.items()})
