"""Whole training steps: plain KD, DistillLens, DistillLens from a cache, TRL, as published.

Ours are real DistillLensTrainers: their collator, training_step, clipping and AdamW. All pipelines
of a group take turns on the same rows, so that a drift of the machine affects all of them.
"published" runs alone, because each of its rows is 512 tokens long.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from benchmarks import dolly
from benchmarks.meter import PeakMemory
from benchmarks.pipelines import (
    FORMS,
    SAMPLED,
    SHAPES,
    flops,
    make_runners,
    models,
    num_pairs,
    token_rows,
)
from distilllens import cost

ABOUT = "whole training steps at GPT-2's shapes and at small ones, their memory, answer lengths"
MAIN = ("plain KD", "DistillLens", "DistillLens, cached teacher")


def cases(options) -> list[dict]:
    """Groups of pipelines by shape; each group is a process."""
    if options.toy:
        plan = [("toy", 3, 1, (1, 2))]
    else:
        plan = [("small", 20, 2, ()), ("gpt2", options.rows, 2, (32, 96, 224, 448))]
    found = []
    for shape, count, few, answers in plan:
        base = {"shape": shape, "data": options.data, "tokenizer": options.tokenizer}

        def add(kind, pipelines, steps, base=base, **more):
            name = f"{base['shape']} {kind} {', '.join(pipelines) if len(pipelines) == 1 else ''}"
            case = {"kind": kind, "pipelines": pipelines, "steps": steps, "name": name.strip()}
            found.append(base | case | more)

        add("steps", [*MAIN, "TRL"], count)
        add("steps", ["published"], few)
        add("sampling", ["DistillLens", *SAMPLED], max(2, count // 10))
        add("forms", [*MAIN[:2], *FORMS], max(2, count // 10))
        for pipeline in (*MAIN, "TRL", "published"):
            add("memory", [pipeline], 1)
        if answers:
            add("lengths", list(MAIN[:2]), LENGTH_STEPS, answers=answers)
    return found


def seconds(case: dict, gflop_per_s: float) -> float:
    """An estimate: the flop model, AdamW, and the construction of the models."""
    student, teacher, batch = models(case)
    build, adam = (25, 0.4) if case["shape"] == "gpt2" else (12, 0.02)
    typical = [[(139, 68)] * batch]
    if case["kind"] == "memory":
        typical = [[(480, 250)] * batch]
    if case["kind"] == "lengths":
        typical = [[(64 + answer, answer)] * batch for answer in case["answers"]]
    total = build
    for pipeline in case["pipelines"]:
        steps = case["steps"] if pipeline != "TRL" else min(case["steps"], TRL_STEPS)
        for rows in typical:
            work = sum(flops(pipeline, student, teacher, rows, num_pairs(case)).values()) / 1e9
            slower = 1.3 if pipeline == "published" or case["shape"] == "small" else 1
            total += steps * (slower * work / gflop_per_s + adam)
        if pipeline == MAIN[2]:  # the cache is written first
            write = cost.forward_flops(teacher, [139] * batch) / 1e9
            total += case["steps"] * write / gflop_per_s
    return total


TRL_STEPS, LENGTH_STEPS = 10, 3


def measure(case: dict):
    """The rows of one process."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        yield from KINDS[case["kind"]](case, Path(folder))


def measure_steps(case: dict, folder: Path):
    """Interleaved steps of a group; the row of each pipeline is stored again as it grows."""
    tokenizer, found = token_rows(case)
    size = SHAPES[case["shape"]]["batch"]
    batches = [found[at : at + size] for at in range(0, len(found), size)]
    shortest = min(batches, key=lambda rows: sum(len(row["input_ids"]) for row in rows))
    warm = shortest if len(case["pipelines"]) > 1 else None
    runners, skipped = make_runners(case, found, tokenizer, folder, warm=warm)
    yield from skipped
    for at, rows in enumerate(batches):
        for turn in range(len(runners)):  # nobody is always first
            runner = runners[(at + turn) % len(runners)]
            if runner.pipeline != "TRL" or at < TRL_STEPS:
                runner.run(rows)
        if (at + 1) % 10 == 0 or at + 1 == len(batches):
            yield from (runner.row() for runner in runners)


def measure_lengths(case: dict, folder: Path):
    """The same with random rows of one length at a time: prompts of 64 tokens, longer answers."""
    shape, rng = SHAPES[case["shape"]], random.Random(0)
    tokenizer, _ = token_rows({**case, "steps": 1})
    found = {
        answer: [dolly.random_row(64, answer, shape["vocab"], rng) for _ in range(shape["batch"])]
        for answer in case["answers"]
    }
    everything = [row for rows in found.values() for row in rows]
    warm = found[case["answers"][0]]
    runners, skipped = make_runners(case, everything, tokenizer, folder, warm=warm)
    yield from skipped
    for answer, rows in found.items():
        for runner in runners:
            runner.forget()
        for _ in range(case["steps"]):
            for runner in runners:
                runner.run(rows)
        yield from (runner.row(answer=answer) for runner in runners)


def measure_memory(case: dict, folder: Path):
    """Peaks of a step with median rows, then the longest, above weights, gradients and AdamW."""
    tokenizer, found = token_rows({**case, "steps": 50})
    found = sorted(found, key=lambda row: len(row["input_ids"]))
    size = SHAPES[case["shape"]]["batch"]
    batches = {"median": found[len(found) // 2 :][:size], "longest": found[-size:]}
    if case["pipelines"] == ["published"]:  # every row is as long
        del batches["median"]
    used = [row for rows in batches.values() for row in rows]
    runners, skipped = make_runners(case, used, tokenizer, folder)
    yield from skipped
    for runner in runners:
        runner.run(batches["longest"])  # what is read from files is resident from here on
        for which, rows in batches.items():
            runner.forget()
            runner.fill()
            with PeakMemory() as peak:
                runner.student.zero_grad()  # as at the end of every step; they come back in it
                runner.run(rows)
            row = runner.row(which=which)
            yield {**row, "peak_bytes": peak.bytes}


KINDS = {
    "steps": measure_steps,
    "sampling": measure_steps,
    "forms": measure_steps,
    "lengths": measure_lengths,
    "memory": measure_memory,
}
