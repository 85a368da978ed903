"""Plots over steps contain what the trainer logged, and nothing else."""

import math

import pytest

pytest.importorskip("matplotlib")

from distilllens.report.training import first_and_last, pairs_of, training_plots

ROWS = [
    {"step": 5, "loss": 3.0, "output_loss": 2.0, "lens_loss": 1.0, "lens_loss/2:8": 1.5},
    {"step": 5, "eval_loss": 2.5, "eval_runtime": 1.0, "eval_rouge_l": 25.0},
    {"step": 10, "loss": 2.0, "output_loss": 1.5, "lens_loss": 0.5, "lens_loss/10:11": 0.5},
    {"step": 10, "train_runtime": 9.0},
]


def by_name(rows):
    return {plot.name: plot for plot in training_plots(rows)}


def test_every_number_of_the_log_is_in_a_table():
    """Each figure's rows are (what, step, value) of the log; terms that were not logged are not."""
    plots = by_name(ROWS)
    assert list(plots) == ["terms", "pairs", "evaluation", "scores"]
    assert plots["terms"].table.rows == (
        ("total", 5, 3.0),
        ("total", 10, 2.0),
        ("output divergence", 5, 2.0),
        ("output divergence", 10, 1.5),
        ("lens divergence", 5, 1.0),
        ("lens divergence", 10, 0.5),
    )
    assert plots["pairs"].table.rows == (("2:8", 5, 1.5), ("10:11", 10, 0.5))
    assert plots["evaluation"].table.rows == (("total", 5, 2.5),)
    assert plots["scores"].table.rows == (("Rouge-L", 5, 25.0),)


def test_scores_are_percents():
    """The trainer logs Rouge-L in 0..100: caption, axis and table all give the unit."""
    plot = by_name(ROWS)["scores"]
    assert "in percent: 100 is the best" in plot.caption
    assert plot.drawings[0].figure.axes[0].get_ylabel() == "score (%)"
    assert first_and_last(ROWS).columns[0] == "nats per token, or score in %"


def test_pairs_rise_as_numbers():
    """2:8 comes before 10:11, and names that are not pairs are ignored."""
    assert pairs_of([*ROWS, {"lens_loss/a:b": 1.0, "lens_loss/7": 1.0}]) == ["2:8", "10:11"]
    several = dict.fromkeys(("lens_loss/10:1@2", "lens_loss/2:8@2", "lens_loss/2:8@1"), 1.0)
    assert pairs_of([several]) == ["2:8@1", "2:8@2", "10:1@2"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_diverged_run_is_drawn_with_a_gap(bad):
    """A value that is not finite stays in the numbers and leaves the figure whole."""
    rows = [{"step": n, "loss": value} for n, value in enumerate([3.0, bad, 1.0])]
    (plot,) = training_plots(rows)
    (line,) = plot.drawings[0].figure.axes[0].lines
    assert list(line.get_ydata()) == pytest.approx([3.0, math.nan, 1.0], nan_ok=True)
    assert plot.table.rows[1][2] == pytest.approx(bad, nan_ok=True)
    assert "<svg" in plot.html()


def test_nothing_finite_is_no_figure():
    """A log without a finite number gives no figure."""
    rows = [{"step": 1, "loss": math.nan}, {"step": 2, "loss": "high"}, {"loss": 1.0}, {}]
    assert training_plots(rows) == () and first_and_last([{}, {"step": 1}]).rows == ()


def test_logarithms_only_where_they_exist():
    """A log scale is offered only if all values are positive."""
    assert [c.name for c in by_name(ROWS)["terms"].choices] == ["scale"]
    assert by_name([{"step": 1, "loss": 0.0}])["terms"].choices == ()
    scales = [d.figure.axes[0].get_yscale() for d in by_name(ROWS)["terms"].drawings]
    assert scales == ["linear", "log"]


@pytest.mark.parametrize("last", [1e-4, 0.05, 0.9, 0.9999])
def test_a_logarithmic_scale_has_ticks(last):
    """At least three labelled ticks are visible, over several decades and within one."""
    rows = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": last}]
    axes = by_name(rows)["terms"].drawings[1].figure.axes[0]
    low, high = axes.get_ylim()
    ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]
    assert len(ticks) >= 3


def test_the_speed_says_what_it_counts():
    """Our rate counts target tokens; the rate of transformers, used without ours, input tokens."""
    ours = {"step": 1, "target_tokens_per_second": 5.0, "train_tokens_per_second": 7.0}
    assert by_name([ours])["speed"].table.rows == (("tokens / s", 1, 5.0),)
    assert by_name([ours])["speed"].caption.startswith("Target tokens")
    theirs = {"step": 1, "train_tokens_per_second": 7.0}
    assert by_name([theirs])["speed"].table.rows == (("tokens / s", 1, 7.0),)
    assert by_name([theirs])["speed"].caption.startswith("Input tokens")


def test_small_rates_keep_their_digits():
    """The ticks of a learning rate of 1e-4 are not all 0."""
    rows = [{"step": n, "learning_rate": 1e-4 * n} for n in range(5)]
    (plot,) = training_plots(rows)
    assert "0.0004" in plot.html() or "0.00040" in plot.html()


def test_first_and_last():
    """Each term in the first and the last log that has it."""
    rows = first_and_last(ROWS).rows
    assert rows[0] == ("total", 3.0, 5, 2.0, 10)
    assert ("lens 2:8", 1.5, 5, 1.5, 5) in rows
    assert ("evaluation: Rouge-L", 25.0, 5, 25.0, 5) in rows
