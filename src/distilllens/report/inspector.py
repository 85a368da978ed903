"""The inspector: an Inspection as sections of a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from distilllens.lens.reading import Inspection
from distilllens.report.by_depth import divergence_plot, shape_plots
from distilllens.report.confidence import confidence_plot, penalty_plot, reliability_plot
from distilllens.report.lens_table import lens_table
from distilllens.report.page import Section, Widget
from distilllens.report.parts import Table

_DIVERGENCE = (
    "Each depth of a student, read through its lens, is compared with one depth "
    "of the teacher over the whole vocabulary: with its partner if lens_layers pairs it, otherwise "
    "with the teacher depth at the nearest relative depth."
)
_SHAPE = "Each model on its own: what it would predict if it ended at each depth."
_PREDICTS = "The most likely {}tokens at every depth, from the output down to the embeddings."
_OF_NEXT = (
    "with the token that follows it below. Each cell is one depth's top prediction of that next "
    "token"
)
_OF_OWN = "which is predicted in its own place. Each cell is one depth's top prediction of it"
_CONFIDENCE = (
    "Whether a student puts its probability on the same tokens as the teacher, and whether the "
    "confidence of each model matches its accuracy."
)
_PENALTY = (
    "A divergence is the sum of p · f(r) over the vocabulary, where p is the teacher's probability "
    "and r the student's probability divided by p. Where r\u00a0<\u00a01 the student is too low, "
    "where r\u00a0>\u00a01 it is too high. Forward KL penalises mostly tokens that are too low, "
    "reverse KL mostly tokens that are too high, Jeffreys and JSD penalise both."
)


def inspector_sections(
    inspection: Inspection,
    names: Sequence[str],
    text_of: Callable[[int], str],
) -> list[Section]:
    """All the inspector's figures, in page order (for ``page.render_page``).

    Args:
        names: of the teacher (or the only model), then of the students.
        text_of: token id -> its text on the page (``tokens.token_text``).

    Raises:
        ImportError: matplotlib is missing.
    """
    readings, students = [inspection.teacher, *inspection.students], names[1:]
    targets = inspection.targets
    table = lens_table(inspection, names, text_of)
    predicts = _PREDICTS.format("" if table["own"] else "next ")
    sections = [
        Section("At a glance", _coverage(inspection), (_summary(inspection, names),)),
        Section("How a prediction takes shape", _SHAPE, shape_plots(readings, names)),
        Section("What each depth predicts", predicts, (_lens(table),)),
    ]
    confidence = [reliability_plot(readings, targets, names)] if (targets >= 0).any() else []
    if students:
        confidence.insert(0, confidence_plot(inspection.comparisons, students))
        divergence = (divergence_plot(inspection, students),)
        sections.insert(1, Section("How far from the teacher", _DIVERGENCE, divergence))
    if confidence:
        sections.append(Section("Confidence and calibration", _CONFIDENCE, tuple(confidence)))
    if students:
        penalty = (penalty_plot(inspection, students),)
        sections.append(Section("What each divergence penalises", _PENALTY, penalty))
    return sections


def _coverage(inspection):
    num, texts = len(inspection.targets), len(inspection.passages)
    tokens = "1 token" if num == 1 else f"{num:,} tokens"
    where = "1 text" if texts == 1 else f"{texts:,} texts"
    return f"All figures cover {tokens} of {where}; divergences and entropies are in nats."


def _summary(inspection, names):
    columns = ["model", "blocks", "output entropy", "top token settles at depth"]
    if inspection.comparisons:
        columns += ["output JSD", "output KL(teacher ‖ student)", "output KL(student ‖ teacher)"]
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
    compared = " Rows at the same height are compared; ◆ marks depths paired by lens_layers."
    pairs = compared if len(table["models"]) > 1 else ""
    num, of = table["left_out"], _OF_OWN if table["own"] else _OF_NEXT
    rest = (
        f" To keep the page small, {num:,} more tokens appear only in the figures." if num else ""
    )
    return Widget(
        "lens",
        "Lens table",
        f"Each column is one token of the text, {of}, in bold where it is correct.{pairs} "
        f"Hover, tap, or use the arrow keys to see the ten most likely tokens.{rest}",
        table,
        "lens_table.js",
    )
