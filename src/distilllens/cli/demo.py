"""``distilllens demo``: one teacher, two students of one start, and what the lens made of them."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from distilllens.cli.report import PAGE

_DESCRIPTION = """\
Distil a built-in teacher into two smaller students of one start: one by plain KD (output only), one
by DistillLens (output and lens). Both see the same data, steps and learning rate. Prints what was
measured on held-out questions, draws the divergence from the teacher by depth, and leaves
report.html: the students beside teacher and start, by depth and in their answers.

Offline, on the CPU, about two minutes on two cores. One seed is a demonstration, no benchmark.

examples:
  distilllens demo
  distilllens demo --seed 1 --output demo-1
"""
TEACHER = Path(__file__).parent / "demo_teacher"
MARKER = "demo.json"
FIGURE = "divergence_by_depth.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the command."""
    parser.add_argument(
        "--output", type=Path, default=Path("demo"), metavar="DIR", help="default: ./demo"
    )
    parser.add_argument(
        "--steps", type=int, default=300, help="training steps of each student (default: 300)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the questions and their order (default: 0)"
    )


def main(argv: list[str]) -> int:
    """Parse the flags and run; raises ValueError or OSError for bad input."""
    from distilllens.cli import OneLineParser

    parser = OneLineParser(prog="distilllens demo", description=_DESCRIPTION)
    add_arguments(parser)
    return run(parser.parse_args(argv))


def run(args: argparse.Namespace) -> int:
    """Train both students, print the table, write page, figure, models and ``demo.json``.

    Raises:
        ValueError: steps < 1, a seed below 0, an output that is a file or holds other things.
        OSError: an output that cannot be written.
    """
    _check(args)
    _claim(args.output)
    # The demo never leaves the machine, and its tables need no progress bars of their own.
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    print("loading torch, transformers and trl ...", file=sys.stderr, flush=True)
    from distilllens.workflows.demo import run_demo

    result, observed, log = run_demo(TEACHER, args.output, steps=args.steps, seed=args.seed)
    print(table(result))
    drawn = _draw(result, args.output) and _write_page(args, result, observed, log)
    _write_marker(args.output, {**result, "finished": True})
    files = f", {FIGURE}" if drawn else ""
    print(f"\nwritten to {args.output}: teacher, kd and distilllens (models){files}, {MARKER}")
    if drawn:
        print(f"open {args.output / PAGE} to see the students beside their teacher")
    return 0


def table(result: dict) -> str:
    """The rows of a result as text, one line a model; "-" where nothing is to be measured."""
    pairs = result["pairs"]
    heads = ["", "cross-entropy", "KL to teacher"]
    heads += [*(f"JSD {pair}" for pair in pairs), "exact match", "seconds"]
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
{conditions}, seed {result["seed"]}; in nats per token of the answers:
cross-entropy, KL(teacher || student) at the output, and the Jensen-Shannon divergence (JSD)
from the teacher by depth, student:teacher, the last pair being the output. Exact match is of
answers generated greedily.

{text}"""


def _check(args):
    if args.steps < 1:
        raise ValueError(f"--steps must be at least 1, got {args.steps}")
    if not 0 <= args.seed < 2**32:
        raise ValueError(f"--seed must be between 0 and {2**32 - 1}, got {args.seed}")
    output = args.output
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file; name a folder")
    if output.exists() and any(output.iterdir()) and not _is_demo(output):
        raise ValueError(
            f"--output {output} is not empty and holds no earlier demo; name another folder"
        )


def _is_demo(folder):
    try:
        return "finished" in json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _claim(output):
    """Make the folder ours before any work, so that an unwritable one is known at once."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        _write_marker(output, {"finished": False})
    except OSError as error:
        raise OSError(f"--output {output} cannot be written: {error.strerror}") from error


def _write_marker(output, result):
    text = json.dumps(result, indent=1) + "\n"
    (output / MARKER).write_text(text, encoding="utf-8")


def _draw(result, output):
    """Write the figure; False, and a line that says why, where figures cannot be drawn."""
    from distilllens.report import plot_divergence_by_depth

    depths = [tuple(map(int, pair.split(":"))) for pair in result["pairs"]]
    curves = {row["name"]: row["jsd"] for row in result["rows"] if row["seconds"] is not None}
    try:
        plot_divergence_by_depth(output / FIGURE, depths, curves)
    except ImportError as error:
        print(f"no figure and no {PAGE}: {error}", file=sys.stderr)
        return False
    return True


def _write_page(args, result, observed, log):
    """Write the page; True."""
    from distilllens.files import write_atomically
    from distilllens.workflows.demo_page import demo_page

    command = f"distilllens demo --steps {args.steps} --seed {args.seed}"
    write_atomically(args.output / PAGE, demo_page(result, observed, log, command))
    return True
