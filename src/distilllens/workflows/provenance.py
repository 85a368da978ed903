"""How a run was started: command, fields and versions, for its report."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from importlib.metadata import version

from distilllens.masking import MASK, masked
from distilllens.train.model_card import LIBRARIES


def record_of(given: Mapping) -> dict:
    """What a report shows beside a run's identity; it does not affect what is learned.

    Args:
        given: the fields that were set.
    """
    shown = {name: value for name, value in given.items() if not name.startswith("hub_")}
    return {
        "command": command_line(),
        "working_directory": os.getcwd(),
        "given": json.loads(json.dumps(masked(shown), default=str)),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that affect a run's result."""
    return {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}


def command_line() -> str:
    """The command that started this process, quoted for a shell, with secrets masked."""
    num_processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
    start = ["distilllens"]
    if num_processes != "1":
        start = ["torchrun", "--nproc_per_node", num_processes, "-m", "distilllens"]
    words, secret = [], False
    for word in sys.argv[1:]:
        name, _, value = word.partition("=")
        names_token = name.replace("-", "_") == "__hub_token"
        words.append(
            MASK if secret else f"{name}={MASK}" if names_token and value else masked(word)
        )
        secret = names_token and not value
    return shlex.join([*start, *words])
