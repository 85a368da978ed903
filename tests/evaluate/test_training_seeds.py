"""Methods compared over training seeds: intervals that hold as often as they say, in any noise."""

import math
import re
import statistics
from functools import lru_cache

import numpy as np
import pytest

from distilllens.evaluate.scores import METRICS, NUM_DRAWS, Samples, bootstrap, compare
from distilllens.evaluate.training_seeds import (
    MOST_SEEDS,
    NOT_SETTLED,
    ONE_SEED,
    average_pairs,
    compare_over_seeds,
    draw_pairs,
    mean_over_seeds,
    sentence,
)

# Two-sided 95 % quantiles of Student's t, from the tables of any textbook.
T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 29: 2.045, 99: 1.984, 299: 1.968}


def values_of(values, counts=1.0):
    """Training seed -> samples of values ``[S, n]``, as totals of so many counts ``[n]``."""
    values = np.asarray(values, dtype=float)
    counts = np.broadcast_to(np.asarray(counts, dtype=float), values.shape[1:])
    numbers = np.arange(values.shape[1])
    return {
        seed: Samples(numbers, (row * counts)[:, None], counts[:, None].copy())
        for seed, row in enumerate(values)
    }


def against(method, baseline, metric="rouge_l", counts=1.0, num_draws=NUM_DRAWS):
    """The comparison of values ``[S, n]``."""
    both = (values_of(values, counts) for values in (method, baseline))
    return compare_over_seeds(metric, draw_pairs(metric, *both, 0, num_draws))


def exact(generator, *shape):
    """Noise whose mean is 0 and whose variance (ddof=1) is 1 along each axis longer than 1."""
    noise = generator.normal(size=shape)
    for axis in [axis for axis, size in enumerate(shape) if size > 1]:
        noise -= noise.mean(axis, keepdims=True)
    degrees = math.prod(size - 1 for size in shape if size > 1)
    return noise * math.sqrt(degrees / (noise**2).sum())


def parts(of_seeds, of_examples, of_both, num_seeds, num_examples, difference=0.0):
    """Differences ``[S, n]`` whose analysis of variance finds just these standard deviations.

    Noise of seed x example is expected in the means over seeds and over examples too.
    """
    generator = np.random.default_rng(num_seeds * num_examples)
    return (
        difference
        + math.hypot(of_seeds, of_both / math.sqrt(num_examples)) * exact(generator, num_seeds, 1)
        + math.hypot(of_examples, of_both / math.sqrt(num_seeds))
        * exact(generator, 1, num_examples)
        + of_both * exact(generator, num_seeds, num_examples)
    )


def reach(table):
    """Half the interval from the mean squares of a crossed design ``[S, n]``, written out."""
    num_seeds, num_examples = table.shape
    seeds, examples, whole = table.mean(1), table.mean(0), table.mean()
    of_seeds = num_examples * ((seeds - whole) ** 2).sum() / (num_seeds - 1)
    of_examples = num_seeds * ((examples - whole) ** 2).sum() / (num_examples - 1)
    rest = table - seeds[:, None] - examples + whole
    of_both = (rest**2).sum() / ((num_seeds - 1) * (num_examples - 1))
    t_seeds, t_examples = T[num_seeds - 1], T[num_examples - 1]
    square = t_examples**2 * (of_examples - of_both)
    square += max(t_examples**2 * of_both, t_seeds**2 * of_seeds)
    return math.sqrt(square / (num_seeds * num_examples))


# ---- the numbers


def test_mean_over_seeds_is_the_textbooks():
    """By the standard library; one seed has no spread, and none has no mean."""
    found = mean_over_seeds({42: 3.0, 1: 5.0, 2: 10.0})
    assert found.mean == pytest.approx(6.0, rel=1e-12)
    assert found.deviation == pytest.approx(statistics.stdev([3.0, 5.0, 10.0]), rel=1e-12)
    assert found.by_seed == {42: 3.0, 1: 5.0, 2: 10.0}
    assert mean_over_seeds({42: 3.0}).deviation is None
    with pytest.raises(ValueError, match="no training seed to average"):
        mean_over_seeds({})


@pytest.mark.parametrize(
    ("num_seeds", "num_examples", "deviations"),
    [
        (2, 300, (1.0, 0.1, 0.1)),  # seeds dominate
        (3, 30, (1.0, 0.0, 0.0)),
        (5, 300, (0.5, 1.0, 1.0)),
        (3, 300, (0.2, 3.0, 0.5)),
        (2, 300, (0.0, 3.0, 0.0)),  # examples do
        (6, 30, (0.0, 1.0, 4.0)),  # seed x example does
        (3, 10, (0.1, 1.0, 1.0)),
    ],
)
def test_the_interval_is_that_of_the_analysis_of_variance(num_seeds, num_examples, deviations):
    """Half of it to 3 %: the Monte Carlo error of 10,000 draws is 1.5 %, skewness adds a little."""
    differences = parts(*deviations, num_seeds, num_examples, difference=0.7)
    base = np.random.default_rng(0).normal(30, 10, size=(num_seeds, num_examples))
    found = against(base + differences, base)
    half = reach(differences)
    assert found.difference == pytest.approx(0.7, rel=1e-9)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.03)
    assert (found.high + found.low) / 2 == pytest.approx(0.7, abs=0.06 * half)
    assert (found.verdict == "better") == (found.low > 0)
    assert found.num_examples == num_examples and len(found.by_seed) == num_seeds
    spread = differences.mean(1).std(ddof=1)
    assert found.error_over_seeds == pytest.approx(spread / math.sqrt(num_seeds), rel=1e-9)


def test_without_noise_of_seeds_it_is_the_board_of_models():
    """The same draws as a comparison of two models; t_299 and 300/299 make it 0.6 % wider."""
    generator = np.random.default_rng(1)
    base = generator.normal(30, 10, size=300)
    method = base + generator.exponential(3.0, size=300)
    of_models = [("rouge_l", values_of([values])[0]) for values in (method, base)]
    board = compare("rouge_l", *bootstrap(of_models, 0))
    found = against([method] * 3, [base] * 3)
    assert found.difference == pytest.approx(board.difference, rel=1e-12)
    for end, other in ((found.low, board.low), (found.high, board.high)):
        assert (end - found.difference) / (other - board.difference) == pytest.approx(
            1.006, abs=2e-3
        )


def test_noise_of_decoding_is_counted_once():
    """Seeds that differ by their luck with examples only: no wider than the seeds' spread."""
    differences = parts(0.0, 0.0, 1.0, 5, 300)
    found = against(differences, np.zeros((5, 300)))
    spread = differences.mean(1).std(ddof=1) / math.sqrt(5)
    assert (found.high - found.low) / 2 == pytest.approx(T[4] * spread, rel=0.03)


def test_a_mean_over_tokens_is_a_ratio_of_sums():
    """By seed, and its error is that of a jackknife over examples."""
    generator = np.random.default_rng(2)
    counts = generator.integers(1, 80, size=300)
    base = generator.normal(2.0, 0.3, size=(3, 300))
    method = base - 0.1 + 0.2 * generator.normal(size=300)
    found = against(method, base, "log_perplexity", counts)
    by_seed = ((method - base) * counts).sum(1) / counts.sum()
    assert [*found.by_seed.values()] == pytest.approx(by_seed.tolist(), rel=1e-9)
    effect = ((method - base) * counts).mean(0)
    without = (effect.sum() - effect) / (counts.sum() - counts)
    jackknife = math.sqrt(299 / 300 * ((without - without.mean()) ** 2).sum())
    assert found.error_over_examples == pytest.approx(jackknife, rel=0.03)
    assert found.verdict == "better" and found.high < 0
    perplexity = against(method, base, "perplexity", counts)
    expected = np.exp((method * counts).sum(1) / counts.sum())
    expected -= np.exp((base * counts).sum(1) / counts.sum())
    assert [*perplexity.by_seed.values()] == pytest.approx(expected.tolist(), rel=1e-9)
    assert perplexity.difference == pytest.approx(expected.mean(), rel=1e-9)
    assert perplexity.verdict == "better"


def test_the_average_draws_examples_apart_and_seeds_together():
    """Noise of examples falls with the number of benchmarks, noise of seeds does not."""
    generator = np.random.default_rng(3)

    def averaged(*tables):
        pairs = [
            draw_pairs("rouge_l", values_of(table), values_of(np.zeros_like(table)), stream)
            for stream, table in enumerate(tables)
        ]
        return compare_over_seeds("rouge_l", average_pairs(pairs)), pairs

    seeds = 2.0 * exact(generator, 3, 1) + np.zeros((3, 300))
    found, pairs = averaged(seeds + 1.0, seeds + 3.0)
    assert found.difference == pytest.approx(2.0)
    assert (found.high - found.low) / 2 == pytest.approx(T[2] * 2.0 / math.sqrt(3), rel=1e-3)
    assert found.num_examples == 600
    examples = [np.zeros((3, 1)) + 2.0 * exact(generator, 1, 300) for _ in range(2)]
    found, _ = averaged(*examples)
    assert (found.high - found.low) / 2 == pytest.approx(T[299] * 2 / math.sqrt(600), rel=0.04)
    fewer = {seed: pairs[0][seed] for seed in (2, 1)}
    assert [*average_pairs([fewer, pairs[1]])] == [1, 2]
    with pytest.raises(ValueError, match="no training seed is in all"):
        average_pairs([fewer, {0: pairs[1][0]}])


# ---- what is paired


def test_seeds_and_examples_are_those_that_both_have():
    """In any order, and an example that one run lacks is left out for all."""
    generator = np.random.default_rng(4)
    method, base = generator.normal(size=(2, 4, 50))
    whole = against(method[1:3, 5:], base[1:3, 5:])
    ours, theirs = values_of(method), values_of(base)
    shuffled = generator.permutation(50)
    ours = {
        seed: Samples(one.examples[shuffled], one.totals[shuffled], one.counts[shuffled])
        for seed, one in ours.items()
        if seed in (2, 1)
    }
    theirs[1] = theirs[1].only(range(5, 50))
    found = compare_over_seeds("rouge_l", draw_pairs("rouge_l", ours, theirs, 0))
    assert found.by_seed == pytest.approx({seed + 1: v for seed, v in whole.by_seed.items()})
    assert (found.low, found.high) == pytest.approx((whole.low, whole.high), rel=1e-9)
    assert found.num_examples == 45


def test_an_answer_without_a_value_counts_for_neither_in_its_seed():
    """As a judge may give none; the other seeds keep it."""
    ours, theirs = values_of(np.full((2, 20), 5.0)), values_of(np.full((2, 20), 4.0))
    ours[0].totals[0], ours[0].counts[0] = 0.0, 0.0
    theirs[0].totals[0] = 99.0
    found = compare_over_seeds("judge", draw_pairs("judge", ours, theirs, 0))
    assert found.by_seed == pytest.approx({0: 1.0, 1: 1.0})
    assert found.num_examples == 19 and found.verdict == "better"


def test_draws_without_a_value_are_left_out():
    """Where a judge rated 3 of 20 answers of a seed, some draws have none of them."""
    ours, theirs = (values_of(np.random.default_rng(5).normal(size=(2, 20))) for _ in "ab")
    ours[0].totals[3:], ours[0].counts[3:] = 0.0, 0.0
    found = compare_over_seeds("judge", draw_pairs("judge", ours, theirs, 0))
    assert found.verdict == "equal on every example"
    theirs[0].totals[:3] += [[1.0], [2.0], [3.0]]
    found = compare_over_seeds("judge", draw_pairs("judge", ours, theirs, 0))
    assert found.by_seed == pytest.approx({0: -2.0, 1: 0.0})
    assert found.verdict == "too few examples to tell" and found.low < -1.0 < found.high


def test_what_cannot_be_paired_is_refused():
    """No common seed, no common example, other tokens: one line each."""
    ours = values_of(np.ones((2, 20)))
    with pytest.raises(ValueError, match="method has 0, 1, the baseline 7"):
        draw_pairs("rouge_l", ours, {7: ours[0]}, 0)
    with pytest.raises(ValueError, match="method has none"):
        draw_pairs("rouge_l", {}, ours, 0)
    others = values_of(np.ones((1, 20)))[0]
    others = Samples(others.examples + 20, others.totals, others.counts)
    with pytest.raises(ValueError, match="seed 0 cannot be compared"):
        draw_pairs("rouge_l", ours, {0: others}, 0)
    with pytest.raises(ValueError, match="seed 0 cannot be compared"):
        draw_pairs("kl", ours, values_of(np.ones((2, 20)), counts=2.0), 0)


# ---- verdicts


@pytest.mark.parametrize(
    ("method", "base", "verdict", "ends"),
    [
        ([[0.0] * 12] * 2, [[0.0] * 12] * 2, "tells nothing: 0 for both", None),
        ([[0.0, 9.0] * 6] * 2, [[0.0, 9.0] * 6] * 2, "equal on every example", (0, 0)),
        ([[0.0, 9.0] * 6], [[0.0, 9.0] * 6], "equal on every example", (0, 0)),
        ([[0.0, 9.0] * 6], [[1.0, 9.0] * 6], ONE_SEED, None),
        ([[5.0] * 9] * 2, [[4.0] * 9] * 2, "too few examples to tell", (1, 1)),
        ([[5.0] * 9], [[4.0] * 9], "too few examples to tell", None),
        ([[5.0] * 10] * 2, [[4.0] * 10] * 2, "better", (1, 1)),
        ([[4.0] * 10] * 2, [[5.0] * 10] * 2, "worse", (-1, -1)),
        ([[4.0] * 10, [6.0] * 10], [[5.0] * 10] * 2, NOT_SETTLED, (-12.706, 12.706)),
        ([[np.inf] * 10] * 2, [[5.0] * 10] * 2, "tells nothing: inf with seed 0", None),
        ([[5.0] * 10] * 2, [[1.0] * 10, [np.nan] * 10], "tells nothing: nan with seed 1", None),
    ],
)
def test_verdicts(method, base, verdict, ends):
    """Each word in its place; no interval where there is nothing to make one of."""
    found = against(method, base)
    assert found.verdict == verdict
    if ends is None:
        assert found.low is None and found.high is None
    else:
        assert (found.low, found.high) == pytest.approx(ends, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("metric", ["rouge_l", "kl"])
def test_which_end_is_good_depends_on_the_metric(metric):
    """More Rouge-L is better, more divergence is worse; numbers keep their sign."""
    more = parts(0.01, 0.1, 0.1, 3, 300, difference=1.0)
    for difference in (more, -more):
        found = against(3 + difference, np.full((3, 300), 3.0), metric)
        good = (found.difference > 0) == METRICS[metric].higher_is_better
        assert found.verdict == ("better" if good else "worse")
        assert found.low < found.difference < found.high
        assert (found.low > 0) == (found.difference > 0)
        assert "-" not in sentence(metric, found, "kd")


# ---- what would settle it


@pytest.mark.parametrize(
    ("deviations", "difference", "num_seeds", "expected"),
    [
        # t_5 / sqrt(6) = 1.050, t_6 = 2.447 / sqrt(7) = 0.925
        ((1.0, 0.0, 0.0), 1.0, 3, (7, 300)),
        # 5: sqrt(1.968^2 9 / 300 + 2.776^2 / 5 / 16) = 0.462; 4: 0.524
        ((0.25, 3.0, 0.0), 0.5, 2, (5, 300)),
        # (1.968 * 9 / 1)^2 = 313.7
        ((0.0, 9.0, 0.0), 1.0, 3, (3, 314)),
        # Half of 1 for seeds: t_9^2 / 10 = 0.512, t_10^2 / 11 = 0.451 with t_10 = 2.228;
        # 1.968^2 * 81 / (1 - 0.451) = 571.6
        ((1.0, 9.0, 0.0), 1.0, 3, (11, 572)),
        ((100.0, 0.0, 0.0), 1.0, 3, (None, None)),
        ((0.0, 1.0, 0.0), 0.0, 3, (None, None)),
    ],
)
def test_what_would_settle_a_difference(deviations, difference, num_seeds, expected):
    """The first number at which half the interval is below it; examples to 3 % (10,000 draws)."""
    found = against(parts(*deviations, num_seeds, 300, difference), np.zeros((num_seeds, 300)))
    assert found.verdict == NOT_SETTLED
    if difference == 0.0:
        return  # rounding gives it a sign; nothing is said of so small a difference
    seeds, examples = found.seeds_needed, found.examples_needed
    assert seeds == expected[0]
    assert examples == (expected[1] and pytest.approx(expected[1], rel=0.06))


def test_the_study_that_a_forecast_asks_for_settles_the_difference():
    """Of the same parts; and one of two thirds of its size, where that is another, does not."""
    for deviations in ((1.0, 2.0, 0.5), (0.3, 9.0, 9.0), (0.5, 0.0, 9.0), (1.0, 12.0, 9.0)):
        numbers = 3, 300

        def study(num_seeds, num_examples, deviations=deviations):
            table = parts(*deviations, num_seeds, num_examples, 1.0)
            return against(table, np.zeros_like(table), num_draws=4000)

        found = study(*numbers)
        assert found.verdict == NOT_SETTLED
        needed = found.seeds_needed, found.examples_needed
        more = [
            math.ceil(1.1 * need) if need > n else n
            for need, n in zip(needed, numbers, strict=True)
        ]
        less = [max(n, 2 * need // 3) for need, n in zip(needed, numbers, strict=True)]
        assert needed != numbers
        assert study(*more).verdict == "better"
        assert study(*less).verdict == NOT_SETTLED


@pytest.mark.parametrize(
    ("metric", "table", "expected"),
    [
        (
            "kl",
            parts(0.01, 0.1, 0.0, 3, 300, -0.1),
            "better than kd by 0.1000 nats per token (0.0726 to 0.1274; 3 seeds, 300 examples)",
        ),
        (
            "rouge_l",
            parts(0.01, 0.1, 0.0, 3, 300, -0.1),
            "worse than kd by 0.10 percentage points (0.07 to 0.13; 3 seeds, 300 examples)",
        ),
        (
            "kl",
            parts(1.0, 0.0, 0.0, 3, 300, -1.0),
            "not settled: 1.0000 nats per token better than kd (1.4843 worse to 3.4843 better; "
            "3 seeds, 300 examples); about 7 seeds would settle a difference of this size",
        ),
        (
            "sbert",
            parts(1.0, 0.0, 0.0, 3, 300, -1.0),
            "not settled: 1.0000 worse than kd (3.4843 worse to 1.4843 better; "
            "3 seeds, 300 examples); about 7 seeds would settle a difference of this size",
        ),
        (
            "judge",
            parts(100.0, 0.0, 0.0, 2, 300, 1.0),
            "not settled: 1.00 points better than kd (897.45 worse to 899.45 better; 2 seeds, "
            f"300 examples); {MOST_SEEDS} seeds would not settle a difference of this size",
        ),
        (
            "judge",
            [[3.0] * 20],
            "one seed gives no interval: 3.00 points better than kd (1 seed, 20 examples)",
        ),
        ("judge", [[0.0] * 20] * 2, "equal on every example (2 seeds, 20 examples; against kd)"),
        (
            "judge",
            [[3.0] * 8] * 2,
            "too few examples to tell: 3.00 points better than kd (3.00 better to 3.00 better; "
            "2 seeds, 8 examples)",
        ),
    ],
)
def test_sentences(metric, table, expected):
    """Words that need no sign; the last digit of an end may differ by Monte Carlo error."""
    base = np.random.default_rng(5).normal(2, 1, size=np.shape(table))
    text = sentence(metric, against(base + table, base, metric), "kd")
    number = re.compile(r"\d+\.\d+")
    assert number.sub("#", text) == number.sub("#", expected)
    found = [*map(float, number.findall(text))]
    assert found == pytest.approx([*map(float, number.findall(expected))], rel=0.02, abs=0.01)


def test_sentences_on_examples():
    """Where more seeds would not help, and where both would."""
    for deviations, text in (
        ((0.0, 9.0, 0.0), r"; more seeds would not, but about 3\d\d examples would settle a "),
        ((1.0, 9.0, 0.0), r"; more seeds alone would not, but about 11 seeds and about 5\d\d exam"),
    ):
        found = against(parts(*deviations, 3, 300, 1.0), np.zeros((3, 300)))
        assert re.search(text, sentence("judge", found, "kd"))


# ---- how often it is wrong, in simulated studies

# Standard deviations of seeds, examples and seed x example.
WORLDS = {
    "seeds": (1.0, 1.0, 1.0),
    "examples": (0.0, 1.0, 0.3),
    "decoding": (0.0, 0.0, 1.0),
    "all": (0.1, 1.0, 1.0),
}
BAR = 0.06  # the share of studies that may call equal methods different, where 0.05 is meant


def worst(number, share=BAR):
    """A share of ``number`` studies that one in 700 would exceed if ``share`` were expected."""
    return share + 3 * math.sqrt(share * (1 - share) / number)


def studies(number, world, num_seeds, num_examples, *, errors=0.0, tails="normal", ratio=False):
    """(method, baseline) of values ``[S, n]``, and counts; they differ by so many true errors."""
    generator = np.random.default_rng([num_seeds, num_examples, len(world), len(tails)])

    def noise(*shape):
        if tails == "heavy":  # t of 3 degrees of freedom, with variance 1
            return generator.standard_t(3, size=shape) / math.sqrt(3)
        return generator.normal(size=shape)

    of_seeds, of_examples, of_both = WORLDS[world]
    error = of_seeds**2 / num_seeds + of_examples**2 / num_examples
    error = math.sqrt(error + of_both**2 / (num_seeds * num_examples))
    for _ in range(number):
        counts = generator.integers(5, 60, size=num_examples) if ratio else 1.0
        base = 30 + 5 * noise(1, num_examples) + np.zeros((num_seeds, 1))
        difference = (
            errors * error
            + of_seeds * generator.normal(size=(num_seeds, 1))
            + of_examples * noise(1, num_examples)
            + of_both * noise(num_seeds, num_examples)
        )
        yield base + difference, base, counts


def told_apart(number, compared, *world, **options):
    """The share of studies in which ``compared`` finds a difference."""
    return sum(compared(*one) for one in studies(number, *world, **options)) / number


def ours(method, base, counts):
    metric = "kl" if np.ndim(counts) else "rouge_l"
    return against(method, base, metric, counts, num_draws=1000).verdict != NOT_SETTLED


@lru_cache
def multinomial(num):
    """How often each of ``num`` is drawn, ``[1000, num]``."""
    return np.random.default_rng(num).multinomial(num, [1 / num] * num, size=1000).astype(float)


def plain(method, base, counts):
    """The percentile bootstrap of seeds and examples, both drawn with replacement."""
    num_seeds, num_examples = method.shape
    times, seeds = multinomial(num_examples), multinomial(num_seeds) / num_seeds
    sums = ((times @ ((method - base) * counts).T) * seeds).sum(1)
    low, high = np.percentile(sums / (times @ np.broadcast_to(counts, num_examples)), [2.5, 97.5])
    return low > 0 or high < 0


@pytest.mark.parametrize("num_seeds", [2, 3])
@pytest.mark.parametrize("world", WORLDS)
def test_equal_methods_are_rarely_told_apart(world, num_seeds):
    """In at most 6 % of studies, in any noise: 400 of them, so 9.6 % is the bound at 3 sigma.

    An interval around another true difference misses it as often.
    """
    assert told_apart(400, ours, world, num_seeds, 60) <= worst(400)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "num_seeds", "num_examples", "options"),
    [
        *[(world, 5, 60, {}) for world in WORLDS],
        *[("seeds", s, 300, {}) for s in (2, 3)],
        ("examples", 2, 300, {}),
        ("decoding", 3, 300, {}),
        *[("seeds", s, 60, {"tails": "heavy"}) for s in (2, 5)],
        *[("examples", s, 60, {"tails": "heavy"}) for s in (2, 5)],
        ("all", 2, 60, {"ratio": True}),
        *[(world, 3, 60, {"ratio": True, "tails": "heavy"}) for world in ("decoding", "examples")],
    ],
)
def test_equal_methods_are_rarely_told_apart_anywhere(world, num_seeds, num_examples, options):
    """The same with more seeds and examples, heavy tails, and means over tokens."""
    assert told_apart(400, ours, world, num_seeds, num_examples, **options) <= worst(400)


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_the_plain_bootstrap_would_not_do(num_seeds):
    """It misses the same bound, by far, where seeds differ: this test can fail."""
    assert told_apart(400, plain, "seeds", num_seeds, 60) > worst(400)


@pytest.mark.parametrize(("num_seeds", "num_examples", "power"), [(2, 60, 0.5), (3, 60, 0.85)])
def test_a_difference_of_four_errors_is_found_where_examples_dominate(
    num_seeds, num_examples, power
):
    """With 2 seeds in most studies, with 3 in nearly all; known noise would give 98 %."""
    found = told_apart(200, ours, "examples", num_seeds, num_examples, errors=4.0)
    assert found > power


def test_the_average_of_benchmarks_is_as_rarely_wrong():
    """Seeds move both benchmarks of 40 examples together, by 0.2 of an example's noise."""
    generator, wrong = np.random.default_rng(7), 0
    for _ in range(200):
        of_seeds = 0.2 * generator.normal(size=(3, 1))
        pairs = []
        for stream in range(2):
            table = of_seeds + generator.normal(size=(1, 40)) + generator.normal(size=(3, 40))
            both = values_of(table), values_of(np.zeros_like(table))
            pairs.append(draw_pairs("rouge_l", *both, stream, 1000))
        wrong += compare_over_seeds("rouge_l", average_pairs(pairs)).verdict != NOT_SETTLED
    assert wrong / 200 <= worst(200)


def test_the_interval_of_perplexities_holds_the_true_difference():
    """Of exp of a mean over tokens: E exp(1.9 + 0.05 z) - exp(2), with z normal by seed."""
    generator, held = np.random.default_rng(8), 0
    true = math.exp(1.9 + 0.05**2 / 2) - math.exp(2.0)
    for _ in range(300):
        counts = generator.integers(5, 60, size=60)
        base = 2.0 + 0.2 * generator.normal(size=(1, 60)) + np.zeros((3, 1))
        method = base - 0.1 + 0.05 * generator.normal(size=(3, 1))
        method += 0.1 * generator.normal(size=(3, 60))
        found = against(method, base, "perplexity", counts, num_draws=1000)
        held += found.low <= true <= found.high
    assert held / 300 >= 1 - worst(300)
