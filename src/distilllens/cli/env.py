"""``distilllens env``: what a report of an error needs."""

from __future__ import annotations

import json

from distilllens.cli import CommandParser

_DESCRIPTION = """\
Show versions, processor, memory, GPUs and the environment variables that matter, for a report of an
error. Tokens, keys and passwords are masked.

examples:
  distilllens env
  distilllens env --json
"""


def main(argv: list[str]) -> int:
    """Run the command; nothing but torch is imported."""
    parser = CommandParser(prog="distilllens env", description=_DESCRIPTION)
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    args = parser.parse_args(argv)
    from distilllens.workflows.env import environment, in_words

    found = environment()
    print(json.dumps(found, indent=2) if args.json else in_words(found))
    return 0
