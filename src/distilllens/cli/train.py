"""``distilllens train``: read a recipe, check everything, train, save."""

from __future__ import annotations

import os
import sys

from distilllens.cli.terminal import quiet_libraries, stage
from distilllens.workflows.recipe_fields import check_recipe, located
from distilllens.workflows.recipe_file import Recipe, read_recipe

_DESCRIPTION = """\
Train a student. The loss weights select the method: DistillLens (lens_weight above 0, the default),
plain knowledge distillation (lens_weight 0), or supervised fine-tuning (cross_entropy_weight 1 and
no teacher).

examples:
  distilllens train --config examples/dolly_cpu/distilllens.yaml
  distilllens train --config recipe.yaml --lens_weight 0 --output_dir runs/plain-kd
  distilllens train --model_name_or_path STUDENT --teacher_model_name_or_path TEACHER \\
      --train_file train.jsonl --output_dir runs/student --lens_layers 2:8,4:16
  torchrun --nproc_per_node 2 -m distilllens train --config recipe.yaml

The same command resumes an interrupted run from its last complete checkpoint. The final model and a
report of the run (report.html) are written to output_dir.
"""


def main(argv: list[str]) -> int:
    """Run the command; raises ValueError for bad input before anything is written."""
    arguments = read_arguments(argv, "train", _DESCRIPTION)
    if arguments is None:
        return 0
    from distilllens.workflows.train import run_job

    quiet_libraries()
    say(run_job(*arguments))
    return 0


def read_arguments(argv: list[str], command: str, description: str, output_dir: str | None = None):
    """The ``Arguments`` in recipe and flags; None after help was printed.

    Args:
        output_dir: replaces the one in recipe and flags.

    Raises:
        ValueError: a recipe or flag that cannot be read. The recipe is read before the heavy
            imports.
    """
    argv = [part for word in argv for part in _split_config(word)]
    path, flags = _take_config(argv)
    if "--config" in flags:
        raise ValueError("--config is given twice; a run has one recipe, and flags override it")
    _check_repeated(flags)
    if (everything := _help_flags(flags)) is not None:
        from distilllens.cli.train_help import print_help

        print_help(command, description, everything=everything)
        return None
    recipe = Recipe("", {}, {}, {}) if path is None else read_recipe(path)
    if not argv:
        raise ValueError(
            f"distilllens {command} needs --config recipe.yaml or flags "
            f"(see distilllens {command} --help)"
        )
    stage("loading torch, transformers and trl")
    from distilllens.cli.train_arguments import make_parser, parse

    parser = make_parser(command, description)
    # The first action of a field is its own flag; fields that default to true also have a
    # "--no_..." flag of the same name.
    fields = {action.dest: action for action in reversed(parser._actions) if action.kinds}
    values = check_recipe(recipe, fields)
    if output_dir is not None:
        flags = [*flags, "--output_dir", output_dir]
    try:
        return parse(parser, values, flags)
    except ValueError as error:
        raise located(error, recipe, flags) from error


def say(summary: str):
    """Print a line, once for all processes."""
    if os.environ.get("RANK", "0") == "0":
        print(summary, file=sys.stderr)


def _split_config(word):
    return word.split("=", 1) if word.startswith("--config=") else [word]


def _take_config(argv):
    if "--config" not in argv:
        return None, argv
    at = argv.index("--config")
    if at + 1 == len(argv):
        raise ValueError("--config needs the path of a recipe")
    return argv[at + 1], argv[:at] + argv[at + 2 :]


def _check_repeated(flags):
    """Refuse a flag that is given twice: the parser would drop the values of the first."""
    names = [word[2:].split("=")[0].replace("-", "_") for word in flags if word.startswith("--")]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"--{name} is given twice; give it once, a list as --{name} A B")


def _help_flags(flags):
    """True for help on every field, False for the usual help, None for neither."""
    if any(flag in ("--help-all", "--help_all") for flag in flags):
        return True
    return False if any(flag in ("-h", "--help") for flag in flags) else None
