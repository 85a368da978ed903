"""Means with standard errors, and whether one model is significantly better than another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

NUM_DRAWS = 10_000
_STREAM = 20260213  # seed of the bootstrap, the same for all comparisons
CONFIDENCE = 0.95
FEWEST = 10  # examples needed for a verdict
NOTHING = "tells nothing"


@dataclass(frozen=True)
class Metric:
    """Title and direction of a metric, digits shown, and whether it is exp of a mean."""

    title: str
    higher_is_better: bool
    digits: int = 2
    exponential: bool = False

    def of(self, mean):
        """The score from a mean, or from an array of means."""
        return np.exp(mean) if self.exponential else mean


METRICS = {
    "rouge_l": Metric("Rouge-L (%)", True),
    "exact_match": Metric("exact match (%)", True),
    "sbert": Metric("SBERT cosine", True, 4),
    "judge": Metric("judge (1-10)", True),
    "judge_ratio": Metric("judge: score in % of the references'", True),
    "judge_win": Metric("judge: wins against the reference (%)", True),
    "perplexity": Metric("perplexity of the references", False, 3, exponential=True),
    "log_perplexity": Metric("log-perplexity of the references (nats per token)", False, 4),
    "kl": Metric("KL(teacher ‖ model) (nats per token)", False, 4),
}


@dataclass(frozen=True, eq=False)
class Samples:
    """Values of a metric: the numbers of n examples, and sums and counts ``[n, S]`` for S seeds.

    The mean is ``totals.sum() / counts.sum()``. The count of an answer is 1, or 0 if it has no
    value; for a mean over tokens it is the number of tokens.
    """

    examples: np.ndarray
    totals: np.ndarray
    counts: np.ndarray

    def with_counts_where(self, there: np.ndarray) -> Samples:
        """The samples with counts and totals set to 0 outside the mask ``there``, ``[n, S]``."""
        return Samples(self.examples, self.totals * there, self.counts * there)

    def only(self, examples) -> Samples:
        """The samples of these examples, in ascending order: samples are paired by their rows."""
        rows = np.argsort(self.examples)
        rows = rows[np.isin(self.examples[rows], examples)]
        return Samples(self.examples[rows], self.totals[rows], self.counts[rows])


@dataclass(frozen=True)
class Score:
    """A mean with two standard errors, which answer different questions.

    Args:
        mean: over examples and seeds, in the metric's unit.
        error_over_examples: standard error due to the choice of examples; seeds are averaged
            first. None with one example.
        error_over_seeds: standard error due to sampling, for the same examples. None with one seed,
            or for a metric without sampling.
        by_seed: the mean of each seed.
        num_examples: number of examples that have a value.
    """

    mean: float
    error_over_examples: float | None
    error_over_seeds: float | None
    by_seed: tuple[float, ...]
    num_examples: int


@dataclass(frozen=True, eq=False)
class Drawn:
    """A score with its bootstrap draws ``[NUM_DRAWS]``, of the examples that have a value."""

    value: float
    draws: np.ndarray
    num_examples: int


@dataclass(frozen=True)
class Difference:
    """``difference`` = first - second, with its interval and a verdict on the first.

    Args:
        verdict: "better", "worse", "no difference beyond noise", "equal on every example", "too
            few examples to tell", or what starts with ``NOTHING`` where no difference would count.
        num_examples: number of examples that both have.
    """

    difference: float
    low: float
    high: float
    verdict: str
    num_examples: int


def score(metric: str | Metric, samples: Samples) -> Score:
    """The mean of a metric with its standard errors.

    The error over examples is the linearised error of a ratio of sums; with one value per example
    it is the standard deviation over the square root of n.

    Raises:
        ValueError: there are no values.
    """
    about = _about(metric)
    totals, counts = samples.totals.sum(1), samples.counts.sum(1)
    if counts.sum() == 0:
        raise ValueError(f"{about.title}: there is no value to average")
    mean = totals.sum() / counts.sum()
    value = about.of(mean)
    slope = value if about.exponential else 1.0
    num = int((counts > 0).sum())
    residuals = totals - mean * counts
    over_examples = None
    if num > 1:
        over_examples = float(
            slope * math.sqrt(num / (num - 1) * (residuals**2).sum()) / counts.sum()
        )
    with np.errstate(invalid="ignore"):
        by_seed = about.of(samples.totals.sum(0) / samples.counts.sum(0))
    return Score(
        mean=float(value),
        error_over_examples=over_examples,
        error_over_seeds=standard_error(by_seed),
        by_seed=tuple(float(value) for value in by_seed),
        num_examples=num,
    )


def average(scores: Sequence[Score]) -> Score:
    """The unweighted mean over benchmarks, the paper's last column; errors are independent."""
    seeds = {len(s.by_seed) for s in scores}
    by_seed = [float(np.mean(v)) for v in zip(*(s.by_seed for s in scores), strict=False)]
    errors = [s.error_over_examples for s in scores]
    over_examples = None
    if None not in errors:
        over_examples = math.sqrt(sum(error**2 for error in errors)) / len(scores)
    return Score(
        mean=float(np.mean([s.mean for s in scores])),
        error_over_examples=over_examples,
        error_over_seeds=standard_error(by_seed) if len(seeds) == 1 else None,
        by_seed=tuple(by_seed) if len(seeds) == 1 else (),
        num_examples=sum(s.num_examples for s in scores),
    )


def bootstrap(
    samples: Sequence[tuple[str | Metric, Samples]], stream: int, num_draws: int = NUM_DRAWS
) -> list[Drawn]:
    """The score of each ``(metric, samples)`` with its bootstrap draws over examples.

    Examples are drawn with replacement, ``num_draws`` times and the same for all, so that
    differences are paired. Seeds are averaged first: every example has its own random numbers, so
    the noise of sampling is part of the noise over examples.

    Args:
        samples: all of the same n examples.
        stream: draws of different streams, one per benchmark, are independent.

    Source: Efron and Tibshirani 1993, chapter 16; Koehn 2004 for its use on texts.
    """
    columns = [column.sum(1) for _, each in samples for column in (each.totals, each.counts)]
    sums = np.stack(columns, 1)
    drawn = [times @ sums for times in np.split(_times(len(sums), stream, num_draws), 20)]
    values, draws = _ratios(sums.sum(0)), _ratios(np.concatenate(drawn))
    return [
        Drawn(
            float(metric.of(values[at])),
            metric.of(draws[:, at]),
            int((sums[:, 2 * at + 1] > 0).sum()),
        )
        for at, metric in enumerate(_about(metric) for metric, _ in samples)
    ]


def average_drawn(drawn: Sequence[Drawn]) -> Drawn:
    """The unweighted mean over benchmarks."""
    return Drawn(
        float(np.mean([one.value for one in drawn])),
        np.mean([one.draws for one in drawn], axis=0),
        sum(one.num_examples for one in drawn),
    )


def compare(metric: str | Metric, first: Drawn, second: Drawn) -> Difference:
    """Whether the first is better, by the interval with ``CONFIDENCE`` of the paired draws.

    With few examples a bootstrap underestimates the tails: with 5 examples it would call one in
    seven pairs of equal models different. Below ``FEWEST`` there is no verdict.
    """
    differences = first.draws - second.draws
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.nanpercentile(differences, [tail, 100 - tail])
    num = min(first.num_examples, second.num_examples)
    verdict = "no difference beyond noise"
    if not differences.any():  # of any draw: the values are the same, example by example
        constant = np.ptp(first.draws) == 0
        verdict = f"{NOTHING}: {first.value:g} for both" if constant else "equal on every example"
    elif num < FEWEST:
        verdict = "too few examples to tell"
    elif low > 0 or high < 0:
        verdict = "better" if (low > 0) == _about(metric).higher_is_better else "worse"
    return Difference(first.value - second.value, float(low), float(high), verdict, num)


def standard_error(values: Sequence[float]) -> float | None:
    """The standard error of the mean of independent values; None for fewer than two."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return None
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def _about(metric):
    return metric if isinstance(metric, Metric) else METRICS[metric]


def _ratios(sums):
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[..., ::2] / sums[..., 1::2]


@lru_cache(maxsize=8)
def _times(num, stream, num_draws):
    """How often each of ``num`` examples occurs in each draw, ``[num_draws, num]``."""
    generator = np.random.default_rng([_STREAM, stream])
    return generator.multinomial(num, np.full(num, 1 / num), size=num_draws).astype(np.uint16)
