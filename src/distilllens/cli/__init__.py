"""The command line: one file a command, each parses, makes one call and prints."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module

from distilllens.errors import one_line

COMMANDS = {
    "demo": "the whole story on a built-in teacher and data, offline, in about two minutes",
    "cache": "run a teacher once and keep its states for training without it",
    "train": "SFT, distillation or distillation through the logit lens: what the weights say",
    "report": "the page that a run of train leaves, made again",
    "evaluate": "answers to benchmarks, their metrics, and scores with error bars",
    "compare": "results of evaluations side by side, and who is better beyond noise",
    "inspect": "a page on what teacher and students say at every depth, and how far they are apart",
}

_EXAMPLES = """\
examples:
  distilllens demo
  distilllens train --config recipe.yaml
  distilllens train --help
  distilllens cache --config recipe.yaml --teacher_cache caches/teacher
  distilllens report runs/student
  distilllens evaluate --model runs/student --benchmark test.jsonl --output results
  distilllens inspect --teacher demo/teacher --student demo/kd --prompt TEXT --output page.html
  torchrun --nproc_per_node 2 -m distilllens train --config recipe.yaml

Exit status: 0; 2 with one line on standard error for bad input. Set DISTILLLENS_DEBUG=1 to see
where an error came from.
"""


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message):
        """Exit with status 2 and one line."""
        raise ValueError(f"{message} (see {self.prog} --help)")


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 for bad input, 130 when interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(argv)
    except KeyboardInterrupt:
        print("distilllens: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("DISTILLLENS_DEBUG"):
            raise
        rank = os.environ.get("RANK", "0")
        # Bad input is the same on all processes; a disk or a file may fail on one.
        if rank == "0" or not isinstance(error, ValueError):
            where = "" if rank == "0" else f" (process {rank})"
            print(f"distilllens: error{where}: {one_line(error)}", file=sys.stderr)
        return 2


def _dispatch(argv):
    if argv and argv[0] in COMMANDS:
        return import_module(f"distilllens.cli.{argv[0]}").main(argv[1:])
    commands = "\n".join(f"  {name:8} {what}" for name, what in COMMANDS.items())
    parser = OneLineParser(
        prog="distilllens",
        description="Distil a causal language model through the logit lens.",
        epilog=f"commands:\n{commands}\n\n{_EXAMPLES}",
    )
    parser.add_argument("--version", action="version", version=_version())
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    parser.parse_args(argv or ["--help"])
    raise AssertionError("unreachable: a known command was dispatched above")


def _version():
    import distilllens

    return f"distilllens {distilllens.__version__}"
