"""``distilllens estimate``: the memory, time, disk and cost of a run, before anything is loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from distilllens.errors import one_line
from distilllens.files import free_at, in_bytes
from distilllens.train.progress import duration
from distilllens.workflows import students, train_data
from distilllens.workflows.estimate_devices import check_options
from distilllens.workflows.estimate_disk import check_space, disk_in_words, disk_of
from distilllens.workflows.estimate_machine import device_of, shared
from distilllens.workflows.estimate_plans import largest_batch, plans_of
from distilllens.workflows.estimate_run import Run, on_device, run_of
from distilllens.workflows.estimate_teachers import measure
from distilllens.workflows.estimate_time import step_flops, step_seconds
from distilllens.workflows.identity import check_depths

logger = logging.getLogger(__name__)


def estimate(
    job,
    model,
    args,
    given: dict,
    *,
    device: str | None = None,
    num_devices: int = 1,
    price: float | None = None,
) -> dict[str, Any]:
    """What a run takes, from its configurations and its rows; no weight is read.

    Args:
        job, model, args, given: as ``workflows.train.run_job``.
        device: a name of ``estimate_devices``; None is this machine.
        num_devices: that train together.
        price: of a device for an hour.

    Returns:
        What ``--json`` prints: sizes in bytes; None for what is not known, and in ``unknown`` why.

    Raises:
        ValueError: data, models or fields that do not fit, or as ``check_options``.
    """
    check_options(device, num_devices, price)
    students.check_student(job, model, args)
    args = students.with_student_settings(job, model, args)
    logger.info("reading the configurations and the data")
    tokenizer = students.load_student_tokenizer(job, model, args)
    config = students.load_student_config(job, model, args, tokenizer)
    check_depths(args, config)
    if job.student_config is None:
        args = students.with_save_dtype(model, args, config)
    found = shared(device_of(device), num_devices)
    args = on_device(args, given, found)
    reader = students.as_trained(tokenizer, args)
    examples, unknown = _examples(job, args, reader)
    run = run_of(job, model, args, config, reader, examples)
    run.unknown.extend(unknown)
    return _found(run, found, num_devices, price)


def say_before_training(run: Callable[[], Run], args) -> None:
    """Three lines on memory, time and disk of a run that is about to start.

    Nothing that cannot be told prevents it.

    Args:
        run: makes the run.

    Raises:
        ValueError: the disks cannot hold what it writes.
    """
    try:
        run = run()
        disk = disk_of(run, args.world_size)
    except Exception as error:  # models that cannot be built without weights, or of other versions
        logger.info("estimate  unknown: %s", one_line(error))
        return
    check_space(disk, args.output_dir)
    try:
        own = device_of("cpu" if args.use_cpu else None)
        device = shared(own, args.world_size, is_measured_alone=False)
        parts = measure(run.step(device))
        memory = f"{in_bytes(sum(parts.values()))} a device: {_in_parts(parts)}"
    except Exception as error:  # as above
        memory = f"unknown: {one_line(error)}"
    try:
        time = _time_in_words(*_time(run, device, args.world_size))
    except Exception as error:  # as above
        time = f"unknown: {one_line(error)}"
    logger.info("memory    %s", memory)
    logger.info("time      %s", time)
    logger.info("disk      %s", disk_in_words(disk))
    for reason in run.unknown:
        logger.info("unknown   %s", reason)


def _examples(job, args, reader):
    """The training examples, and what is not known of them; None for rows that are elsewhere."""
    try:
        records = train_data.load_all(job, reader, args)
        return train_data.examples_of(job, args, reader, records)["train"], []
    except (ValueError, OSError) as error:
        if job.train_file is not None:
            raise
        return None, [f"the data: {one_line(error)}"]


def _found(run, device, num_devices, price):
    """The estimate as one mapping."""
    sizes, batch, steps = run.sizes, run.batch(), run.steps(num_devices)
    seconds, _ = _time(run, device, num_devices)
    memory = measured = None
    try:
        measured = measure(run.step(device))
        memory = {**measured, "total": sum(measured.values()), "available": device.memory}
    except Exception as error:  # a model that does not run without numbers
        run.unknown.append(f"memory: {one_line(error)}")
    disk = disk_of(run, num_devices)
    teacher = None
    if run.has_teacher:
        each = [one.sizes for one in run.each]
        teacher = {"parameters": sum(one.teacher_parameters for one in each)}
        teacher["bytes"] = sum(one.teacher_bytes for one in each)
        teacher |= {"models": len(each)} if run.others else {}
    student = {"parameters": sizes.parameters, "trained": sizes.trained}
    return {
        "device": {
            name: getattr(device, name)
            for name in ("name", "title", "memory", "half", "full", "bandwidth", "link", "source")
        },
        "num_devices": num_devices,
        "student": {**student, "bytes": sizes.student_bytes},
        "teacher": teacher,
        "pairs": sum(one.num_pairs for one in run.each),
        "rows": run.rows.num,
        "tokens_per_row": round(run.rows.tokens, 1),
        "targets_per_row": round(run.rows.targets, 1),
        "batch": {"rows": batch.rows, "mean_length": round(batch.length, 1)}
        | {"longest": batch.longest, "mean_targets": round(batch.targets, 1)},
        "precision": str(run.autocast() or run.student.dtype).removeprefix("torch."),
        "memory": memory,
        "largest_batch": None if memory is None else largest_batch(run, device, measured),
        "flops": step_flops(run),
        "seconds_per_step": seconds,
        "steps": steps,
        "hours": None if steps is None else seconds * steps / 3600,
        "disk": {
            "checkpoint": disk.checkpoint,
            "checkpoints": disk.num_checkpoints,
            "final": disk.final,
            "cache": disk.cache,
            "free": free_at(run.args.output_dir),
            "words": disk_in_words(disk),
        },
        "plans": [] if memory is None else plans_of(run, device, num_devices, price, measured),
        "price": price,
        "unknown": run.unknown,
    }


def _time(run, device, num_devices):
    """Seconds of a step, and steps or None."""
    return step_seconds(run, device, num_devices), run.steps(num_devices)


def _in_parts(parts):
    return ", ".join(f"{name} {in_bytes(size)}" for name, size in parts.items() if size)


def _time_in_words(seconds, steps):
    many = f"{steps} step" if steps == 1 else f"{steps or 0:,} steps"
    whole = "an unknown number of steps" if steps is None else many
    total = "" if steps is None else f", {duration(seconds * steps)} in all"
    return f"{seconds:.3g} s a step, {whole}{total}"
