"""``distilllens report``: what a run of train did, on one HTML page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from distilllens.cli import OneLineParser
from distilllens.workflows.outputs import check_page

PAGE = "report.html"
_TEXTS = 4
_DESCRIPTION = """\
Look at a run of distilllens train: loss terms and lens loss by pair over its steps, learning rate,
throughput and evaluations; the divergence from the teacher by depth, before and after; answers of
teacher, start and student side by side; the recipe, the versions and the command to do it again.
One HTML page that needs no network. train leaves it in its output_dir; this makes it again.

examples:
  distilllens report runs/student
  distilllens report runs/student --limit 16 --output page.html

A run that is not finished is shown as of its newest whole checkpoint. What is no longer to be had,
such as a teacher that was moved, is left out, and the page says so.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the command."""
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="the output_dir of a run")
    add("--output", type=Path, metavar="FILE", help=f"the page to write (default: RUN/{PAGE})")
    add(
        "--limit",
        type=int,
        default=_TEXTS,
        metavar="N",
        help=f"texts that are read, and questions that are asked (default: {_TEXTS})",
    )
    add("--trust_remote_code", action="store_true", help="run code that comes with a model")


def main(argv: list[str]) -> int:
    """Parse the flags and run; raises ValueError, OSError or ImportError for bad input."""
    parser = OneLineParser(prog="distilllens report", description=_DESCRIPTION)
    add_arguments(parser)
    args = parser.parse_args(argv or ["--help"])
    if args.limit < 1:
        raise ValueError(f"--limit must be at least 1, got {args.limit}")
    if args.output is not None:
        check_page(args.output)
    from distilllens.workflows.report import write_report

    options = {"limit": args.limit, "trust_remote_code": args.trust_remote_code}
    print(write_report(args.run, args.output, **options), file=sys.stderr)
    return 0
