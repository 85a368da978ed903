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
on from the last whole checkpoint. The final model lies in output_dir itself.
"""


def main(argv: list[str]) -> int:
    """Run the command; raises ValueError for bad input before anything is written."""
    argv = [part for word in argv for part in _split_config(word)]
    path, flags = _take_config(argv)
    if "--config" in flags:
        raise ValueError("--config is given twice; a run has one recipe, and flags override it")
    recipe = read_recipe(path) if path is not None else {}
    if not argv:
        raise ValueError(
            "distilllens train needs --config recipe.yaml or flags (see distilllens train --help)"
        )
    from distilllens.cli.train_arguments import make_parser, parse
    from distilllens.train.job import run_job

    parser = make_parser(_DESCRIPTION)
    if any(flag in ("-h", "--help") for flag in flags):
        parser.print_help()
        return 0
    # The first action of a name is the flag itself; true ones have a "--no_..." of the same name.
    check_recipe(path, recipe, {action.dest: action for action in reversed(parser._actions)})
    job = parse(parser, recipe, flags)
    summary = run_job(*job)
    if os.environ.get("RANK", "0") == "0":
        print(summary, file=sys.stderr)
    return 0


def _split_config(word):
    return word.split("=", 1) if word.startswith("--config=") else [word]


def _take_config(argv):
    if "--config" not in argv:
        return None, argv
    at = argv.index("--config")
    if at + 1 == len(argv):
        raise ValueError("--config needs the path of a recipe")
    return argv[at + 1], argv[:at] + argv[at + 2 :]
