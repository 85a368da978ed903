"""Whole training steps on a GPU: real DistillLensTrainers in bfloat16 autocast.

Every batch is run twice by every pipeline. The first pass shows what a new batch shape costs (the
attention kernels are prepared for it once per process, by whichever pipeline meets it first), the
second pass is the measurement. Afterwards one step is watched: how long the GPU is busy, and where
the host waits for it.
"""

from __future__ import annotations

import collections
import tempfile
import traceback
import warnings
from pathlib import Path

import torch

from benchmarks.meter import PeakMemory
from benchmarks.pipelines import make_runners, token_rows
from benchmarks.steps import MAIN

SHAPE, STEPS = "gpt2 batch 16", 20
BATCH = {"toy": 2, SHAPE: 16}


def names() -> set[str]:
    """The names of the rows on a GPU."""
    return {name_of(SHAPE, pipeline) for pipeline in MAIN}


def name_of(shape: str, pipeline: str) -> str:
    """The name of a pipeline's row."""
    return f"step {shape}: {pipeline}"


def measure(toy: bool, device: torch.device):
    """One row per pipeline, which take turns over the same batches; stored again as it grows."""
    shape = "toy" if toy else SHAPE
    case = {"shape": shape, "kind": "steps", "pipelines": list(MAIN), "steps": 3 if toy else STEPS}
    case |= {"data": None, "tokenizer": None, "device": device.type, "dtype": "bfloat16"}
    tokenizer, found = token_rows(case)
    batches = [found[at : at + BATCH[shape]] for at in range(0, len(found), BATCH[shape])]
    batches.sort(key=longest_row)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        runners, skipped = make_runners(case, found, tokenizer, Path(folder), warm=batches[-1])
        for row in skipped:
            yield {**row, "name": name_of(shape, row["pipeline"])}
        peaks = {runner.pipeline: memory(runner, batches, device) for runner in runners}
        for _ in take_turns(runners, batches):
            pass
        for runner in runners:
            runner.more["first_seconds"] = runner.seconds
            runner.forget()
        for at in take_turns(runners, batches):
            if (at + 1) % 5 == 0 or at + 1 == len(batches):
                yield from (finished(runner, batches, peaks) for runner in runners)
        middle = len(batches) // 2
        for runner in runners if device.type == "cuda" else ():
            row = finished(runner, batches, peaks)
            yield row | watched(runner, batches[middle], row["seconds"][middle])


def longest_row(rows: list[dict]) -> int:
    """The tokens of the longest row of a batch."""
    return max(len(row["input_ids"]) for row in rows)


def take_turns(runners, batches):
    """Run every batch with every pipeline; each number of a batch is given when that is done."""
    for at, rows in enumerate(batches):
        for turn in range(len(runners)):  # no pipeline is always first
            runners[(at + turn) % len(runners)].run(rows)
        yield at


def memory(runner, batches, device) -> dict:
    """The peak of a step with the longest rows; what existed before counts for this one alone."""
    runner.run(batches[0])
    runner.student.zero_grad()
    with PeakMemory(device) as peak:
        runner.run(batches[-1])
    runner.forget()
    moments = (t for state in runner.optimizer.state.values() for t in state.values())
    tensors = [*runner.student.parameters(), *(t for t in moments if torch.is_tensor(t))]
    held = sum(tensor.nbytes for tensor in tensors)
    return {"peak_bytes": peak.bytes, "student_bytes": held}


def finished(runner, batches, peaks: dict) -> dict:
    """The runner's row with its speed."""
    row = runner.row()
    seconds = sum(row["seconds"])
    row["tokens_per_s"] = round(sum(row["tokens"]) / seconds)
    row["targets_per_s"] = round(sum(row["targets"]) / seconds)
    padded = [len(rows) * longest_row(rows) for rows in batches]
    row["padded_tokens"] = padded[: len(row["seconds"])]
    row["autocast"] = True
    name = name_of(row["shape"], row["pipeline"])
    return {**row, **peaks[runner.pipeline], "name": name}


def watched(runner, rows, seconds: float) -> dict:
    """How busy the GPU is in a step that took ``seconds``, and the waits of the host by place."""
    try:
        row = {"watched_s": seconds, "busy_s": busy_seconds(runner, rows)}
        row["waits"] = waits(runner, rows)
        return row
    except Exception:  # the profiler is a development tool, and the timings are there already
        traceback.print_exc()
        return {}


def busy_seconds(runner, rows) -> float:
    """The sum of all kernels of a step; the largest are printed."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        runner.run(rows)
    events = [
        event
        for event in profile.key_averages()
        if event.device_type != torch.autograd.DeviceType.CPU
        and not getattr(event, "is_user_annotation", False)  # spans around kernels
    ]
    events.sort(key=lambda event: -event.self_device_time_total)
    print(f"kernels of {runner.pipeline}:")
    for event in events[:12]:
        print(f"  {event.self_device_time_total / 1e3:8.2f} ms {event.count:5d} x {event.key[:90]}")
    print(f"  {sum(event.count for event in events)} kernels and copies")
    return round(sum(event.self_device_time_total for event in events) / 1e6, 5)


def waits(runner, rows) -> dict[str, int]:
    """Place -> how often the host waited there for the GPU during one step."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            runner.run(rows)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = collections.Counter()
    for warning in found:
        if "called a synchronizing" in str(warning.message):
            file = Path(warning.filename)
            places[f"{file.parent.name}/{file.name}:{warning.lineno}"] += 1
    print(f"waits of {runner.pipeline}: {sum(places.values())}")
    for place, count in places.most_common(12):
        print(f"  {count:5d} x {place}")
    return dict(places)
