"""Figures of the two sides of a divergence: confidence, reliability and the dual-sided penalty."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distilllens.lens.comparison import DECADES, PENALTIES, Comparison
from distilllens.lens.reading import Inspection, Reading
from distilllens.lens.summary import reliability
from distilllens.report import drawings
from distilllens.report.by_depth import legend, relative
from distilllens.report.page import Drawing, Plot
from distilllens.report.parts import Choice, Entry, Table


def confidence_plot(comparisons: Sequence[Comparison], names: Sequence[str]) -> Plot:
    """Over- and underconfidence by depth, a drawing each student."""
    variants, rows = [], []
    for number, (name, found) in enumerate(zip(names, comparisons, strict=True), 1):
        over, under = found.over.mean(1), found.under.mean(1)
        figure = drawings.confidence(relative(len(found.pairs)), over, under)
        about = f"Probability that {name} puts above and below the teacher, by relative depth"
        variants.append(Drawing(figure, about, f"student={number}"))
        for pair, o, u in zip(found.pairs, over.tolist(), under.tolist(), strict=True):
            rows.append((name, *pair, *o, *u))
    columns = ("over_top_ten", "over_rest", "under_top_ten", "under_rest")
    return Plot(
        "confidence",
        "Over- and underconfidence, by depth",
        "Above 0: probability that the student puts on tokens beyond the teacher's (the sum of "
        "q - p where q > p). Below 0: what it takes from other tokens (p - q where p > q). Both "
        "models' probabilities sum to 1, so the two are equally large, the total variation; what "
        "differs is on which tokens they lie.",
        tuple(variants),
        Table(("student", "student_depth", "teacher_depth", *columns), tuple(rows)),
        _student_choice(names),
        tuple(
            Entry(area, drawings.CONFIDENCE_LABELS[area], style)
            for area, style in drawings.CONFIDENCE_STYLES.items()
        ),
    )


def reliability_plot(readings: Sequence[Reading], targets: Tensor, names: Sequence[str]) -> Plot:
    """The reliability curve of every model's output.

    Raises:
        ValueError: no target is known.
    """
    curves, rows, shown = [], [], []
    for number, (name, reading) in enumerate(zip(names, readings, strict=True)):
        found = reliability(reading, targets)
        curves.append(drawings.Curve(number, name, found.confidence, found.accuracy))
        bins = list(zip(found.confidence, found.accuracy, found.counts, strict=True))
        rows += [(name, *numbers) for numbers in bins]
        total = sum(found.counts)
        sure, right = (sum(row[at] * row[2] for row in bins) / total for at in (0, 1))
        shown.append((name, total, right, sure, found.error))
    columns = ("model", "tokens", "top token right", "its mean probability", "calibration error")
    return Plot(
        "reliability",
        "Reliability of the output",
        "How often the top token is the one that follows, over how probable the model finds it, in "
        "ten bins. On the diagonal a model is right as often as it says; below it, overconfident. "
        "The expected calibration error is the mean distance from the diagonal; bins of few tokens "
        "scatter.",
        (Drawing(drawings.calibration(curves), "Accuracy over confidence at the output"),),
        Table(("model", "confidence", "accuracy", "tokens"), tuple(rows)),
        legend=legend(dict(enumerate(names))),
        shown=(("", Table(columns, tuple(shown))),),
    )


def penalty_plot(inspection: Inspection, names: Sequence[str]) -> Plot:
    """The generators over r = q / p, with the actual ratios of every student and depth."""
    variants, shown, rows, choices = [], [], [], []
    for number, (name, found) in enumerate(zip(names, inspection.comparisons, strict=True), 1):
        whens = [f"depth{number}={s}" for s, _ in found.pairs]
        about = f"Penalties over the ratio of {name}'s probability to the teacher's"
        figure = drawings.penalty(found.ratios, whens)
        variants.append(Drawing(figure, about, f"student={number}"))
        choices.append(_depth_choice(number, found, inspection.trained[number - 1]))
        for when, sums in zip(whens, found.penalties.tolist(), strict=True):
            shown.append((f"student={number} {when}", _sides(sums)))
        rows += [(name, *row) for row in _ratio_rows(found)]
    columns = ("student_depth", "teacher_depth", "r_from", "r_to", "teacher_share", "student_share")
    lines = [Entry(name, drawings.NAMES[name], drawings.PENALTY_STYLES[name]) for name in PENALTIES]
    areas = [Entry(w, text, drawings.ratio_style(w)) for w, text in drawings.RATIO_LABELS.items()]
    return Plot(
        "penalty",
        "The penalty of a ratio, and the ratios there are",
        "Above: what each divergence charges, f(r). Below, at the chosen depth: how much of the "
        "teacher's and of the student's probability lies on tokens of that ratio; the outermost "
        "bars hold all that lies beyond. The table says how many nats come from either side.",
        tuple(variants),
        Table(("student", *columns), tuple(rows)),
        (*_student_choice(names), *choices),
        (*lines, *areas),
        tuple(shown),
    )


def _student_choice(names):
    return (Choice("student", "Student", {str(n): name for n, name in enumerate(names, 1)}),)


def _depth_choice(number, found, trained):
    """The pairs of depths; at first the middle one of training, or of all."""
    pairs = sorted(trained) or found.pairs
    ringed = {s for s, _ in trained}
    options = {str(s): f"{s} : {t}{' (paired)' if s in ringed else ''}" for s, t in found.pairs}
    chosen = str(pairs[len(pairs) // 2][0])
    label = "Depth, student : teacher"
    return Choice(f"depth{number}", label, options, chosen, f"student={number}")


def _sides(sums):
    """A table of what each divergence charges for tokens that are too low and too high."""
    rows = [
        (drawings.NAMES[name], low + high, low, high)
        for name, (low, high) in zip(PENALTIES, sums, strict=True)
    ]
    return Table(("nats per token", "all", "student too low", "student too high"), tuple(rows))


def _ratio_rows(found):
    num = found.ratios.shape[-1]
    edges = [10**x for x in torch.linspace(-DECADES, DECADES, num + 1).tolist()]
    for pair, (teacher, student) in zip(found.pairs, found.ratios.tolist(), strict=True):
        for k in range(num):
            if teacher[k] or student[k]:
                yield (*pair, edges[k], edges[k + 1], teacher[k], student[k])
