"""Whole training steps on a GPU: real DistillLensTrainers in bfloat16 autocast."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from benchmarks.meter import PeakMemory
from benchmarks.pipelines import make_runners, token_rows
from benchmarks.steps import MAIN

SHAPE, STEPS = "gpt2 batch 16", 20
BATCH = {"toy": 2, SHAPE: 16}


def measure(toy: bool, device: torch.device):
    """A row a pipeline, in turns over the same batches, each stored anew as it goes on."""
    shape = "toy" if toy else SHAPE
    case = {"shape": shape, "kind": "steps", "pipelines": list(MAIN), "steps": 3 if toy else STEPS}
    case |= {"data": None, "tokenizer": None, "device": device.type, "dtype": "bfloat16"}
    tokenizer, found = token_rows(case)
    batches = [found[at : at + BATCH[shape]] for at in range(0, len(found), BATCH[shape])]
    batches.sort(key=lambda rows: max(len(row["input_ids"]) for row in rows))
    shortest, longest = batches[0], batches[-1]
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        runners, skipped = make_runners(case, found, tokenizer, Path(folder), warm=longest)
        yield from skipped
        peaks = {}
        for runner in runners:
            runner.run(shortest)
            runner.student.zero_grad()
            with PeakMemory(device) as peak:
                runner.run(longest)
            peaks[runner.pipeline] = memory(runner, peak.bytes)
            runner.forget()
        for at, rows in enumerate(batches):
            for turn in range(len(runners)):  # nobody is always first
                runners[(at + turn) % len(runners)].run(rows)
            if (at + 1) % 5 == 0 or at + 1 == len(batches):
                yield from (finished(runner, peaks[runner.pipeline]) for runner in runners)


def memory(runner, peak: int) -> dict:
    """The peak of a step of the longest rows; what was there before of this pipeline alone."""
    moments = (t for state in runner.optimizer.state.values() for t in state.values())
    tensors = [*runner.student.parameters(), *(t for t in moments if torch.is_tensor(t))]
    held = sum(tensor.nbytes for tensor in tensors)
    return {"peak_bytes": peak, "student_bytes": held}


def finished(runner, peak: dict) -> dict:
    """The runner's row with its speed."""
    row = runner.row(**{})
    seconds = sum(row["seconds"])
    row["tokens_per_s"] = round(sum(row["tokens"]) / seconds)
    row["targets_per_s"] = round(sum(row["targets"]) / seconds)
    row["autocast"] = True
    return {**row, **peak, "name": f"step {row['shape']}: {row['pipeline']}"}
