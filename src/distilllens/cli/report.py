"""``distilllens report``: what happened in a training run, on one HTML page."""

from __future__ import annotations

import sys
from pathlib import Path

from distilllens.cli import CommandParser, add_flags
from distilllens.cli.terminal import quiet_libraries
from distilllens.workflows.outputs import check_count, check_page

_DESCRIPTION = """\
Rebuild the report of a training run: loss terms, lens loss of each pair, learning rate, throughput
and evaluations over the steps; divergence from the teacher by depth, before and after training;
answers of teacher, start and student side by side; recipe, versions and command of the run.
It is one HTML page that needs no network. distilllens train writes it to output_dir at the end.

examples:
  distilllens report runs/student
  distilllens report runs/student --limit 16 --output page.html

For an unfinished run, the report shows the newest complete checkpoint. It leaves out what is no
longer available, such as a teacher that was moved, and says so.
"""
_FLAGS = (
    ("output", Path, "FILE", "page to write; RUN/report.html by default"),
    ("limit", 4, "N", "number of texts to read, and of questions to answer"),
    ("trust_remote_code", bool, None, "run code that comes with a model"),
)


def main(argv: list[str]) -> int:
    """Parse the flags and run; raises ValueError, OSError or ImportError for bad input."""
    parser = CommandParser(prog="distilllens report", description=_DESCRIPTION)
    parser.add_argument("run", type=Path, metavar="RUN", help="output_dir of the training run")
    add_flags(parser, _FLAGS)
    args = parser.parse_args(argv or ["--help"])
    check_count("--limit", args.limit)
    if args.output is not None:
        check_page(args.output)
    from distilllens.workflows.report import write_report

    quiet_libraries()
    options = {"limit": args.limit, "trust_remote_code": args.trust_remote_code}
    print(write_report(args.run, args.output, **options), file=sys.stderr)
    return 0
