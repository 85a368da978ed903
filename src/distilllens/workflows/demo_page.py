"""The demo's page: two students compared with their teacher and their start."""

from __future__ import annotations

from distilllens.report import (
    Observations,
    Run,
    measurements_section,
    observation_sections,
    render_page,
    reproduce_section,
    training_section,
)
from distilllens.workflows.provenance import versions

_MEASURED = (
    "Measured on {questions} held-out questions. Cross-entropy, KL and JSD are in nats per token "
    "of the answers; depths are student:teacher, and the last pair is the output. Exact "
    "answers are the share of greedy answers that equal the reference, 0 to 1."
)
_DIVERGENCE = (
    "Each depth of a student, read through its own final norm and head and compared with a depth "
    "of the teacher over the whole vocabulary. Plain KD trains on the outputs alone, DistillLens "
    "also on the ringed depths."
)


def demo_page(result: dict, observed: Observations, log: list[dict], command: str) -> str:
    """The whole page as HTML.

    Args:
        result, observed, log: as returned by ``demo.run_demo``.
        command: the command that reproduces the demo.
    """
    columns = ["", "cross-entropy", "KL(teacher \u2016 student)"]
    columns += [*(f"JSD {pair}" for pair in result["pairs"]), "exact answers", "seconds"]
    rows = [_row(row, len(result["pairs"])) for row in result["rows"]]
    run = Run({}, log, recipe="", command=command, versions=versions())
    sections = [
        measurements_section(_MEASURED.format(**result), columns, rows, observed.missing),
        *observation_sections(observed, _DIVERGENCE),
        training_section("Training of the DistillLens student", run.rows),
        reproduce_section(run),
    ]
    lead = (
        f"Plain KD and DistillLens, trained from the same start for {result['steps']} steps on the "
        f"same data, seed {result['seed']}. One seed of a toy is a demonstration, not a benchmark."
    )
    return render_page("Two students and their teacher", lead, sections)


def _row(row, num_pairs):
    jsd = row["jsd"] or [None] * num_pairs
    seconds = None if row["seconds"] is None else round(row["seconds"])
    return (row["name"], row["cross_entropy"], row["kl"], *jsd, row["exact_match"], seconds)
