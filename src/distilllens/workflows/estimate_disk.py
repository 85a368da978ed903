"""Bytes that a run writes: checkpoints, the final model, the teacher cache; and what is free.

Weights and states are counted; tokenizers and logs are not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from distilllens.files import existing, free_at, in_bytes
from distilllens.workflows.estimate_run import Run

# A cache whose size follows from some of the rows is refused only where it is clearly too large.
_SAMPLED = 0.9


@dataclass(frozen=True)
class Disk:
    """Bytes on disk.

    Args:
        checkpoint: of one.
        num_checkpoints: how many there are at the same time, the one being written included; None
            if the number of steps is not known.
        final: of the final model.
        caches: of the teacher caches, by folder.
        exact: whether a cache's size follows from all rows.
    """

    checkpoint: int
    num_checkpoints: int | None
    final: int
    caches: Mapping[str, int]
    exact: bool = True

    @property
    def cache(self) -> int:
        """Of all teacher caches."""
        return sum(self.caches.values())

    @property
    def output(self) -> int:
        """Of the output folder, as far as it is known."""
        return self.checkpoint * (self.num_checkpoints or 0) + self.final


def disk_of(run: Run, num_devices: int = 1) -> Disk:
    """What a run writes."""
    sizes, args = run.sizes, run.args
    trained = sizes.trained_bytes if sizes.trained < sizes.parameters else sizes.student_bytes
    states = 0 if args.save_only_model else round(run.state_bytes * sizes.trained)
    final = trained
    if args.save_dtype not in ("auto", "float32") and trained == sizes.student_bytes:
        final = trained * 2 // run.student.dtype.itemsize
    num = _checkpoints(args, run.steps(num_devices))
    there = [each for each in run.each if each.is_cached and each.has_teacher]
    caches = {each.args.teacher_cache: _cache(each) for each in there}
    return Disk(trained + states, num, final, caches, run.rows.whole)


def check_space(disk: Disk, output_dir: str) -> None:
    """Refuse to begin a run whose files its disks cannot hold.

    What lies in the folders already, of a run that goes on, is counted as written.

    Raises:
        ValueError: with the folder, what it needs and what is free.
    """
    needs = {}
    if disk.output:
        written = _written(Path(output_dir), "checkpoint-*/**/*")
        needs["output_dir", output_dir] = max(0, disk.output - written)
    for folder, size in disk.caches.items():
        size = size if disk.exact else round(_SAMPLED * size)
        needs["teacher_cache", folder] = max(0, size - _written(Path(folder), "**/*"))
    taken = {}
    for (name, folder), size in needs.items():
        on = existing(folder).stat().st_dev
        left = free_at(folder) - taken.get(on, 0)
        if size > left:
            raise ValueError(_too_little(name, folder, size, left, disk))
        taken[on] = taken.get(on, 0) + size


def disk_in_words(disk: Disk) -> str:
    """What is written, in words."""
    num, words = disk.num_checkpoints, f"final model {in_bytes(disk.final)}"
    if num != 0:
        many = {None: "an unknown number of checkpoints", 1: "1 checkpoint"}
        words += f", {many.get(num, f'{num} checkpoints at a time')} of {in_bytes(disk.checkpoint)}"
    return words + (f", teacher cache {in_bytes(disk.cache)}" if disk.cache else "")


def _too_little(name, folder, size, left, disk):
    what = "the teacher's states"
    advice = "teacher_cache_dtype int8 takes less"
    if name == "output_dir":
        num = disk.num_checkpoints or 0
        what = f"the final model and {num} checkpoint{'s' if num != 1 else ''} at a time, "
        what += f"{in_bytes(disk.checkpoint)} each"
        advice = "set save_total_limit, save_only_model or a larger save_steps"
    return (
        f"{name} {folder} needs {in_bytes(size)} ({what}), and its disk has {in_bytes(left)} "
        f"free; {advice}, or name another folder"
    )


def _checkpoints(args, steps):
    """Checkpoints that exist at the same time; None if the steps are not known."""
    strategy = str(getattr(args.save_strategy, "value", args.save_strategy))
    if strategy == "no":
        return 0
    num = math.inf
    if strategy == "epoch" and args.max_steps <= 0:
        num = math.ceil(args.num_train_epochs)
    elif strategy == "steps" and steps is not None:
        every = args.save_steps if args.save_steps >= 1 else max(1, steps * args.save_steps)
        num = math.ceil(steps / every)
    elif strategy == "best":
        num = 1
    limit = args.save_total_limit
    # The newest is complete before the oldest goes; the best one stays beside the last.
    if limit and limit > 0:
        num = min(num, max(limit, 2 if args.load_best_model_at_end else 1) + 1)
    return None if num == math.inf else int(num)


def _cache(run):
    """Bytes of the states at the depths that are read and the last, and of the head."""
    shape, rows = run.sizes.teacher, run.rows
    if rows.num is None:
        return 0
    size = run.teacher.dtype.itemsize
    number = shape.width * size if run.args.teacher_cache_dtype == "auto" else shape.width + 4
    positions = rows.num * rows.targets * rows.unique
    return round(positions * (run.num_pairs + 1) * number) + shape.vocab * shape.width * size


def _written(folder, pattern):
    return sum(file.stat().st_size for file in folder.glob(pattern) if file.is_file())
