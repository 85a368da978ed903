"""Plots over the steps of a training run, from the rows of its log."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from distilllens import objective
from distilllens.joined_map import depths_in
from distilllens.report.by_depth import legend
from distilllens.report.canvas import frame, mark, new_figure, style_of
from distilllens.report.drawings import Curve, series_of
from distilllens.report.page import Drawing, Plot
from distilllens.report.parts import Choice, Table

Rows = Sequence[Mapping[str, Any]]
# Name in the log -> label; the order sets the line styles.
TERMS = {"loss": "total", **{t.log_name: t.label for t in objective.TERMS if not t.optional}}
# Not in nats.
_DISTANCES = {"feature_loss": "feature loss"}
_DISTANCES |= {f"eval_{name}": f"evaluation: {label}" for name, label in _DISTANCES.items()}
_SCORES = {"eval_rouge_l": "Rouge-L", "eval_exact_match": "exact match"}
_ANSWERS = {"on_policy_truncated": "cut", "on_policy_empty": "ended at once"}
_SPEEDS = {
    "target_tokens_per_second": "Target tokens of all processes per second since the last log; "
    "time spent in evaluations is excluded.",
    "train_tokens_per_second": "Input tokens of all processes per second since the start; time "
    "spent in evaluations is included.",
}
_PAIR = "lens_loss/"
_MARKERS = 12


def training_plots(rows: Rows) -> tuple[Plot, ...]:
    """Every figure that the log has numbers for: loss terms, pairs, evaluation, rate, speed.

    Args:
        rows: ``log_history`` of transformers' trainer state; values that are not numbers are
            skipped, and values that are not finite leave a gap.

    Raises:
        ImportError: matplotlib is missing.
    """
    pairs = {f"{_PAIR}{pair}": pair for pair in pairs_of(rows)}
    speed = next((name for name in _SPEEDS if _has(rows, name)), None)
    found = [
        *(_plot(rows, *loss, scaled=True) for loss in _loss_plots(pairs)),
        _plot(rows, *_DISTANCE_PLOT, ylabel="distance", scaled=True),
        _plot(rows, *_SCORE_PLOT, ylabel="score (%)"),
        _plot(rows, *_ANSWER_PLOT, ylabel="share of answers"),
        _plot(rows, *_LENGTH_PLOT, ylabel="tokens"),
        _plot(rows, *_RATE_PLOT, ylabel="learning rate"),
        _plot(rows, *_speed_plot(speed), ylabel="tokens / s"),
        _plot(rows, *_NORM_PLOT, ylabel="norm"),
    ]
    return tuple(plot for plot in found if plot is not None)


def _loss_plots(pairs):
    """Name, title, ``{name in the log: label}`` and caption of each figure in nats."""
    return (
        (
            "terms",
            "Loss terms",
            TERMS,
            "Means over the target tokens since the last log. The total is the weighted sum that "
            "is minimised; the other terms are shown unweighted.",
        ),
        (
            "pairs",
            "Lens divergence, by pair",
            pairs,
            "One line per pair of depths (student:teacher) in lens_layers.",
        ),
        (
            "evaluation",
            "Evaluation",
            {f"eval_{name}": label for name, label in TERMS.items()},
            "The same terms on the evaluation data; every term is measured, whatever its weight.",
        ),
    )


_DISTANCE_PLOT = (
    "features",
    "Feature loss",
    _DISTANCES,
    "The distance of hidden states, mean over pairs and target tokens; not in nats.",
)
_SCORE_PLOT = (
    "scores",
    "Scores of answers",
    _SCORES,
    "Scores of answers generated for the evaluation data, in percent: 100 is the best.",
)
_ANSWER_PLOT = (
    "answers",
    "Answers of the student in training",
    _ANSWERS,
    "Of the answers that the student wrote in on-policy steps since the last log: the share that "
    "was cut at on_policy_max_new_tokens, and the share that ended at once.",
)
_LENGTH_PLOT = (
    "lengths",
    "Their mean length",
    {"on_policy_length": "mean length"},
    "In tokens, the end of an answer included.",
)
_RATE_PLOT = (
    "rate",
    "Learning rate",
    {"learning_rate": "learning rate"},
    "The learning rate of each logged step.",
)
_NORM_PLOT = (
    "gradient",
    "Gradient norm",
    {"grad_norm": "gradient norm"},
    "Before clipping, at the last step before each log.",
)


def _speed_plot(name):
    return ("speed", "Throughput", {name: "tokens / s"} if name else {}, _SPEEDS.get(name, ""))


def pairs_of(rows: Rows) -> list[str]:
    """The depth pairs, such as "2:8", whose lens loss was logged, in ascending order."""
    names = {name.removeprefix(_PAIR) for row in rows for name in row if name.startswith(_PAIR)}
    return sorted((n for n in names if re.fullmatch(r"\d+:\d+(@\d+)?", n)), key=depths_in)


def first_and_last(rows: Rows) -> Table:
    """A table of every loss term and pair, in the first and the last log that has it."""
    names = {**TERMS, **{f"{_PAIR}{pair}": f"lens {pair}" for pair in pairs_of(rows)}}
    names |= {f"eval_{name}": f"evaluation: {label}" for name, label in TERMS.items()} | {
        name: f"evaluation: {label}" for name, label in _SCORES.items()
    }
    names |= {name: f"{label} (a distance)" for name, label in _DISTANCES.items()}
    found = []
    for name, label in names.items():
        steps, values = _series(rows, name)
        if values:
            found.append((label, values[0], steps[0], values[-1], steps[-1]))
    columns = ("nats per token, or score in %", "first", "at step", "last", "at step")
    return Table(columns, tuple(found))


def _plot(rows, name, title, names, caption, *, ylabel="nats per token", scaled=False):
    """One line per logged name; None if none was logged."""
    curves = []
    for number, (key, label) in enumerate(names.items()):
        steps, values = _series(rows, key)
        if any(map(math.isfinite, values)):
            curves.append(Curve(number, label, steps, values))
    if not curves:
        return None
    scales = {"linear": "Linear", "log": "Logarithmic"}
    offered = scaled and all(y > 0 for c in curves for y in c.y if math.isfinite(y))
    drawings = [
        Drawing(
            _lines(curves, ylabel, scale),
            f"{title} by step: {', '.join(curve.label for curve in curves)}",
            f"scale={scale}" if offered else "",
        )
        for scale in (scales if offered else ["linear"])
    ]
    labels = {curve.number: curve.label for curve in curves}
    points = [(c.label, *xy) for c in curves for xy in zip(c.x, c.y, strict=True)]
    return Plot(
        name,
        title,
        caption,
        tuple(drawings),
        Table(("what", "step", "value"), tuple(points)),
        (Choice("scale", "Scale", scales),) if offered else (),
        legend(labels) if len(curves) > 1 else (),
    )


def _lines(curves, ylabel, scale):
    figure = new_figure()
    axes = figure.subplots()
    frame(axes, "step", ylabel)
    for curve in curves:
        kept = [y if math.isfinite(y) else math.nan for y in curve.y]
        every = max(1, len(kept) // _MARKERS)
        (line,) = axes.plot(
            curve.x, kept, label=curve.label, markevery=every, **style_of(curve.number)
        )
        mark(line, series=series_of(curve.number))
    axes.xaxis.get_major_locator().set_params(integer=True)
    if scale == "log":
        _dress_logarithm(axes)
    elif min(y for c in curves for y in c.y if math.isfinite(y)) >= 0:
        axes.set_ylim(bottom=0)
    return figure


def _dress_logarithm(axes):
    """Make the y axis logarithmic, with ticks even if it spans less than a decade."""
    from matplotlib.ticker import AutoLocator, LogLocator

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 8 * low else AutoLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    axes.minorticks_off()


def _series(rows, name):
    """Steps and values of the rows that hold a number by this name."""
    found = [
        (row["step"], float(row[name]))
        for row in rows
        if _is_number(row.get(name)) and _is_number(row.get("step"))
    ]
    return [step for step, _ in found], [value for _, value in found]


def _has(rows, name):
    return any(map(math.isfinite, _series(rows, name)[1]))


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)
