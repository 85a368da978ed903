"""Means, standard errors, and comparisons of models."""

import math
import statistics

import numpy as np
import pytest

from distilllens.evaluate.scores import (
    NUM_DRAWS,
    Samples,
    average,
    average_drawn,
    bootstrap,
    compare,
    score,
    standard_error,
)


def answers(values):
    """Samples of one value an answer, ``[n][S]``; None is an answer without a value."""
    values = np.array(values, dtype=float)
    there = np.isfinite(values)
    numbers = np.arange(len(values))
    return Samples(numbers, np.where(there, values, 0.0), there.astype(float))


def against(metric, first, second):
    """The comparison of two samples."""
    return compare(metric, *bootstrap([(metric, first), (metric, second)], 0))


def tokens(nll, counts):
    """Samples of a mean over tokens."""
    columns = (np.array(column, dtype=float)[:, None] for column in (nll, counts))
    return Samples(np.arange(len(nll)), *columns)


def test_mean_and_both_errors_are_the_textbooks():
    """By the standard library's statistics, on examples averaged over seeds and the reverse."""
    values = [[10.0, 20.0, 60.0], [0.0, 5.0, 1.0], [33.0, 33.0, 30.0], [90.0, 70.0, 99.0]]
    found = score("rouge_l", answers(values))
    by_example = [statistics.mean(row) for row in values]
    by_seed = [statistics.mean(column) for column in zip(*values, strict=True)]
    assert found.mean == pytest.approx(statistics.mean(by_example), rel=1e-12)
    assert found.by_seed == pytest.approx(by_seed, rel=1e-12)
    assert found.error_over_examples == pytest.approx(statistics.stdev(by_example) / 2, rel=1e-12)
    expected = statistics.stdev(by_seed) / math.sqrt(3)
    assert found.error_over_seeds == pytest.approx(expected, rel=1e-12)
    assert found.num_examples == 4


def test_one_example_or_one_seed_has_no_error_of_its_kind():
    """None, and not a zero that looks like certainty."""
    assert score("rouge_l", answers([[1.0, 2.0]])).error_over_examples is None
    assert score("rouge_l", answers([[1.0], [2.0]])).error_over_seeds is None
    assert standard_error([1.0]) is None


def test_an_answer_without_a_value_does_not_count():
    """A judge may give none; the rest is averaged, and no value at all is an error."""
    found = score("judge", answers([[4.0, None], [None, None], [8.0, 6.0]]))
    assert found.mean == pytest.approx(6.0)
    assert found.num_examples == 2
    with pytest.raises(ValueError, match="no value to average"):
        score("judge", answers([[None]]))


def test_perplexity_is_exp_of_the_mean_over_tokens():
    """Not a mean of perplexities; its error is that of a jackknife, to first order."""
    generator = np.random.default_rng(0)
    counts = generator.integers(5, 60, size=400)
    nll = counts * generator.normal(2.0, 0.3, size=400)
    found = score("perplexity", tokens(nll, counts))
    assert found.mean == pytest.approx(math.exp(nll.sum() / counts.sum()), rel=1e-12)
    without = np.exp((nll.sum() - nll) / (counts.sum() - counts))
    jackknife = math.sqrt(399 / 400 * ((without - without.mean()) ** 2).sum())
    assert found.error_over_examples == pytest.approx(jackknife, rel=0.02)


def test_the_average_weighs_benchmarks_alike():
    """Errors of independent benchmarks add in squares; seeds are averaged seed by seed."""
    first = score("rouge_l", answers([[1.0, 3.0], [3.0, 5.0]]))
    second = score("rouge_l", answers([[10.0, 20.0], [20.0, 30.0], [30.0, 10.0]]))
    both = average([first, second])
    assert both.mean == pytest.approx((3.0 + 20.0) / 2)
    squares = first.error_over_examples**2 + second.error_over_examples**2
    assert both.error_over_examples == pytest.approx(math.sqrt(squares) / 2)
    assert both.by_seed == pytest.approx(((2 + 20) / 2, (4 + 20) / 2))


def test_the_interval_is_that_of_the_normal_theory():
    """On 500 paired differences percentile and normal interval agree to a twentieth of its width.

    Its ends have a Monte Carlo error of about 1.5 % of the width with 10,000 draws.
    """
    generator = np.random.default_rng(1)
    base = generator.normal(30, 20, size=(500, 1))
    first, second = base + generator.normal(1.0, 4, size=(500, 1)), base
    found = compare(
        "rouge_l", *bootstrap([("rouge_l", answers(first)), ("rouge_l", answers(second))], 0)
    )
    difference = (first - second)[:, 0]
    half = 1.96 * difference.std(ddof=1) / math.sqrt(500)
    assert found.difference == pytest.approx(difference.mean(), rel=1e-9)
    assert found.low == pytest.approx(difference.mean() - half, abs=half / 10)
    assert found.high == pytest.approx(difference.mean() + half, abs=half / 10)
    assert found.verdict == "better"


def test_it_is_wrong_as_often_as_it_says():
    """About 5 % of 400 comparisons of equal models find a difference.

    Binomial(400, 0.05) lies in 8 to 36 but once in ten thousand; small samples add a little.
    """
    generator = np.random.default_rng(2)
    wrong = 0
    for _ in range(400):
        pair = generator.normal(size=(2, 60, 1))
        found = against("rouge_l", answers(pair[0]), answers(pair[1]))
        wrong += found.verdict != "no difference beyond noise"
    assert 8 <= wrong <= 36


@pytest.mark.parametrize(("metric", "verdict"), [("rouge_l", "better"), ("perplexity", "worse")])
def test_which_end_is_good_depends_on_the_metric(metric, verdict):
    """More Rouge-L is better, more perplexity is worse."""
    ones = [1] * 12
    high, low = tokens([3.0, 2.9, 3.1] * 4, ones), tokens([1.0, 1.1, 0.9] * 4, ones)
    assert against(metric, high, low).verdict == verdict
    assert against(metric, high, high).verdict == "equal on every example"


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.0] * 12, "tells nothing: 0 for both"),
        ([0.0] * 3, "tells nothing: 0 for both"),  # more examples would not help
        ([100.0] * 12, "tells nothing: 100 for both"),
        ([0.0, 100.0] * 6, "equal on every example"),
    ],
)
def test_equal_values_are_no_noise(values, verdict):
    """A metric without a difference in any example is not called one below the noise."""
    same = answers([[value] for value in values])
    assert against("exact_match", same, same).verdict == verdict
    noisy = answers([[value] for value in [*values[:-1], 50.0]])
    assert against("exact_match", noisy, same).verdict in (
        "no difference beyond noise",
        "too few examples to tell",
    )
    drawn = [bootstrap([("exact_match", same)] * 2, stream) for stream in (0, 1)]
    both = compare("exact_match", *map(average_drawn, zip(*drawn, strict=True)))
    assert both.verdict == verdict


def test_logarithms_of_perplexities_are_compared_alike():
    """The same verdict as of perplexities, in numbers that one bad model does not swamp."""
    ones = [1] * 12
    bad, good = tokens([11.0, 11.5, 12.0] * 4, ones), tokens([1.0, 1.1, 0.9] * 4, ones)
    assert against("perplexity", bad, good).difference == pytest.approx(math.exp(11.5), rel=1e-4)
    found = against("log_perplexity", bad, good)
    assert found.difference == pytest.approx(10.5) and found.verdict == "worse"


def test_draws_are_paired_within_a_benchmark_and_apart_between_two():
    """The same examples for all models of a stream, others in another stream."""
    values = np.random.default_rng(3).normal(size=(50, 1))
    first, again = bootstrap([("rouge_l", answers(values)), ("judge", answers(values))], 0)
    (other,) = bootstrap([("rouge_l", answers(values))], 1)
    assert len(first.draws) == NUM_DRAWS
    assert np.array_equal(first.draws, again.draws)
    assert abs(np.corrcoef(first.draws, other.draws)[0, 1]) < 0.05  # 5 sigma at 10,000
    both = average_drawn([first, other])
    assert both.draws.std() == pytest.approx(first.draws.std() / math.sqrt(2), rel=0.1)


def test_samples_of_some_examples():
    """Picked by their number, not by their place, and in order: two samples are paired by rows."""
    for order in ([0, 1, 2], [2, 0, 1]):
        totals = np.array([[1.0], [2.0], [3.0]])[order]
        samples = Samples(np.array([3, 5, 9])[order], totals, np.ones((3, 1)))
        assert samples.only([9, 3]).examples.tolist() == [3, 9]
        assert samples.only([9, 3]).totals[:, 0].tolist() == [1.0, 3.0]


def test_few_examples_have_no_verdict():
    """Nine examples give an interval but no verdict; ten give a verdict."""
    for num, verdict in ((9, "too few examples to tell"), (10, "better")):
        high, low = answers([[3.0], *[[2.9]] * (num - 1)]), answers([[1.0]] * num)
        assert against("rouge_l", high, low).verdict == verdict


def test_examples_without_a_value_do_not_count():
    """Of 100 examples three have one: that is three examples, and no verdict."""
    rest = [[None]] * 97
    first, second = answers([[3.0], [2.9], [2.8], *rest]), answers([[1.0], [1.1], [1.2], *rest])
    found = against("kl", first, second)
    assert (found.num_examples, found.verdict) == (3, "too few examples to tell")
