"""The demo's page: two students beside their teacher and their start."""

from __future__ import annotations

from distilllens.report import (
    Observations,
    Run,
    again_section,
    measured_section,
    observation_sections,
    render_page,
    training_section,
)
from distilllens.workflows.provenance import versions

_MEASURED = (
    "On {questions} held-out questions, in nats per token of the answers, by depths "
    "student:teacher, the last pair being the output. Exact match is of greedy answers."
)
_APART = (
    "Each depth of a student, read through its own final norm and head, against a depth of the "
    "teacher, over the whole vocabulary. Plain KD compares outputs alone; DistillLens also the "
    "depths in rings."
)


def demo_page(result: dict, observed: Observations, log: list[dict], command: str) -> str:
    """The whole page.

    Args:
        result: what ``demo_run.run_demo`` measured; ``observed`` and ``log`` are its too.
        command: what makes it again.
    """
    columns = ["", "cross-entropy", "KL(teacher \u2016 student)"]
    columns += [*(f"JSD {pair}" for pair in result["pairs"]), "exact answers", "seconds"]
    rows = [_row(row, len(result["pairs"])) for row in result["rows"]]
    run = Run({}, log, recipe="", command=command, versions=versions())
    sections = [
        measured_section(_MEASURED.format(**result), columns, rows, observed.missing),
        *observation_sections(observed, _APART),
        training_section("Training of DistillLens", run.rows),
        again_section(run),
    ]
    lead = (
        f"Plain KD and DistillLens from one start, {result['steps']} steps of the same data, seed "
        f"{result['seed']}. One seed of a toy is a demonstration, no benchmark."
    )
    return render_page("Two students and their teacher", lead, sections)


def _row(row, num_pairs):
    jsd = row["jsd"] or [None] * num_pairs
    seconds = None if row["seconds"] is None else round(row["seconds"])
    return (row["name"], row["cross_entropy"], row["kl"], *jsd, row["exact_match"], seconds)
