"""``distilllens inspect``: models read at every depth, side by side, on one HTML page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from distilllens.cli import OneLineParser
from distilllens.workflows.outputs import check_folder, check_page

_DESCRIPTION = """\
Look at how predictions evolve: read a teacher and its students at every depth through the logit
lens, and write one HTML page that needs no network: divergence by depth, entropy, the lens table,
confidence, and what each loss would push on. With --model alone: the classic logit lens.

examples:
  distilllens inspect --teacher demo/teacher --student demo/kd --student demo/distilllens \\
      --prompt "Reverse the letters: cat" --output page.html
  distilllens inspect --teacher TEACHER --student STUDENT --data eval.jsonl --output page.html
  distilllens inspect --model demo/teacher --prompt "Reverse the letters: cat" --output page.html
  distilllens inspect ... --figures figures/      PNG and SVG files for a paper

With --prompt every token counts; with --data those that predict a response, as in training.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the command."""
    add = parser.add_argument
    add("--teacher", metavar="MODEL", help="a folder or hub id")
    add("--student", metavar="MODEL", action="append", default=[], help="one or more, each named")
    add("--model", metavar="MODEL", help="one model alone, instead of teacher and student")
    add("--prompt", metavar="TEXT", help="the text to read")
    add("--data", metavar="FILE", nargs="+", help="or data files: .jsonl, .json or .txt (or .gz)")
    add(
        "--limit",
        type=int,
        default=8,
        metavar="N",
        help="records of --data that are read (default: 8)",
    )
    add(
        "--max_length",
        type=int,
        default=512,
        metavar="N",
        help="tokens of a record that are read (default: 512)",
    )
    add(
        "--lens_layers",
        default="auto",
        metavar="PAIRS",
        help='the pairs of depths of training, to be marked: "auto", a number, or "2:8,4:16"',
    )
    add(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        help="of the models",
    )
    add("--output", type=Path, metavar="FILE", help="the page to write, such as page.html")
    add("--figures", type=Path, metavar="DIR", help="also write every figure there, as PNG and SVG")
    add("--trust_remote_code", action="store_true", help="run code that comes with a model")


def main(argv: list[str]) -> int:
    """Parse the flags and run; raises ValueError, OSError or ImportError for bad input."""
    parser = OneLineParser(prog="distilllens inspect", description=_DESCRIPTION)
    add_arguments(parser)
    args = parser.parse_args(argv or ["--help"])
    _check(args)
    from distilllens.report import require_plotting

    require_plotting()
    print("loading torch and transformers ...", file=sys.stderr, flush=True)
    from distilllens.workflows.inspect import run

    print(run(args), file=sys.stderr)
    return 0


def _check(args):
    """What can be seen before any model is loaded."""
    if args.model is None and (args.teacher is None or not args.student):
        raise ValueError("name --teacher and at least one --student, or --model alone")
    if args.model is not None and (args.teacher is not None or args.student):
        raise ValueError("--model stands alone: leave out --teacher and --student, or --model")
    if (args.prompt is None) == (args.data is None):
        raise ValueError("give the text by either --prompt or --data")
    if args.prompt is not None and not args.prompt.strip():
        raise ValueError(f"--prompt is empty ({args.prompt!r}); give it some text")
    for name in ("limit", "max_length"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.output is None:
        raise ValueError("--output is missing: the page to write, such as page.html")
    check_page(args.output)
    if args.figures is not None:
        check_folder("--figures", args.figures)
