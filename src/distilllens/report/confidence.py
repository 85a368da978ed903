"""Plots of confidence: above and below the teacher, calibration, and the dual-sided penalty."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distilllens.lens.comparison import DECADES, PENALTIES, Comparison
from distilllens.lens.reading import Inspection, Reading
from distilllens.lens.summary import NUM_CONFIDENCE_BINS, reliability
from distilllens.report import drawings
from distilllens.report.by_depth import legend, relative
from distilllens.report.page import Drawing, Plot
from distilllens.report.parts import Choice, Entry, Table


def confidence_plot(comparisons: Sequence[Comparison], names: Sequence[str]) -> Plot:
    """Over- and underconfidence by depth, one drawing per student."""
    variants, rows = [], []
    for number, (name, comparison) in enumerate(zip(names, comparisons, strict=True), 1):
        pairs = comparison.pairs
        over, under = comparison.over.mean(1), comparison.under.mean(1)
        figure = drawings.confidence(relative(len(pairs)), over, under)
        description = f"Probability of {name} above and below the teacher's, by relative depth"
        variants.append(Drawing(figure, description, f"student={number}"))
        for pair, o, u in zip(pairs, over.tolist(), under.tolist(), strict=True):
            rows.append((name, *pair, *o, *u))
    columns = ("over_top_ten", "over_rest", "under_top_ten", "under_rest")
    return Plot(
        "confidence",
        "Over- and underconfidence, by depth",
        "q is the student's probability of a token, p the teacher's. Above 0: how much the student "
        "exceeds the teacher (the sum of q - p where q > p). Below 0: how much it falls short "
        "(the sum of p - q where p > q). Both sums equal the total variation distance, because "
        "probabilities sum to 1; the colours show which tokens they come from.",
        tuple(variants),
        Table(("student", "student_depth", "teacher_depth", *columns), tuple(rows)),
        _student_choice(names),
        tuple(
            Entry(area, drawings.CONFIDENCE_LABELS[area], style)
            for area, style in drawings.CONFIDENCE_STYLES.items()
        ),
    )


def reliability_plot(readings: Sequence[Reading], targets: Tensor, names: Sequence[str]) -> Plot:
    """Accuracy against confidence at every model's output.

    Raises:
        ValueError: no next token is known.
    """
    curves, rows, totals = [], [], []
    for number, (name, reading) in enumerate(zip(names, readings, strict=True)):
        found = reliability(reading, targets)
        curves.append(drawings.Curve(number, name, found.confidence, found.accuracy))
        bins = list(zip(found.confidence, found.accuracy, found.counts, strict=True))
        rows += [(name, *numbers) for numbers in bins]
        num = sum(found.counts)
        confidence, accuracy = (sum(row[i] * row[2] for row in bins) / num for i in (0, 1))
        totals.append((name, num, accuracy, confidence, found.error))
    columns = ("model", "tokens", "accuracy", "mean confidence", "calibration error")
    return Plot(
        "reliability",
        "Reliability of the output",
        "Accuracy of the top token against its probability (the confidence), in "
        f"{NUM_CONFIDENCE_BINS} bins of equal width. A model is calibrated on the diagonal, "
        "overconfident below it and underconfident above it. The expected calibration error is the "
        "mean distance of the bins from the diagonal, weighted by their tokens. Bins with few "
        "tokens are noisy.",
        (Drawing(drawings.calibration(curves), "Accuracy against confidence at the output"),),
        Table(("model", "confidence", "accuracy", "tokens"), tuple(rows)),
        legend=legend(dict(enumerate(names))),
        shown=(("", Table(columns, tuple(totals))),),
    )


def penalty_plot(inspection: Inspection, names: Sequence[str]) -> Plot:
    """Penalty over r = q / p, with the measured ratios of every student and depth."""
    variants, shown, rows, choices = [], [], [], []
    for number, (name, comparison) in enumerate(zip(names, inspection.comparisons, strict=True), 1):
        whens = [f"depth{number}={s}" for s, _ in comparison.pairs]
        description = f"Penalties over the ratio of {name}'s probability to the teacher's"
        figure = drawings.penalty(comparison.ratios, whens)
        variants.append(Drawing(figure, description, f"student={number}"))
        choices.append(_depth_choice(number, comparison, inspection.trained[number - 1]))
        for when, sums in zip(whens, comparison.penalties.tolist(), strict=True):
            shown.append((f"student={number} {when}", _sides(sums)))
        rows += [(name, *row) for row in _ratio_rows(comparison)]
    columns = ("student_depth", "teacher_depth", "r_from", "r_to", "teacher_share", "student_share")
    lines = [Entry(name, drawings.NAMES[name], drawings.PENALTY_STYLES[name]) for name in PENALTIES]
    areas = [
        Entry(role, text, drawings.ratio_style(role))
        for role, text in drawings.RATIO_LABELS.items()
    ]
    return Plot(
        "penalty",
        "Penalty by probability ratio, and the ratios of the student",
        "Top: the penalty f(r) of each divergence. Bottom: the share of the student's and of the "
        "teacher's probability on tokens with ratio r, at the chosen depth; the outermost bars "
        "include everything beyond. The table splits each divergence into tokens where the "
        "student is too low (r\u00a0<\u00a01) and where it is too high (r\u00a0>\u00a01).",
        tuple(variants),
        Table(("student", *columns), tuple(rows)),
        (*_student_choice(names), *choices),
        (*lines, *areas),
        tuple(shown),
    )


def _student_choice(names):
    return (Choice("student", "Student", {str(n): name for n, name in enumerate(names, 1)}),)


def _depth_choice(number, comparison, trained):
    """A choice of depth pair; initially the middle one of the trained pairs, or of all pairs."""
    pairs = sorted(trained) or comparison.pairs
    paired = {s for s, _ in trained}
    options = {
        str(s): f"{s} : {t}{' (paired)' if s in paired else ''}" for s, t in comparison.pairs
    }
    chosen = str(pairs[len(pairs) // 2][0])
    label = "Depth, student : teacher"
    return Choice(f"depth{number}", label, options, chosen, f"student={number}")


def _sides(sums):
    """A table of the penalty of each divergence for tokens that are too low and too high."""
    rows = [
        (drawings.NAMES[name], low + high, low, high)
        for name, (low, high) in zip(PENALTIES, sums, strict=True)
    ]
    return Table(("nats per token", "total", "student too low", "student too high"), tuple(rows))


def _ratio_rows(comparison):
    num = comparison.ratios.shape[-1]
    edges = [10**x for x in torch.linspace(-DECADES, DECADES, num + 1).tolist()]
    for pair, (teacher, student) in zip(comparison.pairs, comparison.ratios.tolist(), strict=True):
        for k in range(num):
            if teacher[k] or student[k]:
                yield (*pair, edges[k], edges[k + 1], teacher[k], student[k])
