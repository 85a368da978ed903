"""``--accelerate_config`` and ``--num_processes``: ``distilllens train`` on several processes."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from itertools import chain
from typing import Any, NamedTuple

from distilllens.cli.terminal import is_quiet, stage
from distilllens.cli.train_flags import flag_name, split_flags
from distilllens.workflows import launch
from distilllens.workflows.recipe_file import Recipe

NAMES = ("accelerate_config", "num_processes")


class Request(NamedTuple):
    """What recipe and flags ask for: a profile, and a number of processes or None."""

    profile: launch.Profile
    num_processes: int | None


def without_launch(recipe: Recipe) -> Recipe:
    """A recipe without the fields that say how it is started."""
    values = {name: value for name, value in recipe.values.items() if name not in NAMES}
    return Recipe(recipe.path, values, recipe.lines, recipe.texts, recipe.inner)


def requested(recipe: Recipe, flags: list[str]) -> tuple[Request | None, Recipe, list[str]]:
    """What recipe and flags ask of processes, None for nothing; and both without it.

    Raises:
        ValueError: a value that cannot be used; processes that torchrun has started already.
    """
    groups = split_flags(flags)
    given = [group for group in groups if flag_name(group) in NAMES]
    rest = without_launch(recipe), [*chain(*(group for group in groups if group not in given))]
    if launch.LAUNCHED in os.environ:
        return None, *rest
    asked = {name: recipe.values[name] for name in NAMES if recipe.values.get(name) is not None}
    for name in NAMES:
        if found := [group for group in given if flag_name(group) == name]:
            asked[name] = _value(name, found)
    if not asked:
        return None, *rest
    if "LOCAL_RANK" in os.environ or os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError(
            f"{' and '.join(asked)} would start processes, and this is already one of several, of "
            "torchrun or accelerate; leave it out here"
        )
    name = asked.get("accelerate_config", "ddp")
    if not isinstance(name, str):
        raise ValueError(f"accelerate_config must be a name or a file, got {name!r}")
    if (number := asked.get("num_processes")) is not None:
        launch.check_number(number)
    return Request(launch.read_profile(name), number), *rest


def _value(name, groups):
    """The value of a flag that is given once."""
    if len(groups) > 1:
        raise ValueError(f"--{name} is given twice; give it once")
    _, equals, value = groups[0][0].partition("=")
    values = [value, *groups[0][1:]] if equals else groups[0][1:]
    if len(values) != 1 or not values[0]:
        raise ValueError(f"--{name} takes one value, got {' '.join(values) or 'none'}")
    is_number = name == "num_processes" and values[0].lstrip("+-").isdecimal()
    return int(values[0]) if is_number else values[0]


def start(
    request: Request, path: str, flags: list[str], values: dict[str, Any], check: Callable
) -> int | None:
    """Check everything, start the processes and return their status; None where one is enough.

    Args:
        path: of the recipe, or nothing.
        flags: the other flags.
        values: field -> value of those that are set.
        check: refuses arguments; it runs in a process of its own, which ends with its imports.

    Raises:
        ValueError: what this machine cannot start.
    """
    profile, asked = request
    launch.check_profile(profile, values)
    if profile.kind == "ddp" and asked == 1:
        return None
    use_cpu = values.get("use_cpu") is True

    def both():
        launch.number_to_start(profile, asked, use_cpu=use_cpu)
        check()

    if path and not os.path.isfile(path):
        raise ValueError(f"recipe {path} is no file, and each process reads it; write it to one")
    stage("checking the recipe")
    if status := _checked_apart(both):
        return status
    # Not before: a process that is forked cannot use the GPUs that its parent has counted.
    number, where = launch.number_to_start(profile, asked, use_cpu=use_cpu)
    if profile.kind == "ddp" and number == 1:
        return None
    stage(f"starting {launch.in_words(profile, number, where)}")
    more = [] if is_quiet() else ["--verbose"]
    more += launch.field_flags(profile)
    more += ["--use_cpu", "true"] if profile.use_cpu and not use_cpu else []
    if profile.precision and profile.precision not in values:
        more += [f"--{profile.precision}", "true"]
    words = ["train", *(["--config", path] if path else []), *flags, *more]
    return launch.start(words, number, on_cpu=where == "CPU")


def _checked_apart(check):
    """The status of a check in a process of its own: its memory, on the GPU too, is free again."""
    if not hasattr(os, "fork"):
        check()
        return 0
    sys.stdout.flush()
    sys.stderr.flush()
    if (child := os.fork()) == 0:
        status = 2
        try:
            # The processes that are started say the rest, once.
            logging.getLogger("distilllens").setLevel(logging.ERROR)
            warnings.simplefilter("ignore")
            from distilllens.cli import reported

            status = reported(check)
        finally:
            sys.stderr.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0:
        name = signal.Signals(-status).name
        print(f"distilllens: error: checking the recipe was ended by {name}", file=sys.stderr)
        return 128 - status
    return status
