"""Tables of gpu.jsonl: the loss, whole steps, and errors."""

from __future__ import annotations

import statistics
from pathlib import Path

from benchmarks import rows
from benchmarks.loss_tables import ENGINE_NAMES
from benchmarks.markdown import table

NAMES = ENGINE_NAMES | {
    "auto": "ours, `auto`",
    "triton": "ours, `triton`",
    "Liger": "Liger-Kernel, compiled",
    "Liger, eager": "Liger-Kernel, not compiled",
}


def loss_table(folder: Path) -> str:
    """Milliseconds, their ratio to the fastest products, first call, memory and errors."""
    lines = []
    found = of(folder, "loss")
    for row in found:
        chunk = f" {row['chunk']}" if row.get("chunk") else ""
        line = [row["shape"], row["tokens"], mode(row), NAMES.get(row["engine"], "") + chunk]
        if "skipped" in row:
            lines.append([*line, row["skipped"], "", "", "", ""])
            continue
        low, high = 1e3 * row["min_s"], 1e3 * row["max_s"]
        line += [f"{1e3 * row['median_s']:.2f} ({low:.2f} to {high:.2f})"]
        floor = min((r["median_s"] for r in found if is_floor(r, row)), default=None)
        line += [f"{row['median_s'] / floor:.2f}" if floor else "", f"{row['first_s']:.1f}"]
        line += [(row["peak_bytes"] - row["gradient_bytes"]) >> 20]
        found_errors = [f"{row[key]:.0e}" if key in row else "" for key in ERRORS]
        # Inside the errors' cells, because a row is rarely wrong.
        lines.append([*line, " / ".join(filter(None, found_errors)) + _mark(row)])
    head = "shape | N | dtype | engine | ms: median (range) | x floor | first call, s"
    return table(f"{head} | MiB beside inputs and gradients | relative errors", lines)


ERRORS = ("value_error", "student_gradient_error", "head_gradient_error")


def _mark(row):
    return f" (over the bound: {row['wrong']})" if "wrong" in row else ""


def step_table(folder: Path) -> str:
    """The median step of each pipeline and its speed; the first pass over the batches beside it."""
    lines = []
    for row in of(folder, "training step"):
        if "skipped" in row:
            lines.append([row["pipeline"], row["skipped"], "", "", "", "", "", ""])
            continue
        line = [row["pipeline"], _milliseconds(row["seconds"])]
        line += [_milliseconds(row["first_seconds"]) if "first_seconds" in row else "in the left"]
        line += [row["tokens_per_s"], row["targets_per_s"]]
        busy = f"{row['busy_s'] / row['watched_s']:.0%}" if "busy_s" in row else ""
        held = (row["student_bytes"] + row.get("teacher_bytes", 0)) >> 20
        lines.append([*line, busy, row["peak_bytes"] >> 20, held])
    head = "pipeline | ms per step: median (range) | ms when a batch shape is new | tokens/s"
    head += " | response tokens/s | GPU busy | MiB beside weights and AdamW"
    return table(f"{head} | MiB of these", lines)


def _milliseconds(seconds):
    low, middle, high = (f(seconds) * 1e3 for f in (min, statistics.median, max))
    return f"{middle:.0f} ({low:.0f} to {high:.0f})"


def precision_table(folder: Path) -> str:
    """Relative errors against float64."""
    lines = [
        [mode(row), row["engine"], *(f"{row[k]:.1e}" if k in row else "" for k in ERRORS)]
        for row in of(folder, "precision")
    ]
    return table("mode | engine | value | gradient of states | of the head", lines)


def short(folder: Path) -> str:
    """All rows, narrow enough for a terminal."""
    lines = []
    for row in rows.load(folder, "gpu"):
        name = row["name"]
        if "median_s" in row:
            beside = (row["peak_bytes"] - row["gradient_bytes"]) >> 20
            numbers = f"{1e3 * row['median_s']:9.2f} ms {beside:6d} MiB"
            errors = f"  err {row['value_error']:.0e}" if "value_error" in row else ""
            errors += f" {row['head_gradient_error']:.0e}" if errors else ""
            lines.append(f"{name:58s} {numbers}{errors}{'  WRONG' if 'wrong' in row else ''}")
        elif "mean_s" in row:
            middle = 1e3 * statistics.median(row["seconds"])
            numbers = f"{middle:9.2f} ms {row['peak_bytes'] >> 20:6d} MiB"
            more = f", GPU busy {1e3 * row['busy_s']:.1f} ms" if "busy_s" in row else ""
            more += f", {sum(row['waits'].values())} waits" if "waits" in row else ""
            lines.append(f"{name:58s} {numbers}  {row['tokens_per_s']} tokens/s{more}")
        elif name != "environment":
            lines.append(f"{name:58s} {row.get('skipped') or row.get('summary')}")
    return "\n".join(lines)


def of(folder: Path, operation: str) -> list[dict]:
    """The rows of an operation."""
    return [row for row in rows.load(folder, "gpu") if row["operation"] == operation]


def mode(row: dict) -> str:
    """The dtype, with TF32 or autocast."""
    if row.get("autocast"):
        return "bfloat16 autocast"
    return row["dtype"] + (", TF32" if row.get("tf32") else "")


def is_floor(row: dict, of_row: dict) -> bool:
    """Whether a row is products of the same shape and dtype."""
    same = all(row[key] == of_row[key] for key in ("shape", "tokens"))
    products = row["engine"].startswith("products") and "median_s" in row
    return products and same and mode(row) == mode(of_row)


TABLES = {"gpu-loss": loss_table, "gpu-steps": step_table, "gpu-precision": precision_table}
