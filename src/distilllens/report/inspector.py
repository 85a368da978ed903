"""The inspector: what an Inspection says, as sections of a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from distilllens.lens.reading import Inspection
from distilllens.report.by_depth import divergence_plot, shape_plots
from distilllens.report.confidence import confidence_plot, penalty_plot, reliability_plot
from distilllens.report.lens_table import lens_table
from distilllens.report.page import Section, Widget
from distilllens.report.parts import Table

_APART = (
    "Each depth of a student, read through its own final norm and head, against a depth of the "
    "teacher, over the whole vocabulary. Depths that lens_layers pairs meet their partner; any "
    "other meets the teacher's depth at the nearest relative depth."
)
_SHAPE = "Each model alone: what its depths would predict if its stack ended there."
_SAYS = "The likeliest next tokens at every depth, the output first and the embeddings last."
_SURE = "Whether probability lies where the teacher puts it, and whether it is earned in the end."
_SIDES = (
    "With r = student's probability / teacher's, a divergence charges p · f(r) for every token of "
    "the vocabulary, p being the teacher's probability. Where r < 1 the student is too low, where "
    "r > 1 too high. A loss pushes where it charges: forward KL mostly on the left, reverse KL "
    "mostly on the right, Jeffreys and JSD on both sides."
)


def inspector_sections(
    inspection: Inspection,
    names: Sequence[str],
    say: Callable[[int], str],
) -> list[Section]:
    """All the inspector's figures, in the order of the page (for ``page.render_page``).

    Args:
        names: of the teacher (or the one model), then of the students.
        say: what a token says (``tokens.token_text``).

    Raises:
        ImportError: matplotlib is missing.
    """
    readings, students = [inspection.teacher, *inspection.students], names[1:]
    targets = inspection.targets
    table = lens_table(inspection, names, say)
    sections = [
        Section("At a glance", _counted(inspection), (_glance(inspection, names),)),
        Section("How a prediction takes shape", _SHAPE, shape_plots(readings, names)),
        Section("What each depth says", _SAYS, (_lens(table),)),
    ]
    sure = [reliability_plot(readings, targets, names)] if (targets >= 0).any() else []
    if students:
        sure.insert(0, confidence_plot(inspection.comparisons, students))
        apart = (divergence_plot(inspection, students),)
        sections.insert(1, Section("How far apart", _APART, apart))
    if sure:
        sections.append(Section("How sure", _SURE, tuple(sure)))
    if students:
        sides = (penalty_plot(inspection, students),)
        sections.append(Section("What each loss would push on", _SIDES, sides))
    return sections


def _counted(inspection):
    num, texts = len(inspection.targets), len(inspection.documents)
    tokens = "1 token" if num == 1 else f"{num:,} tokens"
    where = "1 text" if texts == 1 else f"{texts:,} texts"
    return f"All figures are over {tokens} of {where}; divergences and entropies are in nats."


def _glance(inspection, names):
    columns = ["model", "blocks", "entropy of the output", "top token settles at"]
    if inspection.comparisons:
        columns += ["JSD at the output", "KL(teacher ‖ student)", "KL(student ‖ teacher)"]
    rows = []
    readings = [inspection.teacher, *inspection.students]
    for number, (name, reading) in enumerate(zip(names, readings, strict=True)):
        blocks = len(reading.tokens) - 1
        row = [name, blocks, float(reading.entropy[-1].double().mean())]
        row.append(f"{float(reading.settled.double().mean()):.1f} of {blocks}")
        if number:
            row += inspection.comparisons[number - 1].divergences[-1].mean(0).tolist()
        rows.append((*row, *[None] * (len(columns) - len(row))))
    return Table(tuple(columns), tuple(rows))


def _lens(table):
    pairs = " Rows of one height are compared; ◆ marks depths that lens_layers pairs."
    each = pairs if len(table["models"]) > 1 else ""
    cut = table["left_out"]
    less = f" To keep this page small, {cut:,} further tokens are not shown here." if cut else ""
    return Widget(
        "lens",
        "Lens table",
        "Each column is a token that was just read; under it stands the token that in fact "
        "follows. Each cell is what one depth would say next, in bold where that is right."
        f"{each} Hover, tap, or move with the arrow keys to see the ten likeliest tokens.{less}",
        table,
        "lens_table.js",
    )
