"""``distilllens cache``: run a teacher once over a recipe's data and keep its states."""

from __future__ import annotations

import tempfile

from distilllens.cli.train import read_arguments, say

_DESCRIPTION = """\
Run the teacher once over the data of a recipe and keep its states, for training that needs no
teacher. It stores the normed states at the depths that the recipe's lens reads, and the last, at
the positions that predict a target; and the teacher's head. What it will take on the disk is said
first. Killed, the same command goes on.

examples:
  distilllens cache --config recipe.yaml --teacher_cache caches/teacher
  distilllens train --config recipe.yaml --teacher_cache caches/teacher
  distilllens cache --config recipe.yaml --teacher_cache caches/int8 --teacher_cache_dtype int8
  torchrun --nproc_per_node 2 -m distilllens cache --config recipe.yaml --teacher_cache DIR

The flags are those of distilllens train. Documents are found by their tokens, so shuffling, epochs,
padding and packing of the same documents do not matter; another max_length or template does.
per_device_train_batch_size is the batch in which the teacher runs.
"""


def main(argv: list[str]) -> int:
    """Run the command; raises ValueError for bad input before anything is written."""
    with tempfile.TemporaryDirectory() as unused:
        # The host makes the folder of a run's output, and this command has nothing to put there.
        arguments = read_arguments(argv, "cache", _DESCRIPTION, output_dir=unused)
        if arguments is None:
            return 0
        from distilllens.workflows.cache import write_cache

        say(write_cache(*arguments[:3]))
    return 0
