"""``distilllens train``: read a recipe, check everything, train, save."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path

from distilllens.cli import launching
from distilllens.cli.terminal import quiet_libraries, stage
from distilllens.cli.train_flags import (
    flag_name,
    flag_parser,
    read_fields,
    split_flags,
    take_config,
)
from distilllens.workflows.field_table import may_be_declared, read_table
from distilllens.workflows.recipe_fields import UnknownField, located
from distilllens.workflows.recipe_file import Recipe, read_recipe
from distilllens.workflows.train_checks import (
    check_files,
    check_loggers,
    check_server,
    check_values,
)

_DESCRIPTION = """\
Train a student. The loss weights select the method: DistillLens (lens_weight above 0, the default),
plain knowledge distillation (lens_weight 0), or supervised fine-tuning (cross_entropy_weight 1 and
no teacher).

examples:
  distilllens train --config examples/dolly_cpu/distilllens.yaml
  distilllens train --config recipe.yaml --lens_weight 0 --output_dir runs/plain-kd
  distilllens train --model_name_or_path STUDENT --teacher_model_name_or_path TEACHER \\
      --train_file train.jsonl --output_dir runs/student --lens_layers 2:8,4:16
  distilllens train --config recipe.yaml --num_processes 2
  distilllens train --config recipe.yaml --accelerate_config fsdp2 --num_processes 8

The same command resumes an interrupted run from its last complete checkpoint. The final model and a
report of the run (report.html) are written to output_dir.
"""


def main(argv: list[str]) -> int:
    """Run the command; raises ValueError for bad input before anything is written."""
    if _is_question(argv, "train", _DESCRIPTION):
        return 0
    recipe, flags = _parts(argv, "train")
    request, recipe, flags = launching.requested(recipe, flags)
    if request is not None:
        values = _check_by_table("train", recipe, flags, _check)
        started = launching.start(
            request, recipe.path, flags, values, lambda: _check_whole(recipe, flags)
        )
        if started is not None:
            return started
    arguments = _arguments(recipe, flags, "train", _DESCRIPTION, _check)
    from distilllens.workflows.train import run_job

    say(run_job(*arguments))
    return 0


def _check_whole(recipe, flags):
    """Refuse what can be refused without data and weights."""
    arguments = _arguments(recipe, flags, "train", _DESCRIPTION, _check)
    from distilllens.workflows.train import check_before_processes

    check_before_processes(*arguments[:3])


def _check(values):
    check_loggers(values.get("report_to"))
    check_files(values)
    if not (Path(values["output_dir"]) / "run.json").exists():  # it may be finished
        check_server(values)


def read_arguments(
    argv: list[str],
    command: str,
    description: str,
    *,
    output_dir: str | None = None,
    check: Callable[[dict], None] = lambda values: None,
):
    """The ``Arguments`` in recipe and flags; None after help was printed.

    Args:
        output_dir: replaces the one in recipe and flags.
        check: refuses fields, name -> value, for more reasons, before the heavy imports.

    Raises:
        ValueError: a recipe or flag that cannot be read, or fields that no run can use; before the
            heavy imports where these are not needed to know.
        OSError: an output_dir that cannot be written.
    """
    if _is_question(argv, command, description):
        return None
    recipe, flags = _parts(argv, command)
    recipe = launching.without_launch(recipe)
    if output_dir is not None:
        groups = [group for group in split_flags(flags) if flag_name(group) != "output_dir"]
        flags = [*chain(*groups), "--output_dir", output_dir]
    return _arguments(recipe, flags, command, description, check)


def processes_in(argv: list[str], command: str) -> tuple[int | None, list[str]]:
    """How many processes recipe and flags ask for, None if they do not say; and the other flags.

    Raises:
        ValueError: as ``launching.requested``.
    """
    if _help_flags(argv) is not None or not argv:
        return None, argv
    request, *_ = launching.requested(*_parts(argv, command))
    groups = [group for group in split_flags(argv) if flag_name(group) not in launching.NAMES]
    number = request and (request.num_processes or request.profile.num_processes)
    return number, [*chain(*groups)]


def _is_question(argv, command, description):
    """Whether help was asked for, and printed.

    Raises:
        ValueError: nothing was asked for at all.
    """
    if (everything := _help_flags(argv)) is not None:
        from distilllens.cli.train_help import print_help

        print_help(command, description, everything=everything)
        return True
    if not argv:
        raise ValueError(
            f"distilllens {command} needs --config recipe.yaml or flags "
            f"(see distilllens {command} --help)"
        )
    return False


def _arguments(recipe, flags, command, description, check):
    _check_by_table(command, recipe, flags, check)
    stage("loading torch, transformers and trl")
    from distilllens.cli.train_arguments import make_parser
    from distilllens.workflows.run_arguments import build

    values = read_fields(make_parser(command, description), recipe, flags)
    quiet_libraries()
    try:
        return build(values)
    except ValueError as error:
        raise located(error, recipe, flags) from error


def _parts(argv, command):
    """The recipe, empty if none is named, and the flags."""
    path, flags = take_config(argv, command)
    return Recipe("", {}, {}, {}) if path is None else read_recipe(path), flags


def _check_by_table(command, recipe, flags, check):
    """Refuse what is wrong by the table of fields, unless other versions may take it.

    Returns:
        Field -> value of those that are set; empty if only other versions can say.
    """
    table = read_table()
    try:
        values = read_fields(flag_parser(command, "", table.fields), recipe, flags)
    except UnknownField as error:
        if may_be_declared(error.name):
            return {}
        raise
    except ValueError:
        if not table.is_of_installed_versions():
            return {}
        raise
    try:
        for name in ("output_divergence", "lens_divergence"):
            table.check_divergence(name, values.get(name))
        check_values(values)
        check(values)
    except ValueError as error:
        raise located(error, recipe, flags) from error
    return values


def say(summary: str):
    """Print a line, once for all processes."""
    if os.environ.get("RANK", "0") == "0":
        print(summary, file=sys.stderr)


def _help_flags(flags):
    """True for help on every field, False for the usual help, None for neither."""
    if any(flag in ("--help-all", "--help_all") for flag in flags):
        return True
    return False if any(flag in ("-h", "--help") for flag in flags) else None
