"""Which ways of training on several devices fit into their memory, and what they cost."""

from __future__ import annotations

from distilllens.train.teacher_checks import REPLICATE, SHARD
from distilllens.workflows.estimate_devices import Device
from distilllens.workflows.estimate_run import Run, cached
from distilllens.workflows.estimate_teachers import measure
from distilllens.workflows.estimate_time import step_seconds

_SHARDED = ("weights", "gradients", "optimizer")


def plans_of(run: Run, device: Device, num: int, price: float | None, parts: dict) -> list[dict]:
    """The plans, each with the memory of a device, whether it fits, its time and its cost.

    Args:
        num: of devices.
        price: of a device for an hour, or None.
        parts: of the memory of one device, as ``estimate_step.measure``.
    """
    found = []
    alone = "one device" if num == 1 else "DDP"
    teacher = "" if not run.has_teacher else ", teacher " + ("live" if run.live else "cached")
    found.append(_plan(alone + teacher, run, device, num, price, _ddp(run, parts, num)))
    if num > 1 and not device.is_cpu:
        whole = run.args.teacher_sharding == REPLICATE
        for name in ("FSDP2", "ZeRO-3"):
            size = _sharded(run, parts, num, gathers_whole=name == "FSDP2")
            words = teacher.replace("live", "live and whole") if whole else teacher
            found.append(_plan(name + words, run, device, num, price, size, sharded=True))
    if run.live:
        other = cached(run)
        memory = _ddp(other, measure(other.step(device)), num)
        found.append(_plan(f"{alone}, teacher cached", other, device, num, price, memory))
    return found


def largest_batch(run: Run, device: Device, parts: dict) -> int:
    """The most rows for which a step fits into a device; 0 if one row does not.

    Args:
        parts: of a step of ``run.batch()``.
    """
    step, total = run.step(device), sum(parts.values())
    more = step.of(2 * step.rows)
    each = (sum(measure(more).values()) - total) / step.rows
    if each <= 0:
        return 0 if total > device.memory else step.rows
    rows = max(0, int(step.rows + (device.memory - total) // each))
    while rows and sum(measure(step.of(rows)).values()) > device.memory:
        rows = int(0.97 * rows)
    return rows


def _plan(name, run, device, num, price, memory, *, sharded=False):
    seconds, steps = step_seconds(run, device, num, sharded), run.steps(num)
    hours = None if steps is None else seconds * steps / 3600
    return {
        "name": name,
        "memory": round(memory),
        "fits": memory <= device.memory,
        "seconds_per_step": seconds,
        "hours": hours,
        "cost": None if price is None or hours is None else hours * num * price,
    }


def _ddp(run, parts, num):
    """DDP sums gradients in buckets, a copy of them all."""
    return sum(parts.values()) + (run.sizes.trained_bytes if num > 1 else 0)


def _sharded(run, parts, num, gathers_whole):
    """What is sharded is divided; a block of weights and the head are whole for a moment.

    FSDP2 gathers the teacher as one unit, ZeRO-3 module by module, unless each device keeps it.
    """
    sizes = run.sizes
    size = sum(part / num if name in _SHARDED else part for name, part in parts.items())
    head = sizes.student.vocab * sizes.student.width * run.student.dtype.itemsize
    size += 2 * sizes.student_bytes / max(1, sizes.student.layers) + head
    shards = run.args.teacher_sharding == SHARD
    if shards and (teachers := [each.sizes for each in run.live]):
        whole = sum(each.teacher_bytes for each in teachers)
        size += whole / num - whole
        blocks = (2 * each.teacher_bytes / max(1, each.teacher.layers) for each in teachers)
        size += whole if gathers_whole else max(blocks)
    return size
