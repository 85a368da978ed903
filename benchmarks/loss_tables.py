"""Tables of the loss alone: engines and rivals, chunk sizes, growth with tokens and pairs."""

from __future__ import annotations

from pathlib import Path

from benchmarks import rows
from benchmarks.markdown import table


def loss_table(folder: Path, keep=lambda row: True) -> str:
    """Seconds, their ratio to the fastest products, memory beside inputs and gradients."""
    found = [row for row in rows.load(folder, "loss") if keep(row)]
    lines = []
    for row in found:
        chunk = f" {row['chunk']}" if row.get("chunk") else ""
        line = [f"{ENGINE_NAMES.get(row['engine'], row['engine'])}{chunk}", row["tokens"]]
        line += [row["dtype"]]
        if "skipped" in row:
            lines.append([*line, row["skipped"], "", "", ""])
            continue
        floor = _floor(found, row)
        times = f"{row['median_s'] / floor:.2f}" if floor else ""
        memory = (row["peak_bytes"] - row["gradient_bytes"]) / 2**20
        speed = f"{row['gflop'] / row['median_s']:.0f}"
        lines.append([*line, _seconds(row), times, speed, f"{memory:.0f}"])
    head = "engine | N | dtype | seconds: median (range) | x floor | GFLOP/s"
    return table(f"{head} | MiB beside inputs and gradients", lines)


ENGINE_NAMES = {
    "products": "products alone, chunks of",
    "products, aligned rows": "products alone, rows aligned, chunks of",
    "products, aligned": "products alone, all aligned, chunks of",
    "chunked": "ours, `chunked`",
    "reference": "ours, `reference` (whole tensors)",
    "published formula": "published formula (whole tensors)",
    "TRL": "TRL's chunked divergence",
    "Liger": "Liger-Kernel's chunked JSD",
}


def short_loss_table(folder: Path) -> str:
    """N 2048 only, and of the products only the fastest."""
    found = [r for r in rows.load(folder, "loss") if r["tokens"] == 2048]
    floors = [r for r in found if r["engine"] == "products"]
    best = {
        r["dtype"]: min(f["median_s"] for f in floors if f["dtype"] == r["dtype"]) for r in floors
    }

    def keep(row):
        if "skipped" in row or row["tokens"] != 2048:
            return False
        return row["engine"] != "products" or row["median_s"] == best[row["dtype"]]

    return loss_table(folder, keep)


def chunk_table(folder: Path) -> str:
    """The engine over its chunk sizes, and its default."""
    found = [("", row) for row in rows.load(folder, "chunks")]
    default = [r for r in rows.load(folder, "loss") if r["name"] == "chunked float32 N2048"]
    found += [("default", row) for row in default] if found else []
    lines = [
        [name or row["chunk"], _seconds(row), (row["peak_bytes"] - row["gradient_bytes"]) >> 20]
        for name, row in found
    ]
    return table("chunk | seconds: median (range) | MiB beside inputs and gradients", lines)


def scaling_table(folder: Path) -> str:
    """Time and memory over tokens and over pairs."""
    lines = [
        [r["over"], r["engine"], r["tokens"], r.get("pairs", 1), _seconds(r), _beside(r)]
        for r in rows.load(folder, "scaling")
        if "median_s" in r
    ]
    head = "over | engine | N | pairs | seconds: median (range)"
    return table(f"{head} | MiB beside inputs and gradients", lines)


def _floor(found, row):
    floors = [
        other["median_s"]
        for other in found
        if other["engine"] == "products"
        and all(other[key] == row[key] for key in ("dtype", "tokens", "threads"))
    ]
    return min(floors, default=None)


def _seconds(row):
    return f"{row['median_s']:.2f} ({row['min_s']:.2f} to {row['max_s']:.2f})"


def _beside(row):
    return (row["peak_bytes"] - row["gradient_bytes"]) >> 20


TABLES = {
    "loss": loss_table,
    "loss-short": short_loss_table,
    "chunks": chunk_table,
    "scaling": scaling_table,
}
