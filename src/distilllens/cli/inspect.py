"""``distilllens inspect``: models read at every depth, side by side, on one HTML page."""

from __future__ import annotations

import sys
from pathlib import Path

from distilllens.cli import CommandParser, add_flags
from distilllens.cli.terminal import quiet_libraries, stage
from distilllens.workflows.inspect_checks import check_inspection

_DESCRIPTION = """\
Show what a teacher and its students predict at every depth, read through the logit lens, on one
HTML page that needs no network: divergence by depth, entropy, the lens table, confidence, and the
token probabilities that each loss would change. With --model alone: the classic logit lens.

examples:
  distilllens inspect --teacher demo/teacher --student demo/kd --student demo/distilllens \\
      --prompt "Reverse the letters: cat" --output page.html
  distilllens inspect --teacher TEACHER --student STUDENT --data eval.jsonl --output page.html
  distilllens inspect --model demo/teacher --prompt "Reverse the letters: cat" --output page.html
  distilllens inspect ... --figures figures/      PNG and SVG files for a paper

With --prompt every token is shown; with --data only those that predict a response, as in training.
Masked LMs show the token in each place, encoder-decoders the text of their decoder: the response,
or what the first model answers to --prompt.
"""
_SEVERAL = {"action": "extend", "nargs": "+"}
_READOUTS = {"choices": ("logit", "tuned"), "default": "logit"}
_DTYPES = {"choices": ("auto", "float32", "bfloat16", "float16"), "default": "auto"}
_FLAGS = (
    ("teacher", str, "MODEL", "teacher: a folder or hub id"),
    ("student", _SEVERAL | {"default": []}, "MODEL", "one or more students"),
    ("model", str, "MODEL", "a single model, instead of teacher and student"),
    ("prompt", str, "TEXT", "text to read"),
    ("data", _SEVERAL, "FILE", "or data to read: files or folders as train_file"),
    ("limit", 8, "N", "number of records of --data to read"),
    ("max_length", 512, "N", "number of tokens of a record to read"),
    ("lens_layers", "auto", "PAIRS", 'depth pairs of training: auto, "3", "2:8,4:16" or exits'),
    ("lens_readout", _READOUTS, None, "logit, or tuned: fitted to the records behind --limit"),
    ("dtype", _DTYPES, None, "dtype of the models (default: auto, as each is saved)"),
    ("output", Path, "FILE", "page to write, such as page.html"),
    ("figures", Path, "DIR", "also save all figures there, as PNG and SVG"),
    ("trust_remote_code", bool, None, "run code that comes with a model"),
)


def main(argv: list[str]) -> int:
    """Parse the flags and run; raises ValueError, OSError or ImportError for bad input."""
    parser = CommandParser(prog="distilllens inspect", description=_DESCRIPTION)
    add_flags(parser, _FLAGS)
    args = parser.parse_args(argv or ["--help"])
    arguments = {
        "teacher": args.teacher,
        "students": args.student,
        "model": args.model,
        "prompt": args.prompt,
        "data": args.data,
        "limit": args.limit,
        "max_length": args.max_length,
        "figures": args.figures,
        "lens_readout": args.lens_readout,
    }
    check_inspection(args.output, **arguments)
    stage("loading torch and transformers")
    from distilllens.workflows.inspect import write_inspection

    quiet_libraries()
    line = write_inspection(
        args.output,
        **arguments,
        lens_layers=args.lens_layers,
        dtype=args.dtype,
        trust_remote_code=args.trust_remote_code,
    )
    print(line, file=sys.stderr)
    return 0
