"""``distilllens merge``: the adapter of a LoRA run merged into its base model."""

from __future__ import annotations

import sys
from pathlib import Path

from distilllens.cli import CommandParser, add_flags
from distilllens.cli.terminal import quiet_libraries, stage

_DESCRIPTION = """\
Add the weights of a LoRA run to those of its base model, and write a folder of plain transformers
(weights, configuration, tokenizer, chat template) that needs no PEFT. The other commands take the
run's folder as it is.

examples:
  distilllens merge runs/lora --output merged
  distilllens merge runs/lora --output merged --dtype float32
"""
_DTYPES = {"choices": ("auto", "float32", "bfloat16", "float16"), "default": "auto"}
_FLAGS = (
    ("output", Path, "DIR", "folder to write; it must be new or empty"),
    ("dtype", _DTYPES, None, "dtype of the weights (default: auto, as the base model is saved)"),
    ("trust_remote_code", bool, None, "run code that comes with a model"),
)


def main(argv: list[str]) -> int:
    """Parse the flags and run; raises ValueError, OSError or ImportError for bad input."""
    parser = CommandParser(prog="distilllens merge", description=_DESCRIPTION)
    parser.add_argument("run", metavar="RUN", help="the folder of a LoRA run, or of an adapter")
    add_flags(parser, _FLAGS)
    args = parser.parse_args(argv or ["--help"])
    if not args.output:
        raise ValueError("--output is missing (see distilllens merge --help)")
    stage("loading torch, transformers and peft")
    from distilllens.workflows.merge import merge

    quiet_libraries()
    loading = {"dtype": args.dtype, "trust_remote_code": args.trust_remote_code}
    print(merge(args.run, args.output, **loading), file=sys.stderr)
    return 0
