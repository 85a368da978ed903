"""``distilllens demo``: a built-in teacher, two students of the same start, and a comparison."""

from __future__ import annotations

import os
from pathlib import Path
from textwrap import fill

from distilllens.cli import CommandParser, add_flags
from distilllens.cli.terminal import quiet_libraries, stage
from distilllens.workflows.demo_folder import DATA, FIGURE, MARKER, check_demo, claim

_DESCRIPTION = """\
Distil a small built-in teacher into two students that start from the same weights: one by plain KD
(output only), one by DistillLens (output and logit lens), with the same data, steps and learning
rate. The command prints how close both come to the teacher on held-out questions, draws their
divergence from the teacher by depth, and writes report.html, which compares teacher, start and
students by depth and by their answers.

It needs no network and no GPU, and takes about two minutes on two CPU cores. One seed of a toy
problem is a demonstration, not a benchmark.

examples:
  distilllens demo
  distilllens demo --seed 1 --output demo-1
"""
TEACHER = Path(__file__).parent / "demo_teacher"
_FLAGS = (
    ("output", Path("demo"), "DIR", "folder for models and results"),
    ("steps", 300, "N", "training steps of each student"),
    ("seed", 0, "N", "seed of the questions and of their order"),
)


def main(argv: list[str]) -> int:
    """Parse the flags and run; raises ValueError or OSError for bad input."""
    parser = CommandParser(prog="distilllens demo", description=_DESCRIPTION)
    add_flags(parser, _FLAGS)
    args = parser.parse_args(argv)
    check_demo(args.output, args.steps, args.seed)
    claim(args.output)  # an output that cannot be written is refused before the heavy imports
    os.environ["HF_HUB_OFFLINE"] = "1"
    stage("loading torch, transformers and trl")
    from distilllens.workflows.demo import run_demo

    quiet_libraries()
    result, page = run_demo(TEACHER, args.output, steps=args.steps, seed=args.seed)
    print(f"{table(result)}\n\n{fill(result['verdict'], 100, break_on_hyphens=False)}")
    files = ", ".join([*DATA, *[FIGURE] * bool(page), MARKER])
    print(f"\nwritten to {args.output}: teacher, kd and distilllens (models), {files}")
    if page:
        print(f"open {page}: students and teacher by depth, answers, commands to go on with")
    return 0


def table(result: dict) -> str:
    """The rows of a result as text, one line a model; "-" for what is not measured."""
    pairs = result["pairs"]
    heads = ["", "cross-entropy", "KL"]
    heads += [*(f"JSD {pair}" for pair in pairs), "exact answers", "seconds"]
    lines = [heads]
    for row in result["rows"]:
        jsd = [f"{value:.4f}" for value in row["jsd"]] or ["-"] * len(pairs)
        kl = "-" if row["kl"] is None else f"{row['kl']:.4f}"
        seconds = "-" if row["seconds"] is None else f"{row['seconds']:.0f}"
        exact = f"{100 * row['exact_match']:.1f} %"
        lines.append([row["name"], f"{row['cross_entropy']:.4f}", kl, *jsd, exact, seconds])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])],
        )
        for line in lines
    )
    conditions = f"{result['questions']} held-out questions, {result['steps']} steps"
    return f"""
{conditions}, seed {result["seed"]}, in nats per answer token:
cross-entropy, KL(teacher || student) at the output, and Jensen-Shannon divergence (JSD) from the
teacher at each pair of depths, student:teacher; the last pair is the output. "exact answers" is the
share of greedy answers that equal the reference character for character.

{text}"""
