"""``distilllens prune``: a model with some of its blocks only, as a student to train."""

from __future__ import annotations

import sys
from pathlib import Path

from distilllens.cli import CommandParser, add_flags
from distilllens.cli.terminal import quiet_libraries, stage
from distilllens.layer_map import parse_blocks

_DESCRIPTION = """\
Write a model with some of its blocks only: a folder of plain transformers (weights, configuration,
tokenizer, chat template), whose logits are those of the model with the other blocks skipped. This
is proved before it is written. The folder remembers its blocks: in distilllens train, lens_layers
auto pairs its depths with the teacher's after the same blocks.

examples:
  distilllens prune --model TEACHER --blocks 15 --output student
  distilllens prune --model TEACHER --blocks 0,3,6,9,12,15,18,21,24,27,29 --output student
  distilllens prune --model TEACHER --blocks 15 --by importance --data train.jsonl --output student
  distilllens train --model_name_or_path student --teacher_model_name_or_path TEACHER ...

--by importance keeps the blocks that change the stream most (1 - cosine of before and after, a mean
over the tokens of --data), and prints the numbers. A recipe can also cut its student itself:
student_blocks: 15.
"""
_BY = {"choices": ("even", "importance"), "default": "even"}
_DTYPES = {"choices": ("auto", "float32", "bfloat16", "float16"), "default": "auto"}
_FLAGS = (
    ("model", str, "MODEL", "the model: a folder or hub id; an adapter is merged"),
    ("blocks", str, "N|LIST", 'how many blocks to keep, or which, from 0: 15 or "0,3,6"'),
    ("by", _BY, None, "which blocks: even (spread, with the first and the last) or importance"),
    (
        "data",
        {"action": "extend", "nargs": "+"},
        "FILE",
        "texts for importance: files that train_file takes",
    ),
    ("drop_ends", bool, None, "importance may drop the first and the last block too"),
    ("limit", 64, "N", "number of records of --data to read"),
    ("max_length", 512, "N", "number of tokens of a record to read"),
    ("dtype", _DTYPES, None, "dtype of the weights (default: auto, as the model is saved)"),
    ("output", Path, "DIR", "folder to write; it must be new or empty"),
    ("trust_remote_code", bool, None, "run code that comes with a model"),
)


def main(argv: list[str]) -> int:
    """Parse the flags and run; raises ValueError, OSError or ImportError for bad input."""
    parser = CommandParser(prog="distilllens prune", description=_DESCRIPTION)
    add_flags(parser, _FLAGS)
    args = parser.parse_args(argv or ["--help"])
    for name in ("model", "blocks", "output"):
        if not getattr(args, name):
            raise ValueError(f"--{name} is missing (see distilllens prune --help)")
    parse_blocks(args.blocks, "--blocks")
    stage("loading torch and transformers")
    from distilllens.workflows.prune import check_pruning, prune

    quiet_libraries()
    given = vars(args)
    given.pop("verbose", None)
    names = ("output", "blocks", "by", "data", "drop_ends", "limit", "max_length")
    check_pruning(**{name: given[name] for name in names})
    pruned = prune(given.pop("model"), given.pop("blocks"), given.pop("output"), **given)
    if table := pruned.table():
        print(table)
    print(pruned.line, file=sys.stderr)
    return 0
