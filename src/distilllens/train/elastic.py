"""A run that goes on with another number of processes: the same rows in every step."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from distilllens.stored import DamagedFile, read_stored
from distilllens.train.checkpoint import MARK, Mark

logger = logging.getLogger(__name__)
PROCESSES = "number of processes"
# Fields of a recipe whose product is the number of rows of a step, and their defaults.
_SHAPE = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, PROCESSES: 1}
# Where ``settle`` notes the accumulation of the recipe on the arguments that it changes.
_ASKED = "_asked_accumulation"


@dataclass(frozen=True)
class StepRows:
    """How the rows of an optimizer step are shared out.

    Attributes:
        per_device: rows of a micro-batch of a process.
        accumulation: micro-batches of a process.
        asked: the accumulation that the recipe of the run asks for.
    """

    per_device: int
    accumulation: int
    processes: int
    asked: int | None = None

    @classmethod
    def of_args(cls, args) -> StepRows:
        """That of a configuration in this process; ``settle`` keeps what the recipe asks for."""
        accumulation = args.gradient_accumulation_steps
        asked = getattr(args, _ASKED, accumulation)
        return cls(args.train_batch_size, accumulation, args.world_size, asked)

    @classmethod
    def of_fields(cls, fields: Mapping) -> StepRows | None:
        """That of the fields of a recipe (``recipe_identity``); None for what no version wrote."""
        found = [fields.get(name, default) for name, default in _SHAPE.items()]
        known = all(type(value) is int and value > 0 for value in found)
        return cls(*found, found[1]) if known else None

    @classmethod
    def of_checkpoint(cls, folder: Path, args) -> StepRows:
        """That of the run that wrote a checkpoint; of an older one, as far as its files tell."""
        try:
            noted = read_stored(Path(folder) / MARK, Mark).get("step_rows")
        except DamagedFile:
            noted = None
        names = [each.name for each in fields(cls)]
        if noted is not None and min(noted[name] for name in names) > 0:
            return cls(*(noted[name] for name in names))
        ranks = sum(1 for _ in Path(folder).glob("rng_state_*.pth"))
        processes = ranks or (1 if (Path(folder) / "rng_state.pth").exists() else args.world_size)
        return cls(args.train_batch_size, cls.of_args(args).asked, processes)

    @property
    def total(self) -> int:
        """Rows of a step, of all processes."""
        return self.per_device * self.accumulation * self.processes

    def __str__(self):
        plural = "es" if self.processes > 1 else ""
        return (
            f"{self.per_device} rows x {self.accumulation} accumulated x {self.processes} "
            f"process{plural}"
        )


def with_shape_of(before: Mapping, now: Mapping) -> dict:
    """The fields of a recipe, with those of an earlier one that only share out the same rows.

    Raises:
        ValueError: another number of processes cannot make the steps of the earlier recipe.
    """
    old, new = StepRows.of_fields(before), StepRows.of_fields(now)
    if old is None or new is None or old.processes == new.processes:
        return dict(now)
    if old.total != new.total:
        if old.asked != new.asked:  # another accumulation, and it does not keep the rows
            return dict(now)
        accumulation_for(old, new)
    kept = {name: before[name] for name in _SHAPE if name in before}
    return {name: value for name, value in now.items() if name not in _SHAPE} | kept


def accumulation_for(before: StepRows, now: StepRows) -> int:
    """The accumulation with which a step has the rows that it had before.

    Raises:
        ValueError: there is none, with the arithmetic.
    """
    together = now.per_device * now.processes
    if before.total % together == 0:
        return before.total // together
    fits = [n for n in range(1, before.total + 1) if before.total % (n * now.processes) == 0]
    remedy = (
        f"set per_device_train_batch_size to {' or '.join(map(str, fits[-3:]))}, or start a number "
        f"of processes that divides {before.total}"
        if fits
        else f"start a number of processes that divides {before.total}"
    )
    raise ValueError(
        f"the run has {before.total} rows a step ({before}), which {now.processes} processes with "
        f"{now.per_device} rows each cannot make: {before.total} / ({now.processes} x "
        f"{now.per_device}) is no whole number; {remedy}"
    )


def rows_to_keep(begun: StepRows | None, checkpoint: str | Path | None, args) -> StepRows | None:
    """How a run shared out the rows of a step, for ``settle``; None for a new run.

    Args:
        begun: as its recipe says; None without one.
        checkpoint: from which it goes on. A run that began at one of another run may have taken
            over the rows of that one.
    """
    if checkpoint is None:
        return begun
    last = StepRows.of_checkpoint(checkpoint, args)
    if begun is None:
        return last
    if last.asked is not None and _shared_anew(last, begun):
        return replace(begun, accumulation=accumulation_for(last, begun))
    return begun


def _shared_anew(before, now):
    """Whether a run keeps its rows: on other processes, or adapted to these already."""
    again = now.processes == before.processes and now.per_device == before.per_device
    adapted_then = again and now.asked == before.asked != before.accumulation
    return now.processes != before.processes or adapted_then


def settle(args, before: StepRows):
    """Set the accumulation with which this run goes on as it began, on these processes.

    Nothing is changed if the number of processes is that of before and the recipe, too: whoever
    changes a batch size on purpose gets it.

    Raises:
        ValueError: the rows of a step cannot stay, or something else of the step depends on how
            many processes there are.
    """
    now = StepRows.of_args(args)
    if not _shared_anew(before, now):
        return
    _check_independent(args, before, now)
    if now.total == before.total:
        return
    adapted = accumulation_for(before, now)
    setattr(args, _ASKED, now.asked)
    args.gradient_accumulation_steps = adapted
    logger.log(
        logging.WARNING if args.process_index == 0 else logging.DEBUG,
        "the run goes on with %s instead of %s: %d rows a step as before, and the weights of a run "
        "without a change to float32 rounding",
        *(StepRows.of_args(args), before, before.total),
    )


def _check_independent(args, before, now):
    """Refuse what gives a step other rows or weights on other processes."""
    sampling = str(getattr(args.train_sampling_strategy, "value", args.train_sampling_strategy))
    bound = {
        "dataloader_drop_last: true leaves out another number of rows": args.dataloader_drop_last,
        f"train_sampling_strategy: {sampling} sorts rows by process": sampling
        in ("group_by_length", "batch_rebalance"),
        "average_tokens_across_devices: false weighs each process by itself": (
            not args.average_tokens_across_devices
        ),
        "split_batches shares each batch out": args.accelerator_config.split_batches,
        "auto_find_batch_size may change the rows of a step": args.auto_find_batch_size,
        "a checkpoint of DeepSpeed is that of its processes": args.deepspeed,
    }
    for why, is_so in bound.items():
        if is_so:
            raise ValueError(
                f"a run that began with {before} cannot go on with {now.processes} processes: "
                f"{why}; start as many processes as before"
            )
