"""Figures over relative depth: how far students are from a teacher, and how predictions form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from distilllens.lens.comparison import MEASURES
from distilllens.lens.reading import Inspection, Reading
from distilllens.lens.summary import band, settled_share
from distilllens.report import drawings
from distilllens.report.canvas import style_of
from distilllens.report.page import Drawing, Plot
from distilllens.report.parts import Choice, Entry, Table

_QUARTILES = ("mean", "lower_quartile", "median", "upper_quartile")
_BANDS = "Lines are means over tokens; bands hold the middle half of the tokens."


def divergence_plot(inspection: Inspection, names: Sequence[str]) -> Plot:
    """Figure 1: the three divergences of every student, with rings at the depths of training.

    Args:
        names: of the students.
    """
    variants, rows = [], []
    for at, measure in enumerate(MEASURES):
        curves = []
        for number, (name, found) in enumerate(zip(names, inspection.comparisons, strict=True), 1):
            trained = [s for s, _ in inspection.trained[number - 1]]
            curves.append(_curve(number, name, found.divergences[..., at], ringed=trained))
            rows += [
                (name, s, t, "yes" if s in trained else "no", measure, *numbers)
                for (s, t), numbers in zip(found.pairs, _numbers(curves[-1]), strict=True)
            ]
        figure = drawings.lines(curves, ylabel=f"{drawings.NAMES[measure]}, nats per token")
        about = f"{drawings.NAMES[measure]} between teacher and student by relative depth"
        variants.append(Drawing(figure, about, f"measure={measure}"))
    columns = ("student", "student_depth", "teacher_depth", "trained", "measure", *_QUARTILES)
    return Plot(
        "divergence",
        "Divergence from the teacher, by depth",
        f"Lower is nearer; JSD is at most ln 2 = 0.693. {_BANDS} Rings mark the depths that "
        "lens_layers pairs.",
        tuple(variants),
        Table(columns, tuple(rows)),
        (Choice("measure", "Measure", {name: drawings.NAMES[name] for name in MEASURES}),),
        legend(dict(enumerate(names, 1))),
    )


def shape_plots(readings: Sequence[Reading], names: Sequence[str]) -> tuple[Plot, ...]:
    """Entropy, probability of the final token and settling, by depth, a line each model."""
    models = list(enumerate(zip(names, readings, strict=True)))
    return (
        _plot(
            "entropy",
            "Entropy, by depth",
            "High where a model still keeps many tokens open: what it knows there lies in small "
            f"probabilities. {_BANDS}",
            "entropy, nats",
            [_curve(n, name, reading.entropy) for n, (name, reading) in models],
        ),
        _plot(
            "final",
            "Probability of the final token, by depth",
            "How much probability each depth already gives to the token that the model's own "
            f"output ranks first. {_BANDS}",
            "probability",
            [_curve(n, name, reading.final_probability) for n, (name, reading) in models],
        ),
        _plot(
            "settled",
            "Where the top token settles",
            "The share of tokens whose top prediction is, from this depth on, the one of the "
            "output. The earlier a line rises, the less its last blocks change.",
            "share of tokens",
            [
                drawings.Curve(n, name, relative(len(reading.tokens)), settled_share(reading))
                for n, (name, reading) in models
            ],
        ),
    )


def legend(models: Mapping[int, str]) -> tuple[Entry, ...]:
    """A legend's entries for models by number."""
    return tuple(Entry(drawings.series_of(n), name, style_of(n)) for n, name in models.items())


def relative(depths: int) -> list[float]:
    """Depths 0 to K - 1 as 0 to 1."""
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
        (Drawing(drawings.lines(curves, ylabel=ylabel, most=most), f"{title}: a line each model"),),
        Table(("model", "depth", *(_QUARTILES if banded else ("share",))), tuple(rows)),
        legend=legend({curve.number: curve.label for curve in curves}),
    )


def _curve(number, label, values: Tensor, ringed=()):
    found = band(values)
    x = relative(len(values))
    return drawings.Curve(
        number, label, x, found.mean, found.lower, found.upper, ringed, found.median
    )


def _numbers(curve):
    return zip(curve.y, curve.lower, curve.median, curve.upper, strict=True)
