"""The demo's page: two students compared with their teacher and their start."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from distilllens.report import (
    Listing,
    Observations,
    Run,
    Section,
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


_ANSWERS = "An answer is marked right if it equals the reference character for character."
_NEXT = (
    "These commands work on the demo's folder. Put your own models and data in place of its: a "
    "model is a folder or a hub id, data are records of instruction, input and output, of prompt "
    "and completion, or of messages. For a comparison that counts, train each method with at least "
    "three seeds (--seed) and its own best learning rate."
)


def demo_page(
    result: dict, observed: Observations, log: list[dict], command: str, output: Path
) -> str:
    """The whole page as HTML.

    Args:
        result, observed, log: as returned by ``demo.run_demo``.
        command: the command that reproduces the demo.
        output: the demo's folder, which the next commands name.
    """
    observed = replace(observed, questions=f"{observed.questions} {_ANSWERS}")
    columns = ["", "cross-entropy", "KL(teacher \u2016 student)"]
    columns += [*(f"JSD {pair}" for pair in result["pairs"]), "exact answers", "seconds"]
    rows = [_row(row, len(result["pairs"])) for row in result["rows"]]
    run = Run({}, log, recipe="", command=command, versions=versions())
    sections = [
        Section("In short", result["verdict"]),
        measurements_section(_MEASURED.format(**result), columns, rows, observed.missing),
        *observation_sections(observed, _DIVERGENCE),
        training_section("Training of the DistillLens student", run.rows),
        Section("Next: your own models", _NEXT, (Listing("Commands", next_commands(output)),)),
        reproduce_section(run),
    ]
    lead = (
        f"Plain KD and DistillLens, trained from the same start for {result['steps']} steps on the "
        f"same data, seed {result['seed']}. One seed of a toy is a demonstration, not a benchmark."
    )
    return render_page("Two students and their teacher", lead, sections)


def next_commands(output: Path) -> str:
    """Commands to go on with, on the folder of a demo."""
    demo, results, depths, lens, kd = (
        shlex.quote(f"{output}{end}")
        for end in ("", "-results", "-depths.html", "-runs/lens", "-runs/kd")
    )
    train = (
        f"distilllens train --model_name_or_path {demo}/kd "
        f"--teacher_model_name_or_path {demo}/teacher \\\n"
        f"    --train_file {demo}/train.jsonl --max_steps 20"
    )
    return f"""\
# answer questions, score the answers, compare the students
distilllens evaluate --model {demo}/kd {demo}/distilllens --teacher {demo}/teacher \\
    --benchmark {demo}/test.jsonl --max_new_tokens 64 --output {results}

# what all three predict at every depth
distilllens inspect --teacher {demo}/teacher --student {demo}/kd --student {demo}/distilllens \\
    --data {demo}/test.jsonl --limit 8 --output {depths}

# distil a student of your own, then plain KD to compare it with
{train} --output_dir {lens}
{train} --lens_weight 0 --output_dir {kd}"""


def _row(row, num_pairs):
    jsd = row["jsd"] or [None] * num_pairs
    seconds = None if row["seconds"] is None else round(row["seconds"])
    return (row["name"], row["cross_entropy"], row["kl"], *jsd, row["exact_match"], seconds)
