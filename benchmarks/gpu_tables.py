"""Tables of gpu.jsonl: the loss, whole steps, and errors."""

from __future__ import annotations

from pathlib import Path

from benchmarks import rows
from benchmarks.loss_tables import ENGINE_NAMES
from benchmarks.markdown import table

NAMES = ENGINE_NAMES | {"triton": "ours, `triton`", "Liger, eager": "Liger-Kernel, not compiled"}


def loss_table(folder: Path) -> str:
    """Milliseconds, over the fastest products of the group, first call, memory and errors."""
    lines = []
    found = of(folder, "loss")
    for row in found:
        chunk = f" {row['chunk']}" if row.get("chunk") else ""
        line = [row["shape"], row["tokens"], mode(row), NAMES.get(row["engine"], "") + chunk]
        if "skipped" in row:
            lines.append([*line, row["skipped"], "", "", "", "", ""])
            continue
        low, high = 1e3 * row["min_s"], 1e3 * row["max_s"]
        line += [f"{1e3 * row['median_s']:.2f} ({low:.2f} to {high:.2f})"]
        floor = min((r["median_s"] for r in found if is_floor(r, row)), default=None)
        line += [f"{row['median_s'] / floor:.2f}" if floor else "", f"{row['first_s']:.1f}"]
        line += [(row["peak_bytes"] - row["gradient_bytes"]) >> 20]
        lines.append([*line, f"{row.get('value_error', 0):.0e}", row.get("wrong", "")])
    head = "shape | N | dtype | engine | ms: median (range) | x floor | first call, s"
    return table(f"{head} | MiB beside inputs and gradients | error of value | wrong", lines)


def step_table(folder: Path) -> str:
    """Milliseconds and tokens a second of each pipeline."""
    lines = []
    for row in of(folder, "training step"):
        if "skipped" in row:
            lines.append([row["pipeline"], row["skipped"], "", "", "", ""])
            continue
        line = [row["pipeline"], f"{1e3 * row['mean_s']:.1f}", row["tokens_per_s"]]
        held = (row["student_bytes"] + row.get("teacher_bytes", 0)) >> 20
        lines.append([*line, row["targets_per_s"], row["peak_bytes"] >> 20, held])
    head = "pipeline | ms a step | tokens/s | response tokens/s | MiB beside weights and AdamW"
    return table(f"{head} | MiB of these", lines)


def precision_table(folder: Path) -> str:
    """Relative errors against float64."""
    keys = ("value_error", "student_gradient_error", "head_gradient_error")
    lines = [
        [mode(row), row["engine"], *(f"{row[k]:.1e}" if k in row else "" for k in keys)]
        for row in of(folder, "precision")
    ]
    return table("mode | engine | value | gradient of states | of the head", lines)


def short(folder: Path) -> str:
    """Everything, narrow enough for a terminal."""
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
            numbers = f"{1e3 * row['mean_s']:9.2f} ms {row['peak_bytes'] >> 20:6d} MiB"
            lines.append(f"{name:58s} {numbers}  {row['tokens_per_s']} tokens/s")
        elif name != "environment":
            lines.append(f"{name:58s} {row.get('skipped') or row.get('summary')}")
    return "\n".join(lines)


def of(folder: Path, operation: str) -> list[dict]:
    """The rows of an operation."""
    return [row for row in rows.load(folder, "gpu") if row["operation"] == operation]


def mode(row: dict) -> str:
    """What is computed in."""
    if row.get("autocast"):
        return "bfloat16 autocast"
    return row["dtype"] + (", TF32" if row.get("tf32") else "")


def is_floor(row: dict, of_row: dict) -> bool:
    """Whether a row is products of the same shape and dtype."""
    same = all(row[key] == of_row[key] for key in ("shape", "tokens"))
    return row["engine"] == "products" and "median_s" in row and same and mode(row) == mode(of_row)


TABLES = {"gpu-loss": loss_table, "gpu-steps": step_table, "gpu-precision": precision_table}
