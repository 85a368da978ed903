"""Sections of a study's page: its answers, differences with intervals, distances by depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distilllens.report.by_depth import legend
from distilllens.report.canvas import colour, frame, new_figure
from distilllens.report.drawings import DEPTH_LABEL, Curve, lines
from distilllens.report.page import Drawing, Plot, Section
from distilllens.report.parts import Choice, Table
from distilllens.report.texts import Facts, Listing

_HEIGHT = 0.34  # inches of a method in the figure of differences


@dataclass(frozen=True)
class Interval:
    """A method's difference from the baseline in one score, by seed and with its interval.

    Args:
        low, high: None with one seed.
        by_seed: the difference of each seed.
    """

    method: str
    difference: float
    low: float | None
    high: float | None
    by_seed: tuple[float, ...]


@dataclass(frozen=True)
class Differences:
    """All methods' differences in one score.

    Args:
        score: its name, with its unit.
        better: "lower" or "higher".
    """

    score: str
    better: str
    intervals: tuple[Interval, ...]


@dataclass(frozen=True)
class StudyPage:
    """What a study's page shows.

    Args:
        answers: method -> the answer in a sentence, and (score, difference in words).
        tables: (title, text, table).
        depths: method -> the JSD at every depth of the student.
        facts: name -> value, a few words each.
        file: the study file, as text.
    """

    baseline: str
    answers: Mapping[str, tuple[str, Sequence[tuple[str, str]]]]
    differences: Sequence[Differences]
    depths: Mapping[str, Sequence[float]]
    tables: Sequence[tuple[str, str, Table]]
    notes: Sequence[str]
    facts: Mapping[str, str]
    file: str
    command: str


def study_sections(page: StudyPage) -> list[Section]:
    """All sections, in page order (for ``page.render_page``).

    Raises:
        ImportError: matplotlib is missing.
    """
    rows = [(name, *each) for name, (_, details) in page.answers.items() for each in details]
    summaries = {name: summary for name, (summary, _) in page.answers.items()}
    sections = [
        Section(
            "Answers",
            " ".join([f"Each method against {page.baseline}.", *page.notes]),
            (
                Facts("In short", summaries),
                Table(("method", "score", "difference in words"), tuple(rows)),
                Facts("The study", page.facts),
            ),
        )
    ]
    if any(each.intervals for each in page.differences):
        sections.append(
            Section(
                "Differences",
                "Bars are 95 % intervals that count training seeds and examples: one that does not "
                "touch the line settles the difference.",
                (_differences_plot(page.differences, page.baseline),),
            )
        )
    if page.depths:
        sections.append(
            Section(
                "How far from the teacher",
                "Every depth of the students is read through their own final norm and head, and "
                "compared with the teacher's at the same relative depth: means over seeds.",
                (_depths_plot(page.depths),),
            )
        )
    sections += [Section(title, text, (table,)) for title, text, table in page.tables]
    parts = (Listing("Command", page.command), Listing("Study", page.file))
    sections.append(Section("Repeat this study", "The same command resumes it.", parts))
    return sections


def _differences_plot(differences, baseline):
    drawings, options, rows = [], {}, []
    for number, each in enumerate(differences):
        if not each.intervals:
            continue
        word = f"score{number}"
        options[word] = each.score
        drawings.append(
            Drawing(
                _forest(each),
                f"Difference from {baseline} in {each.score}, {each.better} is better: one row per "
                "method",
                f"score={word}",
            )
        )
        rows += [
            (each.score, one.method, one.difference, one.low, one.high) for one in each.intervals
        ]
    return Plot(
        "differences",
        f"Difference from {baseline}",
        "Filled: mean over seeds; rings: each seed. Left of the line, the method is lower.",
        tuple(drawings),
        Table(("score", "method", "difference", "low", "high"), tuple(rows)),
        (Choice("score", "Score", options),),
    )


def _forest(each):
    figure = new_figure(height=0.9 + _HEIGHT * len(each.intervals))
    axes = figure.subplots()
    frame(axes, f"{each.score} ({each.better} is better)", "")
    axes.axvline(0, color=colour("ink"), linewidth=1)
    for row, one in enumerate(reversed(each.intervals)):
        if one.low is not None:
            axes.plot([one.low, one.high], [row, row], color=colour("first"), linewidth=2.2)
        axes.plot(
            one.by_seed,
            [row] * len(one.by_seed),
            linestyle="none",
            marker="o",
            markersize=6,
            markerfacecolor="none",
            markeredgecolor=colour("second"),
        )
        axes.plot([one.difference], [row], marker="o", markersize=5, color=colour("first"))
    axes.set_yticks(range(len(each.intervals)), [one.method for one in reversed(each.intervals)])
    axes.set_ylim(-0.6, len(each.intervals) - 0.4)
    return figure


def _depths_plot(depths):
    curves = [
        Curve(number, name, [i / (len(values) - 1) for i in range(len(values))], values)
        for number, (name, values) in enumerate(depths.items(), 1)
    ]
    rows = [(curve.label, depth, value) for curve in curves for depth, value in enumerate(curve.y)]
    figure = lines(curves, xlabel=DEPTH_LABEL, ylabel="JSD (nats per token)")
    return Plot(
        "depths",
        "Divergence from the teacher, by depth",
        "Lower is closer to the teacher; the JSD is at most ln 2 = 0.693.",
        (Drawing(figure, "JSD between student and teacher by depth: one line per method"),),
        Table(("method", "student_depth", "jsd"), tuple(rows)),
        legend=legend({curve.number: curve.label for curve in curves}),
    )
