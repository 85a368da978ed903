"""Methods trained with several seeds: whether one is better than another, for any seed and example.

A difference has three kinds of noise: of seeds (each run is another model), of examples, and of
seed x example (each run has its own luck with each example, decoding included).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from statistics import NormalDist

import numpy as np

from distilllens.evaluate.board import common
from distilllens.evaluate.scores import (
    CONFIDENCE,
    FEWEST,
    METRICS,
    NOTHING,
    NUM_DRAWS,
    Drawn,
    Samples,
    average_drawn,
    bootstrap,
)

MOST_SEEDS = 100  # no forecast goes beyond
NOT_SETTLED = "not settled"
ONE_SEED = "one seed gives no interval"
_UNITS = {"%": "percentage points", "1-10": "points", "nats per token": "nats per token"}

Pairs = Mapping[int, tuple[Drawn, Drawn]]


@dataclass(frozen=True)
class SeedMean:
    """A score over training seeds.

    Args:
        mean: over seeds, in the metric's unit.
        deviation: standard deviation over seeds (of one run, not of the mean); None with one seed.
        by_seed: seed -> score.
    """

    mean: float
    deviation: float | None
    by_seed: dict[int, float]


@dataclass(frozen=True)
class SeedDifference:
    """``difference`` = method - baseline, over the training seeds that both have.

    Args:
        difference: mean over seeds, in the metric's unit.
        low, high: interval with ``CONFIDENCE`` for other seeds and other examples. None with one
            seed, or where the verdict says that the difference tells nothing.
        verdict: on the method. "better", "worse", ``NOT_SETTLED``, "equal on every example",
            "too few examples to tell", ``ONE_SEED``, or what starts with ``NOTHING``.
        by_seed: seed -> difference.
        num_examples: number of examples that all runs have.
        error_over_seeds: standard error by the spread of ``by_seed``. None with one seed.
        error_over_examples: standard error due to the choice of examples, for these seeds.
        seeds_needed, examples_needed: if not settled, a study that would be expected to settle a
            difference of this size: more seeds if they can do it, else more examples, else both.
            None where ``MOST_SEEDS`` cannot.
    """

    difference: float
    low: float | None
    high: float | None
    verdict: str
    by_seed: dict[int, float]
    num_examples: int
    error_over_seeds: float | None = None
    error_over_examples: float | None = None
    seeds_needed: int | None = None
    examples_needed: int | None = None


def mean_over_seeds(by_seed: Mapping[int, float]) -> SeedMean:
    """The mean of each seed's score, with its standard deviation.

    Raises:
        ValueError: there is no seed.
    """
    values = np.array([*by_seed.values()], dtype=float)
    if not len(values):
        raise ValueError("there is no training seed to average over")
    deviation = float(values.std(ddof=1)) if len(values) > 1 else None
    return SeedMean(float(values.mean()), deviation, dict(by_seed))


def draw_pairs(
    metric: str,
    method: Mapping[int, Samples],
    baseline: Mapping[int, Samples],
    stream: int,
    num_draws: int = NUM_DRAWS,
) -> Pairs:
    """(method, baseline) of each seed that both have, on the same drawn examples.

    Draws are stretched from the normal distribution to Student's t, and by sqrt(n / (n - 1)): a
    bootstrap of few examples is too narrow.

    Args:
        method, baseline: training seed -> samples of a benchmark.
        stream: draws of different streams, one per benchmark, are independent.
        num_draws: a multiple of 20.

    Raises:
        ValueError: no seed, or no example with a value, is in both, or they are not comparable.
    """
    seeds = sorted(method.keys() & baseline.keys())
    if not seeds:
        raise ValueError(
            f"no training seed is in both: the method has {_listed(method)}, the baseline "
            f"{_listed(baseline)}"
        )
    runs = [(method[seed], baseline[seed]) for seed in seeds]
    everywhere = reduce(np.intersect1d, [one.examples for pair in runs for one in pair])
    shared = []
    for seed, pair in zip(seeds, runs, strict=True):
        both = common(metric, *(one.only(everywhere) for one in pair))
        if both is None:
            raise ValueError(
                f"{METRICS[metric].title}: method and baseline of seed {seed} cannot be compared: "
                "they share no example with a value, or their references differ in tokens"
            )
        shared += both
    num = min(int((one.counts.sum(1) > 0).sum()) for one in shared)
    stretch = 1.0
    if num > 1:
        stretch = _quantile(num - 1) / _NORMAL * math.sqrt(num / (num - 1))
    with np.errstate(over="ignore", invalid="ignore"):  # a value that is not finite gets a verdict
        drawn = [
            Drawn(one.value, one.value + stretch * (one.draws - one.value), num)
            for one in bootstrap([(metric, one) for one in shared], stream, num_draws)
        ]
    return dict(zip(seeds, zip(drawn[::2], drawn[1::2], strict=True), strict=True))


def average_pairs(benchmarks: Sequence[Pairs]) -> Pairs:
    """The unweighted mean over benchmarks, for the seeds that all have.

    Raises:
        ValueError: no seed is in all.
    """
    seeds = reduce(lambda ours, theirs: ours & theirs, [pairs.keys() for pairs in benchmarks])
    if not seeds:
        raise ValueError("no training seed is in all benchmarks")
    return {
        seed: tuple(map(average_drawn, zip(*(pairs[seed] for pairs in benchmarks), strict=True)))
        for seed in sorted(seeds)
    }


def compare_over_seeds(metric: str, pairs: Pairs) -> SeedDifference:
    """Whether the method is better, by an interval for other seeds and other examples.

    With ``e`` the distance from the difference to a percentile of the draws over examples, ``V_E``
    their variance, ``V_S`` the variance of the mean over S seeds by their spread, and ``V_I``
    the share of seed x example in it, which is in ``V_E`` as well, that end is as far as
    ``sqrt(e**2 (1 - V_I / V_E) + max(e**2 V_I / V_E, t**2 V_S))``, t of S - 1 degrees of freedom.
    It is the t interval over seeds where their noise dominates, and the paired bootstrap where
    that of examples does. In between it is cautious: with normal noise no mixture makes a false
    alarm more likely than 1 - ``CONFIDENCE``. Satterthwaite's degrees of freedom would be narrower,
    but wrong in up to 13 % of studies of 2 seeds, whose spread may be small by chance.

    Source: the sum of variance components of Graybill and Wang 1980 (JASA 75), around unequal ends
        as in Zou and Donner 2008 (Statistics in Medicine 27).
    """
    by_seed = {seed: first.value - second.value for seed, (first, second) in pairs.items()}
    num = min(min(one.num_examples for one in pair) for pair in pairs.values())
    difference = float(np.mean([*by_seed.values()]))
    verdict = _without_noise(pairs)
    if verdict is None and len(pairs) == 1:
        verdict = "too few examples to tell" if num < FEWEST else ONE_SEED
    if verdict == "equal on every example":
        return SeedDifference(0.0, 0.0, 0.0, verdict, by_seed, num)
    if verdict is not None:
        return SeedDifference(difference, None, None, verdict, by_seed, num)
    noise = _noise(
        by_seed, np.stack([first.draws - second.draws for first, second in pairs.values()])
    )
    low, high = (noise.reach(end, noise.num_seeds) for end in noise.ends)
    verdict, forecast = NOT_SETTLED, {}
    if num < FEWEST:
        verdict = "too few examples to tell"
    elif abs(difference) > (low if difference > 0 else high):
        verdict = _word(metric, difference)
    else:
        forecast = _forecast(noise, difference, num)
    return SeedDifference(
        difference,
        difference - low,
        difference + high,
        verdict,
        by_seed,
        num,
        math.sqrt(noise.of_seeds),
        math.sqrt(noise.of_examples),
        **forecast,
    )


def sentence(metric: str, found: SeedDifference, baseline: str) -> str:
    """The difference from a baseline in words; better and worse take the place of signs."""
    title, digits = METRICS[metric].title, METRICS[metric].digits
    unit = _UNITS.get(title.rpartition("(")[2].rstrip(")"), "")
    size = f"{abs(found.difference):.{digits}f} {unit}".rstrip()
    counts = f"{_many(len(found.by_seed), 'seed')}, {_many(found.num_examples, 'example')}"

    def worded(value):
        return f"{abs(value):.{digits}f} {_word(metric, value)}"

    if found.verdict in ("better", "worse"):
        near, far = sorted((abs(found.low), abs(found.high)))
        ends = f"{near:.{digits}f} to {far:.{digits}f}"
        return f"{found.verdict} than {baseline} by {size} ({ends}; {counts})"
    if found.verdict == "equal on every example" or found.verdict.startswith(NOTHING):
        return f"{found.verdict} ({counts}; against {baseline})"
    text = f"{found.verdict}: {size} {_word(metric, found.difference)} than {baseline}"
    if found.low is None:
        return f"{text} ({counts})"
    ends = (found.low, found.high) if METRICS[metric].higher_is_better else (found.high, found.low)
    text += f" ({' to '.join(map(worded, ends))}; {counts})"
    return f"{text}; {_needed(found)}" if found.verdict == NOT_SETTLED else text


def _needed(found):
    """What would settle a difference, in words."""
    seeds, examples = f"about {found.seeds_needed} seeds", f"about {found.examples_needed} examples"
    what = "would settle a difference of this size"
    if found.seeds_needed is None:
        return f"{MOST_SEEDS} seeds {what.replace('would', 'would not')}"
    if found.examples_needed == found.num_examples:
        return f"{seeds} {what}"
    if found.seeds_needed == len(found.by_seed):
        return f"more seeds would not, but {examples} {what}"
    return f"more seeds alone would not, but {seeds} and {examples} {what}"


@dataclass(frozen=True)
class _Noise:
    """Noise of a mean over S seeds and n examples.

    Args:
        ends: distances from the difference to the lower and upper percentile over examples.
        of_seeds, of_examples, of_both: variances V_S, V_E and V_I; V_I is in V_S and in V_E.
    """

    num_seeds: int
    ends: tuple[float, float]
    of_seeds: float
    of_examples: float
    of_both: float

    @property
    def share(self):
        """The share of seed x example in the noise over examples."""
        return min(1.0, self.of_both / self.of_examples) if self.of_examples else 0.0

    def reach(self, end, num_seeds):
        """How far the interval goes at this end, as expected with another number of seeds."""
        once = end**2 * self.share, _quantile(num_seeds - 1) ** 2 * self.of_seeds
        return math.sqrt(end**2 * (1 - self.share) + max(once) * self.num_seeds / num_seeds)


def _noise(by_seed, draws):
    """The noise of the differences of S seeds, by draws ``[S, num_draws]`` over examples."""
    values = np.array([*by_seed.values()])
    draws = draws[:, np.isfinite(draws).all(0)]  # a draw without any value of a seed has none
    mean, num = draws.mean(0), len(values)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(mean, [tail, 100 - tail])
    return _Noise(
        num,
        (max(0.0, values.mean() - low), max(0.0, high - values.mean())),
        values.var(ddof=1) / num,
        mean.var(),
        (draws - mean).var(1).sum() / (num * (num - 1)),
    )


def _forecast(noise, difference, num_examples):
    """A study that would settle the difference, if seeds and examples went on as they are."""
    end, square = noise.ends[0] if difference > 0 else noise.ends[1], difference**2
    for num in range(noise.num_seeds + 1, MOST_SEEDS + 1):
        if noise.reach(end, num) ** 2 < square:
            return {"seeds_needed": num, "examples_needed": num_examples}
    of_both = min(noise.of_both, noise.of_seeds)
    for num in range(noise.num_seeds, MOST_SEEDS + 1):
        fewer = noise.num_seeds / num
        of_seeds, of_luck = (
            _quantile(num - 1) ** 2 * fewer * part for part in (noise.of_seeds - of_both, of_both)
        )
        # Seeds alone take at most half of the room. All the rest falls as 1 / examples.
        if square > 0 and 2 * of_seeds <= square:
            rest = end**2 * (1 - noise.share)
            times = max(
                (rest + end**2 * noise.share * fewer) / square,
                (rest + of_luck) / (square - of_seeds),
            )
            return {"seeds_needed": num, "examples_needed": math.floor(num_examples * times) + 1}
    return {}


def _without_noise(pairs):
    """The verdict on values that say nothing, or nothing but that they are equal; else None."""
    for seed, pair in pairs.items():
        for one in pair:
            if not math.isfinite(one.value):
                return f"{NOTHING}: {one.value:g} with seed {seed}"
    draws = np.stack([[one.draws for one in pair] for pair in pairs.values()])
    draws = draws[..., np.isfinite(draws).all((0, 1))]
    if np.any(draws[:, 0] != draws[:, 1]):
        return None
    if np.ptp(draws) == 0:
        return f"{NOTHING}: {draws.flat[0]:g} for both"
    return "equal on every example"


def _word(metric, difference):
    return "better" if (difference > 0) == METRICS[metric].higher_is_better else "worse"


def _many(num, noun):
    return f"{num} {noun}" if num == 1 else f"{num} {noun}s"


def _listed(runs):
    return ", ".join(map(str, sorted(runs))) or "none"


_NORMAL = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


@lru_cache(maxsize=1024)
def _quantile(freedom):
    """The quantile of ``|T|`` at ``CONFIDENCE``: T = sqrt(freedom) tan(A), A ~ cos^(freedom-1)."""
    angles = np.linspace(0, math.pi / 2, 20_001)
    density = np.cos(angles) ** (freedom - 1)
    mass = np.cumsum(density[1:] + density[:-1])
    return math.sqrt(freedom) * math.tan(np.interp(CONFIDENCE * mass[-1], mass, angles[1:]))
