"""The command line: one file a command, each parses, makes one call and prints."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from importlib import import_module
from itertools import takewhile

from distilllens.cli.terminal import command_output
from distilllens.errors import did_you_mean, one_line

COMMANDS = {
    "demo": "distil a small built-in teacher into two students, offline, in about two minutes",
    "train": "train a student: SFT, knowledge distillation or DistillLens",
    "estimate": "what a run takes of memory, time, disk and money, before it starts",
    "prune": "cut blocks out of a model, as a student to train",
    "merge": "merge the adapter of a LoRA run into its base model",
    "cache": "run a teacher once and store its hidden states, to train without the teacher",
    "generate": "write a model's answers to prompts, as data to train on",
    "report": "rebuild the HTML report of a training run",
    "evaluate": "answer benchmarks and score the answers, with error bars",
    "study": "train methods with several seeds on equal terms, and say which is better",
    "compare": "compare the results of evaluations, with confidence intervals",
    "inspect": "show what models predict at every depth, on an HTML page",
    "env": "show versions and hardware, for a report of an error",
}

_EXAMPLES = """\
examples:
  distilllens demo
  distilllens train --config recipe.yaml
  distilllens evaluate --model runs/student --benchmark test.jsonl --output results
  torchrun --nproc_per_node 2 -m distilllens train --config recipe.yaml

"distilllens COMMAND --help" explains a command. Exit status: 0, or 2 with a one-line message on
standard error for bad input; DISTILLLENS_DEBUG=1 shows the traceback.
"""


_SECONDS_TO_SPEAK = 30
# "-1e-3" and "- a list" are values.
_FLAG = re.compile(r"--?[A-Za-z][^\s=]*(=.*)?|--", re.DOTALL)


def is_flag(word: str) -> bool:
    """Whether a word of a command line is a flag, known or not."""
    return _FLAG.fullmatch(word) is not None


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and ask what an unknown flag may mean."""

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def parse_known_args(self, args=None, namespace=None):
        """As argparse, but an unknown flag is named before what is missing because of it.

        An empty value is refused: as a path, "" is the folder that one is in.
        """
        words, seen = list(args or ()), set()
        for at, word in enumerate(takewhile(lambda word: word != "--", words)):
            if not is_flag(word):
                continue
            flag, equals, value = word.partition("=")
            values = [*takewhile(lambda value: not is_flag(value), words[at + 1 :])]
            if (action := self._option_string_actions.get(flag)) is None:
                unknown = f"unrecognized arguments: {' '.join([word, *values])}"
                self.error(f"{unknown}{did_you_mean(flag, self._option_string_actions)}")
            if action.dest in seen and action.nargs in (None, "?"):
                self.error(f"{flag} is given twice; give it once")
            seen.add(action.dest)
            if action.nargs == 0 and equals:
                self.error(f"{flag} takes no value, got {value!r}")
            if "" in ([value] if equals else values):
                self.error(f"{flag} is empty; give it a value, or leave it out")
        if "" in words:
            self.error("an argument is empty; give it a value, or leave it out")
        return super().parse_known_args(args, namespace)

    def error(self, message):
        """Raise a ValueError of one line, in which a flag has one spelling."""
        message = re.sub(r"(--\w+)(/--[\w-]+)+", r"\1", message)
        for kind, words in (("int", "whole number"), ("float", "number")):
            message = re.sub(rf"invalid {kind} value: (.*)", rf"must be a {words}, got \1", message)
        if choice := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            message += did_you_mean(choice[1], re.findall(r"[\w-]+", choice[2]))
        raise ValueError(f"{message} (see {self.prog} --help)")


class CommandParser(OneLineParser):
    """The parser of a command, with the flags that every command has."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # main() takes it off before a command parses: output begins before parsing ends.
        self.add_argument(
            "--verbose", action="store_true", help="show the libraries' messages and progress bars"
        )


def add_flags(parser, flags: Iterable[tuple]) -> None:
    """Declare flags, each ``(name, type or default or settings, metavar, help)``."""
    for name, kind, metavar, text in flags:
        if kind is bool:
            settings = {"action": "store_true"}
        elif isinstance(kind, dict):
            settings = {"metavar": metavar, **kind}
        elif isinstance(kind, type):
            settings = {"metavar": metavar, "type": kind}
        else:
            settings = {"metavar": metavar, "type": type(kind), "default": kind}
            text += f" (default: {kind:g})" if isinstance(kind, float) else f" (default: {kind})"
        parser.add_argument(f"--{name}", help=text, **settings)


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 for bad input, 128 + a signal's number."""
    argv = list(sys.argv[1:] if argv is None else argv)
    verbose = "--verbose" in argv
    argv = [word for word in argv if word != "--verbose"]
    return reported(lambda: _command(argv, verbose))


def _command(argv, verbose):
    with command_output(verbose=verbose):
        return _dispatch(argv)


def reported(command: Callable[[], int | None]) -> int:
    """The exit status of a command, whose error is printed on one line."""
    try:
        return command() or 0
    except KeyboardInterrupt as stop:  # of a training run that was saved, with text and status
        if os.environ.get("RANK", "0") == "0":
            print(f"distilllens: {str(stop) or 'interrupted'}", file=sys.stderr)
        return getattr(stop, "status", 130)
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("DISTILLLENS_DEBUG"):
            raise
        _say_error(error, os.environ.get("RANK", "0"))
        return 2


def _say_error(error, rank):
    """Print an error on one line, once for all processes that have it."""
    where = "" if rank == "0" else f" (process {rank})"
    # Bad input is the same on all processes; a disk or a file may fail on one.
    if where and isinstance(error, ValueError):
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return
        # torchrun ends all when one has ended, which takes seconds: the main process speaks first.
        # If it is still running then, the error is this one's alone.
        time.sleep(_SECONDS_TO_SPEAK)
    print(f"distilllens: error{where}: {one_line(error)}", file=sys.stderr)


def _dispatch(argv):
    if argv and argv[0] in COMMANDS:
        return import_module(f"distilllens.cli.{argv[0]}").main(argv[1:])
    commands = "\n".join(f"  {name:9} {what}" for name, what in COMMANDS.items())
    parser = OneLineParser(
        prog="distilllens",
        description="Distil a causal language model through the logit lens.",
        usage="distilllens COMMAND ...",
        epilog=f"commands:\n{commands}\n\n{_EXAMPLES}",
    )
    parser.add_argument("--version", action="version", version=_version())
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    parser.parse_args(argv or ["--help"])
    raise AssertionError("unreachable: a known command was dispatched above")


def _version():
    import distilllens

    return f"distilllens {distilllens.__version__}"
