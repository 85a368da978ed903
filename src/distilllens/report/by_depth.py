"""Plots over depth: divergence of students from a teacher, entropy, and how predictions form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from torch import Tensor

from distilllens.lens.comparison import MEASURES
from distilllens.lens.reading import Inspection, Reading
from distilllens.lens.summary import band, settled_share
from distilllens.report import drawings
from distilllens.report.canvas import add_legend, save_png, style_of
from distilllens.report.page import Drawing, Plot
from distilllens.report.parts import Choice, Entry, Table

_QUARTILES = ("mean", "lower_quartile", "median", "upper_quartile")
_BANDS = "Lines are means over tokens; bands span the middle half of the tokens."


def divergence_plot(inspection: Inspection, names: Sequence[str]) -> Plot:
    """The three divergences of every student by depth, with rings at the trained depths.

    Args:
        names: the students' names.
    """
    variants, rows = [], []
    for index, measure in enumerate(MEASURES):
        curves = []
        for number, (name, comparison) in enumerate(
            zip(names, inspection.comparisons, strict=True), 1
        ):
            trained = [s for s, _ in inspection.trained[number - 1]]
            values = comparison.divergences[..., index]
            curves.append(_curve(number, name, values, ringed=trained))
            rows += [
                (name, s, t, "yes" if s in trained else "no", measure, *numbers)
                for (s, t), numbers in zip(comparison.pairs, _numbers(curves[-1]), strict=True)
            ]
        figure = drawings.lines(curves, ylabel=f"{drawings.NAMES[measure]} (nats per token)")
        description = f"{drawings.NAMES[measure]} between student and teacher, by relative depth"
        variants.append(Drawing(figure, description, f"measure={measure}"))
    columns = ("student", "student_depth", "teacher_depth", "trained", "measure", *_QUARTILES)
    return Plot(
        "divergence",
        "Divergence from the teacher, by depth",
        f"Lower is closer to the teacher; the JSD is at most ln 2 = 0.693. {_BANDS} Rings mark "
        "the depths paired by lens_layers.",
        tuple(variants),
        Table(columns, tuple(rows)),
        (Choice("measure", "Measure", {name: drawings.NAMES[name] for name in MEASURES}),),
        legend(dict(enumerate(names, 1))),
    )


def shape_plots(readings: Sequence[Reading], names: Sequence[str]) -> tuple[Plot, ...]:
    """Entropy, probability of the final token, and settling, by depth: one line per model."""
    models = list(enumerate(zip(names, readings, strict=True)))
    return (
        _plot(
            "entropy",
            "Entropy, by depth",
            f"High entropy means that many next tokens are still likely at that depth. {_BANDS}",
            "entropy (nats)",
            [_curve(n, name, reading.entropy) for n, (name, reading) in models],
        ),
        _plot(
            "final",
            "Probability of the final token, by depth",
            "The probability at each depth of the token that the model finally ranks first. "
            f"{_BANDS}",
            "probability",
            [_curve(n, name, reading.final_probability) for n, (name, reading) in models],
        ),
        _plot(
            "settled",
            "Where the top token settles",
            "The share of tokens whose top prediction no longer changes from this depth on. The "
            "earlier a line rises, the less the last blocks change.",
            "share of tokens",
            [
                drawings.Curve(n, name, relative(len(reading.tokens)), settled_share(reading))
                for n, (name, reading) in models
            ],
        ),
    )


def plot_divergence_by_depth(
    path: str | PathLike,
    depths: Sequence[tuple[int, int]],
    curves: Mapping[str, Sequence[float]],
    *,
    title: str = "Divergence from the teacher, by depth",
    ylabel: str = "Jensen-Shannon divergence (nats per token)",
) -> None:
    """Draw one line per model over pairs (student depth, teacher depth), and save it as a PNG.

    Args:
        path: the file to write; its folder must exist.
        depths: the pairs, in ascending order.
        curves: label -> one value per pair, in nats per token, >= 0.

    Raises:
        ValueError: no pair, no curve, or a curve whose length differs from that of ``depths``.
        ImportError: matplotlib is missing; the message says how to install it.
    """
    if not depths or not curves:
        raise ValueError("a figure by depth needs at least one pair of depths and one curve")
    for label, values in curves.items():
        if len(values) != len(depths):
            raise ValueError(f"curve {label!r} has {len(values)} values for {len(depths)} depths")
    x = range(len(depths))
    students = [drawings.Curve(n, label, x, y) for n, (label, y) in enumerate(curves.items(), 1)]
    figure = drawings.lines(students, xlabel="depth (student : teacher)", ylabel=ylabel)
    figure.set_size_inches(6.4, 4.0)
    (axes,) = figure.axes
    axes.set_xticks(x, [f"{student}:{teacher}" for student, teacher in depths])
    axes.set_title(title, fontsize=11)
    add_legend(figure)
    save_png(figure, Path(path))


def legend(models: Mapping[int, str]) -> tuple[Entry, ...]:
    """Legend entries for models, by number."""
    return tuple(Entry(drawings.series_of(n), name, style_of(n)) for n, name in models.items())


def relative(depths: int) -> list[float]:
    """Relative depth, 0 to 1, of the depths 0 to K - 1."""
    return [depth / (depths - 1) for depth in range(depths)]


def _plot(name, title, caption, ylabel, curves):
    banded = curves[0].lower is not None
    rows = [
        (curve.label, depth, *numbers)
        for curve in curves
        for depth, numbers in enumerate(_numbers(curve) if banded else [(y,) for y in curve.y])
    ]
    most = None if name == "entropy" else 1.02
    return Plot(
        name,
        title,
        caption,
        (
            Drawing(
                drawings.lines(curves, ylabel=ylabel, most=most), f"{title}: one line per model"
            ),
        ),
        Table(("model", "depth", *(_QUARTILES if banded else ("share",))), tuple(rows)),
        legend=legend({curve.number: curve.label for curve in curves}),
    )


def _curve(number, label, values: Tensor, ringed=()):
    b = band(values)
    x = relative(len(values))
    return drawings.Curve(number, label, x, b.mean, b.lower, b.upper, ringed, b.median)


def _numbers(curve):
    return zip(curve.y, curve.lower, curve.median, curve.upper, strict=True)
