"""Seconds of a step by the cost model: the larger of flops and bytes over what a device gives."""

from __future__ import annotations

from distilllens import cost
from distilllens.workflows.estimate_devices import Device
from distilllens.workflows.estimate_run import Run

_DETACHED = 1  # forwards that a backward pass costs if the weights are frozen; else 2


def step_flops(run: Run) -> dict[str, int]:
    """Flops of an optimizer step of one device, by term."""
    return _times(run)[0]


def step_seconds(run: Run, device: Device, num_devices: int = 1, sharded: bool = False) -> float:
    """Seconds of an optimizer step, summing gradients or gathering weights included."""
    flops, bytes_ = _times(run)
    half = run.autocast() is not None or run.student.dtype.itemsize == 2
    speed, flow = device.efficiency
    rate = (device.half if half else device.full) * speed
    found = cost.roofline_seconds(flops, bytes_, rate, device.bandwidth * flow)
    if run.has_teacher and not half and run.teacher.dtype.itemsize == 2:
        name = "teacher forward"
        time = cost.roofline_seconds(flops, bytes_, device.half * speed, device.bandwidth * flow)
        found[name] = time[name]
    seconds = sum(found.values()) + device.overhead
    if num_devices > 1 and device.link:
        passes = 3 if sharded else 2  # of the weights, gathered twice; and of the gradients
        moved = passes * run.sizes.trained_bytes * (num_devices - 1) / num_devices
        seconds += moved / device.link
    return seconds


def _times(run):
    """Flops and bytes of an optimizer step, by term, with all teachers."""
    flops, bytes_ = _times_alone(run)
    batch = run.batch()
    outputs = batch.targets * run.args.gradient_accumulation_steps * run.sizes.student.vocab
    for other in run.others:
        for all_, more in zip((flops, bytes_), _times_alone(other), strict=True):
            for term in ("teacher forward", "lens"):
                all_[term] += more[term]
        flops["output"] += round(2 * outputs * other.sizes.teacher.width)
        # A tile of its logits in float32, written and read.
        bytes_["output"] += 0 if run.args.use_cpu else round(2 * 4 * outputs)
    return flops, bytes_


def _times_alone(run):
    """As ``_times``, with the first teacher."""
    args, sizes, batch = run.args, run.sizes, run.batch()
    rows = [(round(batch.length), round(batch.targets / batch.rows))] * batch.rows
    lens = args.lens_weight > 0 and run.num_pairs > 0
    live = run.has_teacher and not run.is_cached
    pipeline = ("DistillLens" if lens else "plain KD") + ("" if live else ", cached teacher")
    teacher = sizes.teacher or sizes.student
    share = args.lens_token_fraction * args.lens_pair_fraction
    shape = (pipeline, sizes.student, teacher, rows, run.num_pairs)
    flops = cost.step_flops(*shape, share=share)
    passes = cost.EAGER if args.use_cpu else cost.FUSED
    size = 2 if run.autocast() is not None else run.student.dtype.itemsize
    bytes_ = cost.step_bytes(*shape, size=size, passes=passes, chunk=1024)
    if args.use_cpu:  # blocks of rows stay in the cache of a processor
        for name in ("output", "lens"):
            bytes_[name] = 0
    if not run.has_teacher:
        n = sum(targets for _, targets in rows)
        flops["output"] = 6 * n * sizes.student.vocab * sizes.student.width
    elif args.cross_entropy_weight:
        n = sum(targets for _, targets in rows)
        flops["output"] += 4 * n * sizes.student.vocab * sizes.student.width
    forward = flops["student forward"]
    if sizes.trained < sizes.parameters:
        flops["student backward"] = _DETACHED * forward
    if args.activation_checkpointing:
        flops["student backward"] += forward
    for each in (flops, bytes_):
        for term in each:
            each[term] *= args.gradient_accumulation_steps if term != "optimizer" else 1
        each["optimizer"] = round(each["optimizer"] * sizes.trained / sizes.parameters)
    return flops, bytes_
