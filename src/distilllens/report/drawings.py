"""Numbers in, matplotlib figures out; legends and files are added elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from distilllens.lens.comparison import DECADES, PENALTIES, penalties
from distilllens.report.canvas import colour, frame, mark, new_figure, style_of

DEPTH_LABEL = "relative depth (0 embeddings, 1 output)"
# Upper end of the penalty axis: any higher, and the JSD would look like a flat line.
_TALLEST = 3.0
NAMES = {
    "jsd": "JSD",
    "forward_kl": "KL(teacher ‖ student)",
    "reverse_kl": "KL(student ‖ teacher)",
    "jeffreys": "Jeffreys (both KLs)",
}
PENALTY_STYLES = {
    "forward_kl": {"color": colour("first"), "linewidth": 1.8},
    "reverse_kl": {"color": colour("second"), "linewidth": 1.8, "dashes": (5, 2)},
    "jeffreys": {"color": colour("third"), "linewidth": 1.8, "dashes": (1.5, 1.5)},
    "jsd": {"color": colour("ink"), "linewidth": 2.4},
}


@dataclass(frozen=True)
class Curve:
    """One line over x, with a band around it and rings around some of its points.

    Args:
        number: of the model, which sets colour and marker: 0 the teacher, 1 and up the students.
        ringed: indices of the points with a ring.
        median: not drawn; exported with the numbers.
    """

    number: int
    label: str
    x: Sequence[float]
    y: Sequence[float]
    lower: Sequence[float] | None = None
    upper: Sequence[float] | None = None
    ringed: Sequence[int] = ()
    median: Sequence[float] | None = None


def series_of(number: int) -> str:
    """The legend series of a model."""
    return f"model-{number}"


def lines(
    curves: Sequence[Curve], *, xlabel: str = DEPTH_LABEL, ylabel: str, most: float | None = None
):
    """Curves with their bands, on a y axis from 0 to ``most`` (default: to fit)."""
    figure = new_figure()
    axes = figure.subplots()
    frame(axes, xlabel, ylabel)
    for curve in curves:
        _line(axes, curve)
    axes.set_ylim(0, most)
    return figure


def _line(axes, curve):
    style, series = style_of(curve.number), series_of(curve.number)
    if curve.lower is not None:
        band = axes.fill_between(
            curve.x, curve.lower, curve.upper, color=style["color"], alpha=0.14, linewidth=0
        )
        mark(band, series=series)
    (line,) = axes.plot(curve.x, curve.y, label=curve.label, **style)
    mark(line, series=series)
    if curve.ringed:
        (rings,) = axes.plot(
            [curve.x[i] for i in curve.ringed],
            [curve.y[i] for i in curve.ringed],
            linestyle="none",
            marker="o",
            markersize=11,
            markerfacecolor="none",
            markeredgecolor=style["color"],
            markeredgewidth=1.2,
        )
        mark(rings, series=series)


def confidence(x: Sequence[float], over, under):
    """A student's probability above and below the teacher's, split by the teacher's top tokens.

    Args:
        over, under: ``[K, 2]``, means over tokens: (the teacher's top tokens, all others).
    """
    figure = new_figure()
    axes = figure.subplots()
    frame(axes, DEPTH_LABEL, "probability (mean over tokens)")
    for sign, values in ((1, over), (-1, under)):
        top = [sign * float(row[0]) for row in values]
        both = [sign * float(row.sum()) for row in values]
        for area, (low, high) in {"top": ([0] * len(top), top), "rest": (top, both)}.items():
            style = CONFIDENCE_STYLES[area]
            label = CONFIDENCE_LABELS[area] if sign > 0 else None
            patch = axes.fill_between(
                x, low, high, color=style["color"], alpha=style["area"], linewidth=0, label=label
            )
            mark(patch, series=area)
        axes.plot(x, both, color=colour("ink"), linewidth=1.2)
    most = max(0.05, 1.3 * float(max(over.sum(1).max(), under.sum(1).max())))
    axes.set_ylim(-most, most)
    axes.axhline(0, color=colour("ink"), linewidth=0.8)
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):.2g}")
    for y, text in ((0.97, "student above teacher"), (0.03, "student below teacher")):
        place = "top" if y > 0.5 else "bottom"
        axes.text(
            0.01, y, text, transform=axes.transAxes, va=place, fontsize=8.5, color=colour("muted")
        )
    return figure


CONFIDENCE_LABELS = {"top": "the teacher's top ten tokens", "rest": "all other tokens"}
CONFIDENCE_STYLES = {
    "top": {"color": colour("first"), "area": 0.75},
    "rest": {"color": colour("second"), "area": 0.75},
}


def calibration(curves: Sequence[Curve]):
    """Accuracy against confidence, with the diagonal of perfect calibration."""
    figure = lines(
        curves, xlabel="confidence (probability of the top token)", ylabel="accuracy", most=1.0
    )
    (axes,) = figure.axes
    axes.set_xlim(0, 1)
    axes.plot([0, 1], [0, 1], color=colour("muted"), linewidth=1, dashes=(2, 3))
    return figure


def penalty(ratios, whens: Sequence[str]):
    """Penalty f(r) over r = q / p, and below it the share of both models' probability, by r.

    Args:
        ratios: ``[K, 2, bins]`` (``Comparison.ratios``): shares of the teacher's probability and of
            the student's.
        whens: the choices for which each of the K histograms is shown.
    """
    figure = new_figure(height=4.0)
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 2))
    frame(above, "", "penalty f(r) (nats)")
    frame(below, "r = student's probability / teacher's", "share of probability")
    _generators(above)
    edges = torch.linspace(-DECADES, DECADES, ratios.shape[-1] + 1).tolist()
    x = [edges[0], *(edge for pair in pairwise(edges) for edge in pair), edges[-1]]
    for when, shares in zip(whens, ratios.tolist(), strict=True):
        for role, row in zip(RATIO_LABELS, shares, strict=True):
            y = [0, *(share for share in row for _ in (0, 1)), 0]
            style = ratio_style(role)
            faint = (style["color"], style["area"])
            (area,) = below.fill(
                x, y, facecolor=faint, edgecolor=style["color"], label=RATIO_LABELS[role]
            )
            mark(area, series=role, when=when)
    # Depth 0 is left out: embeddings can differ so much that all other depths would look flat.
    below.set_ylim(0, 1.05 * float(ratios[1:].max()))
    for axes in (above, below):
        axes.axvline(0, color=colour("muted"), linewidth=1, dashes=(2, 3))
    below.set_xlim(-DECADES, DECADES)
    ticks = range(-int(DECADES), int(DECADES) + 1)
    powers = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    below.set_xticks(ticks, ["1" if n == 0 else f"10{str(n).translate(powers)}" for n in ticks])
    return figure


RATIO_LABELS = {
    "teacher": "share of the teacher's probability",
    "student": "share of the student's probability",
}


def ratio_style(role: str) -> dict:
    """Style of the histogram of the teacher's or a student's probability over r."""
    return {"color": colour("teacher" if role == "teacher" else "first"), "area": 0.3}


def _generators(axes):
    log_ratio = torch.linspace(-DECADES, DECADES, 161, dtype=torch.float64)
    log_ratio = log_ratio * math.log(10)
    found = penalties(log_ratio.exp(), torch.ones_like(log_ratio), log_ratio)
    x = (log_ratio / math.log(10)).tolist()
    for name in PENALTIES:
        kept = [(a, b) for a, b in zip(x, found[name].tolist(), strict=True) if b <= 2 * _TALLEST]
        (line,) = axes.plot(*zip(*kept, strict=True), label=NAMES[name], **PENALTY_STYLES[name])
        mark(line, series=name)
    axes.set_ylim(0, _TALLEST)
    for x, text, side in ((0.015, "student too low", "left"), (0.985, "student too high", "right")):
        axes.text(
            x,
            0.96,
            text,
            transform=axes.transAxes,
            ha=side,
            va="top",
            fontsize=8.5,
            color=colour("muted"),
        )
