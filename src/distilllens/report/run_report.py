"""The report of a training run: its log, its models and its recipe as sections of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distilllens.lens.reading import Inspection
from distilllens.report.by_depth import divergence_plot
from distilllens.report.page import Section
from distilllens.report.parts import Table
from distilllens.report.texts import Answers, Facts, Listing, Sample
from distilllens.report.training import first_and_last, training_plots

_TRAINING = "What the trainer logged, by optimizer step."
_DEPTH = (
    "Each depth of a student, read through its own final norm and head, against a depth of the "
    "teacher, over the whole vocabulary: the student as it started, and as it is now."
)
_AGAIN = "What made this, and with what."


@dataclass(frozen=True)
class Observations:
    """What was seen of the models themselves.

    Args:
        read: the teacher and its students on a few texts; None where it cannot be had.
        students: their names, in the order of ``read``.
        texts: which texts were read, a sentence.
        speakers: who answered, in the order of each sample's answers.
        samples: questions and answers; none where there is nothing to ask.
        missing: a sentence for each thing that could not be shown, and why.
    """

    read: Inspection | None = None
    students: tuple[str, ...] = ()
    texts: str = ""
    speakers: tuple[str, ...] = ()
    samples: tuple[Sample, ...] = ()
    questions: str = ""
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """What a run's folder says of itself.

    Args:
        facts: what it is, in a few words each.
        rows: the trainer's log, oldest first.
        recipe: the fields that were set, as they would stand in a recipe.
        command: how it was started; empty when that is not known.
        versions: of the libraries it ran with; empty when that is not known.
    """

    facts: Mapping[str, str]
    rows: Sequence[Mapping[str, Any]]
    recipe: str
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


def run_sections(run: Run, observed: Observations) -> list[Section]:
    """All of a run's report, in the order of the page (for ``page.render_page``).

    Raises:
        ImportError: matplotlib is missing.
    """
    glance = first_and_last(run.rows)
    sections = [
        Section(
            "At a glance",
            " ".join(observed.missing),
            (Facts("The run", run.facts), *([glance] if glance.rows else [])),
        )
    ]
    sections += [training_section("Training", run.rows), *observation_sections(observed, _DEPTH)]
    return [*sections, again_section(run)]


def measured_section(
    text: str, columns: Sequence[str], rows: Sequence[tuple], missing: Sequence[str]
) -> Section:
    """A table of what was measured; ``missing`` as in ``Observations``."""
    return Section("At a glance", " ".join([text, *missing]), (Table(tuple(columns), tuple(rows)),))


def training_section(title: str, rows: Sequence[Mapping[str, Any]]) -> Section:
    """The figures over the steps of a run.

    Raises:
        ImportError: matplotlib is missing.
    """
    plots = training_plots(rows)
    return Section(title, _TRAINING if plots else "Nothing was logged yet.", plots)


def observation_sections(observed: Observations, about: str) -> list[Section]:
    """Figure 1 and the answers, as far as they are there.

    Args:
        about: what stands above Figure 1.
    """
    sections = []
    if observed.read is not None:
        num = len(observed.read.targets)
        text = f"{about} Read at {num:,} target tokens of {observed.texts}."
        plot = divergence_plot(observed.read, observed.students)
        sections.append(Section("How far from the teacher", text, (plot,)))
    if observed.samples:
        part = Answers(observed.speakers, observed.samples)
        sections.append(Section("Sample answers", observed.questions, (part,)))
    return sections


def again_section(run: Run) -> Section:
    """The command, the recipe and the versions."""
    parts = [Listing("Command", run.command)] if run.command else []
    parts += [Listing("Recipe: the fields that were set", run.recipe)] if run.recipe else []
    parts += [Facts("Versions", run.versions)] if run.versions else []
    return Section("Do it again", _AGAIN, tuple(parts))
