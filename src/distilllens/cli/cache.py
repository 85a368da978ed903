"""``distilllens cache``: run a teacher once over a recipe's data and store its states."""

from __future__ import annotations

import tempfile

from distilllens.cli.terminal import quiet_libraries
from distilllens.cli.train import read_arguments, say
from distilllens.workflows.train_checks import check_cache, check_files

_DESCRIPTION = """\
Run the teacher once over the data of a recipe and store its hidden states, so that training does
not need the teacher. The cache holds the teacher's output head, and at each position that predicts
a target the states at the depths of lens_layers and at the last depth. The command reports the disk
space it needs before it starts. The same command resumes after an interruption; it checks the whole
cache, and writes damaged files again.

examples:
  distilllens cache --config recipe.yaml --teacher_cache caches/teacher
  distilllens train --config recipe.yaml --teacher_cache caches/teacher
  distilllens cache --config recipe.yaml --teacher_cache caches/int8 --teacher_cache_dtype int8
  torchrun --nproc_per_node 2 -m distilllens cache --config recipe.yaml --teacher_cache DIR

The flags are those of distilllens train; per_device_train_batch_size is the teacher's batch size.
Examples are found by their tokens: shuffling, epochs, padding and packing do not matter, another
max_length or prompt template does.
"""


def main(argv: list[str]) -> int:
    """Run the command; raises ValueError for bad input before anything is written."""
    with tempfile.TemporaryDirectory() as unused:
        # transformers requires an output_dir and creates it; this command writes nothing there.
        settings = {"output_dir": unused, "check": _check}
        arguments = read_arguments(argv, "cache", _DESCRIPTION, **settings)
        if arguments is None:
            return 0
        from distilllens.workflows.cache import write_cache

        quiet_libraries()
        say(write_cache(arguments.job, arguments.model, arguments.training))
    return 0


def _check(values):
    check_cache(values)
    check_files(values)
