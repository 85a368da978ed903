"""``distilllens train``: read a recipe, check everything, train, save."""

from __future__ import annotations

import os
import sys

from distilllens.cli.recipe import check_recipe, read_recipe

_DESCRIPTION = """\
Train a student. The weights say what happens: with a teacher, knowledge distillation at the output
(output_weight) and through the logit lens (lens_weight); without one, and with
cross_entropy_weight 1, supervised fine-tuning.

examples:
  distilllens train --config examples/dolly_cpu/distilllens.yaml
  distilllens train --config recipe.yaml --lens_weight 0 --output_dir runs/plain-kd
  distilllens train --model_name_or_path STUDENT --teacher_model_name_or_path TEACHER \\
      --train_file train.jsonl --output_dir runs/student --lens_layers 2:8,4:16
  torchrun --nproc_per_node 2 -m distilllens train --config recipe.yaml

A recipe is YAML with the names of the flags below; a flag overrides it. The same command again goes
on from the last whole checkpoint. The final model lies in output_dir itself, and report.html, a
page on how the run went; --no_report leaves it out.
"""


def main(argv: list[str]) -> int:
    """Run the command; raises ValueError for bad input before anything is written."""
    arguments = read_arguments(argv, "train", _DESCRIPTION)
    if arguments is None:
        return 0
    from distilllens.workflows.train import run_job

    say(run_job(*arguments))
    return 0


def read_arguments(
    argv: list[str], command: str, description: str, output_dir: str | None = None
) -> tuple | None:
    """What recipe and flags say: ``(job, model, training, given)``; None when help was printed.

    Args:
        output_dir: in place of what they say.

    Raises:
        ValueError: a recipe or flag that cannot be read; what can be seen before the heavy imports
            is said before them.
    """
    argv = [part for word in argv for part in _split_config(word)]
    path, flags = _take_config(argv)
    if "--config" in flags:
        raise ValueError("--config is given twice; a run has one recipe, and flags override it")
    recipe = read_recipe(path) if path is not None else {}
    if not argv:
        raise ValueError(
            f"distilllens {command} needs --config recipe.yaml or flags "
            f"(see distilllens {command} --help)"
        )
    from distilllens.cli.train_arguments import make_parser, parse

    parser = make_parser(command, description)
    if any(flag in ("-h", "--help") for flag in flags):
        parser.print_help()
        return None
    # The first action of a name is the flag itself; true ones have a "--no_..." of the same name.
    check_recipe(path, recipe, {action.dest: action for action in reversed(parser._actions)})
    if output_dir is not None:
        flags = [*flags, "--output_dir", output_dir]
    return parse(parser, recipe, flags)


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
