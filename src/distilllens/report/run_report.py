"""Sections of a run report: the training log, the models and how to reproduce the run."""

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

_TRAINING = "The trainer's log, by optimizer step."
_DEPTH = (
    "Each depth of the student, before training and now, read through its own final norm and head "
    "and compared with a depth of the teacher over the whole vocabulary."
)
_REPRODUCE = "How these results were produced."


@dataclass(frozen=True)
class Observations:
    """Measurements of the models themselves, beyond what training logged.

    Args:
        inspection: the teacher and its students on a few texts; None if unavailable.
        students: their names, in the order of ``inspection``.
        texts: a description of the texts in ``inspection``.
        samples: questions and answers; empty if the data hold no questions.
        answered_by: the names of the models, in the order of each sample's answers.
        questions: a description of the questions and of how they were answered.
        missing: a sentence for each part that is left out, with the reason.
    """

    inspection: Inspection | None = None
    students: tuple[str, ...] = ()
    texts: str = ""
    samples: tuple[Sample, ...] = ()
    answered_by: tuple[str, ...] = ()
    questions: str = ""
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """A training run, as recorded in its folder.

    Args:
        facts: name -> value, a few words each.
        rows: the trainer's log, oldest first.
        recipe: the fields that were set, as YAML.
        command: the command line that started it; empty if unknown.
        versions: of the libraries it ran with; empty if unknown.
    """

    facts: Mapping[str, str]
    rows: Sequence[Mapping[str, Any]]
    recipe: str
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


def run_sections(run: Run, observed: Observations) -> list[Section]:
    """All sections of a run's report, in page order (for ``page.render_page``).

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
    return [*sections, reproduce_section(run)]


def measurements_section(
    text: str, columns: Sequence[str], rows: Sequence[tuple], missing: Sequence[str]
) -> Section:
    """A table of measurements; ``missing`` as in ``Observations``."""
    return Section("At a glance", " ".join([text, *missing]), (Table(tuple(columns), tuple(rows)),))


def training_section(title: str, rows: Sequence[Mapping[str, Any]]) -> Section:
    """Plots over the steps of a run.

    Raises:
        ImportError: matplotlib is missing.
    """
    plots = training_plots(rows)
    return Section(title, _TRAINING if plots else "Nothing was logged yet.", plots)


def observation_sections(observed: Observations, about: str) -> list[Section]:
    """The divergence by depth and the sample answers, if available.

    Args:
        about: the lead text of the divergence plot.
    """
    sections = []
    if observed.inspection is not None:
        num = len(observed.inspection.targets)
        text = f"{about} Measured on {num:,} target tokens of {observed.texts}."
        plot = divergence_plot(observed.inspection, observed.students)
        sections.append(Section("How far from the teacher", text, (plot,)))
    if observed.samples:
        part = Answers(observed.answered_by, observed.samples)
        sections.append(Section("Sample answers", observed.questions, (part,)))
    return sections


def reproduce_section(run: Run) -> Section:
    """The command, the recipe and the library versions."""
    parts = [Listing("Command", run.command)] if run.command else []
    parts += [Listing("Recipe (fields that were set)", run.recipe)] if run.recipe else []
    parts += [Facts("Versions", run.versions)] if run.versions else []
    return Section("Reproduce this run", _REPRODUCE, tuple(parts))
