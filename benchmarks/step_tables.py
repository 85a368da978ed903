"""Tables of whole training steps: speed, ratios, memory, answer lengths, the teacher cache."""

from __future__ import annotations

import statistics
from pathlib import Path

from benchmarks import rows
from benchmarks.markdown import table


def step_table(folder: Path, shape: str = "gpt2") -> str:
    """Speed of each pipeline; the published one is counted over the same mean row as the others."""
    found = _steps(folder, shape, "steps")
    lines = []
    for pipeline, row in found.items():
        if "skipped" in row:
            lines.append([pipeline, row["skipped"], "", "", "", "", ""])
            continue
        source = _usual(found) if pipeline == "published" else row
        speeds = (f"{_mean(source, key) / row['mean_s']:.1f}" for key in ("targets", "tokens"))
        line = [pipeline, f"{row['mean_s']:.2f}", *speeds, f"{row['gflop_per_s']:.0f}"]
        if "mean_s" in found.get("published", {}):
            line += [f"{ratio:.1f}" for ratio in _speedup(found, pipeline)]
        lines.append(line + [""] * (7 - len(line)))
    head = "pipeline | seconds a step | response tokens/s | tokens/s | GFLOP/s"
    return table(f"{head} | x published | x published by flops", lines)


def ratio_table(folder: Path, shape: str = "gpt2") -> str:
    """The ratios of interleaved pipelines: of all rows, quartiles over rows, by the flop model."""
    base = {kind: _steps(folder, shape, kind) for kind in ("forms", "sampling", "steps")}
    found = base["forms"] | base["sampling"] | base["steps"]
    lines = []
    for pipeline, against in RATIOS:
        row = found.get(pipeline)
        if row is None:
            continue
        other = base[row["kind"]].get(against)
        if "skipped" in row or other is None or "skipped" in other:
            lines.append([f"{pipeline} / {against}", row.get("skipped", ""), "", ""])
            continue
        steps = min(row["steps"], other["steps"])
        a, b = row["seconds"][:steps], other["seconds"][:steps]
        low, _, high = statistics.quantiles([x / y for x, y in zip(a, b, strict=True)])
        flops = sum(row["step_gflop"][:steps]) / sum(other["step_gflop"][:steps])
        measured = sum(a) / sum(b)
        cells = [f"{measured:.2f}", f"{low:.2f} to {high:.2f}", f"{flops:.2f}"]
        lines.append([f"{pipeline} / {against}", *cells])
    return table("seconds of | measured | middle half of the rows | by flops", lines)


RATIOS = (
    ("DistillLens", "plain KD"),
    ("DistillLens, cached teacher", "DistillLens"),
    ("TRL", "plain KD"),
    ("DistillLens, 0.4 of the pairs", "DistillLens"),
    ("DistillLens, a quarter of the tokens", "DistillLens"),
    ("DistillLens, weighted by entropy", "DistillLens"),
    ("DistillLens, after its schedule", "plain KD"),
    ("DistillLens, tuned", "DistillLens"),
)


def memory_table(folder: Path) -> str:
    """Peak of a step of median and of the longest rows."""
    found = [r for r in rows.load(folder, "steps") if r["kind"] == "memory"]
    lines = []
    for row in found:
        if "skipped" in row:
            lines.append([row["shape"], row["pipeline"], "", "", row["skipped"], ""])
            continue
        of = [r for r in found if r["pipeline"] == "published" and r["shape"] == row["shape"]]
        of = [r["peak_bytes"] for r in of if "peak_bytes" in r]
        share = f"{row['peak_bytes'] / of[0]:.3f}" if of else ""
        which, tokens = row["which"], row["tokens"][0]
        if row["pipeline"] == "published":
            which, tokens = "any", 512 * row["batch"]
        line = [row["shape"], row["pipeline"], which, tokens, row["peak_bytes"] >> 20, share]
        lines.append(line)
    return table("shape | pipeline | rows | tokens | MiB | of published", lines)


def length_table(folder: Path) -> str:
    """What the lens adds to plain KD as the answer grows; prompts of 64 tokens."""
    found = [r for r in rows.load(folder, "steps") if r.get("kind") == "lengths" and "answer" in r]
    found = [r for r in found if r["shape"] == "gpt2"]
    pairs = {(row["answer"], row["pipeline"]): row for row in found}
    lines = []
    for answer in dict.fromkeys(row["answer"] for row in found):
        plain, lens = (pairs.get((answer, name)) for name in ("plain KD", "DistillLens"))
        if plain and lens:
            flops = sum(lens["gflop"].values()) / sum(plain["gflop"].values()) - 1
            seconds = [statistics.median(row["seconds"]) for row in (plain, lens)]  # of equal steps
            adds = seconds[1] / seconds[0] - 1
            cells = [f"{each:.2f}" for each in seconds]
            lines.append([answer, *cells, f"{adds:.0%}", f"{flops:.0%}"])
    return table("answer | plain KD, s | DistillLens, s | lens adds | by flops", lines)


def cache_table(folder: Path) -> str:
    """Writing the teacher cache, and its size."""
    lines = []
    for shape in ("gpt2", "small"):
        row = _steps(folder, shape, "steps").get("DistillLens, cached teacher", {})
        if "cache_bytes" in row:
            head = 4 * row["head_numbers"]
            each = (row["cache_bytes"] - head) / sum(row["targets"])
            sizes = [f"{row['cache_bytes'] / 1e6:.0f}", f"{head / 1e6:.0f}", f"{each:.0f}"]
            lines.append([shape, f"{row['cache_s']:.0f}", sum(row["targets"]), *sizes])
    head = "shape | seconds to write | response tokens | MB | of it the teacher's head"
    return table(f"{head} | bytes a response token", lines)


def _steps(folder, shape, kind):
    found = [r for r in rows.load(folder, "steps") if r["shape"] == shape and r["kind"] == kind]
    return {row["pipeline"]: row for row in found}


def _usual(found):
    """A row with the lengths of the usual rows, by which "published" is counted too."""
    return next(r for r in found.values() if r["pipeline"] != "published" and "targets" in r)


def _speedup(found, pipeline):
    """Response tokens per second relative to the published pipeline, measured and by flops."""
    row, published, usual = found[pipeline], found["published"], _usual(found)
    share = 1 if pipeline == "published" else _mean(row, "targets") / _mean(usual, "targets")
    flops = sum(published["gflop"].values()) / sum(row["gflop"].values())
    return share * published["mean_s"] / row["mean_s"], share * flops


def _mean(row, key):
    return statistics.mean(row[key])


TABLES = {
    "steps": step_table,
    "steps-small": lambda folder: step_table(folder, "small"),
    "ratios": ratio_table,
    "ratios-small": lambda folder: ratio_table(folder, "small"),
    "memory": memory_table,
    "lengths": length_table,
    "cache": cache_table,
}
