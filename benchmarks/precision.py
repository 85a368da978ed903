"""Whole training steps on the CPU, in float32 and under bfloat16 autocast in turns.

One trainer takes both steps of every batch, so that neither students nor machines differ. The
teacher's blocks share the weights of two, which no cache of a processor holds: they cost what they
cost otherwise, and take 0.6 GB instead of 6. Only processor seconds are kept, which other work on
the machine hardly changes:

    python -m benchmarks.run precision --threads 1
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import dolly
from benchmarks.markdown import table
from benchmarks.pipelines import OURS, SHAPES, make_model, make_runners, token_rows
from benchmarks.rows import load

ABOUT = "whole training steps on the CPU in float32 and under bfloat16 autocast"
PIPELINES = (
    "plain KD",
    "DistillLens",
    "plain KD, cached teacher",
    "DistillLens, cached teacher",
)
assert set(PIPELINES) <= OURS.keys()
_DISTINCT = 2  # blocks of the teacher with weights of their own


def cases(options) -> list[dict]:
    """A process for each pipeline, dtype of the teacher and number of rows."""
    if options.toy:
        plan = [("toy", 2, PIPELINES, ("float32",))]
    else:
        plan = [
            ("gpt2", 3, PIPELINES, ("float32",)),
            ("gpt2", 3, PIPELINES[1:2], ("bfloat16",)),
            ("gpt2 batch 4", 3, PIPELINES[3:], ("float32",)),
            ("small", 3, PIPELINES[1:2], ("float32",)),
        ]
    return [
        {
            "shape": shape,
            "kind": "precision",
            "pipelines": [pipeline],
            "steps": steps,
            "dtype": dtype,
            "autocast": True,
            "data": options.data,
            "tokenizer": options.tokenizer,
            "name": f"{shape} {pipeline}, teacher in {dtype}",
        }
        for shape, steps, pipelines, dtypes in plan
        for pipeline in pipelines
        for dtype in dtypes
    ]


def seconds(case: dict, gflop_per_s: float) -> float:
    """Two steps of each batch by the flop model, as if none were faster."""
    from benchmarks.steps import seconds as of_steps

    return 2 * of_steps(case, gflop_per_s)


def measure(case: dict):
    """The row of a process."""
    tokenizer, found = token_rows(case)
    size = SHAPES[case["shape"]]["batch"]
    batches = [found[at : at + size] for at in range(0, len(found), size)]
    teacher = make_model(case, "teacher", blocks=_DISTINCT).eval()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        runners, skipped = make_runners(case, found, tokenizer, Path(folder), teacher=teacher)
        if skipped:
            yield from ({**row, "name": case["name"]} for row in skipped)
            return
        times = {"float32": [], "bfloat16": []}
        for at, rows in enumerate([min(batches, key=_tokens), *batches]):
            for dtype in sorted(times, reverse=at % 2):  # nobody is always first
                runners[0].trainer.accelerator.native_amp = dtype == "bfloat16"
                start = time.process_time()
                runners[0].run(rows)
                if at:  # the first warms up
                    times[dtype].append(round(time.process_time() - start, 4))
    yield row_of(case, batches, times)


def row_of(case: dict, batches: list, times: dict) -> dict:
    """Processor seconds of each step by precision."""
    ratios = [a / b for a, b in zip(times["float32"], times["bfloat16"], strict=True)]
    return {
        "operation": "training step",
        **{key: case[key] for key in ("name", "shape")},
        "pipeline": case["pipelines"][0],
        "teacher_dtype": case["dtype"],
        "rows": "Dolly" if case["data"] else "random ids, Dolly's lengths",
        "batch": len(batches[0]),
        "tokens": [_tokens(rows) for rows in batches],
        "targets": [sum(targets for _, targets in dolly.lengths(rows)) for rows in batches],
        "float32_cpu_s": times["float32"],
        "bfloat16_cpu_s": times["bfloat16"],
        "mean_s": round(statistics.mean(times["bfloat16"]), 4),
        "median_ratio": round(statistics.median(ratios), 3),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx": torch.cpu._is_amx_tile_supported(),
    }


def precision_table(folder: Path) -> str:
    """Seconds of a mean step in both precisions, and their ratios step by step."""
    lines = []
    for row in load(folder, "precision"):
        about = [row["pipeline"], row.get("teacher_dtype", ""), row.get("batch", "")]
        if "skipped" in row:
            lines.append([row["shape"], *about, row["skipped"], "", ""])
            continue
        plain, cast = (row[f"{dtype}_cpu_s"] for dtype in ("float32", "bfloat16"))
        found = [a / b for a, b in zip(plain, cast, strict=True)]
        times = f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"
        means = (f"{statistics.mean(each):.2f}" for each in (plain, cast))
        lines.append([row["shape"], *about, *means, times])
    head = "shape | pipeline | teacher's weights | rows a step | float32, s | bf16 autocast, s"
    return table(f"{head} | x faster: median (range)", lines)


def _tokens(rows):
    return sum(tokens for tokens, _ in dolly.lengths(rows))


TABLES = {"precision": precision_table}
