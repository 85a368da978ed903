"""The tables of README.md and docs/performance.md, made of the stored rows.

    python -m benchmarks.tables            write them between their markers
    python -m benchmarks.tables --check    exit status 1 if a page says something else
    python -m benchmarks.tables --show     print every table

A table stands between `<!-- table: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from pathlib import Path

from benchmarks import rows
from distilllens import cost

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "performance.md")
_MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_NOTHING = "Not measured yet.\n"


def main(arguments: list[str] | None = None) -> int:
    """Write, compare or print."""
    first, _, rest = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        "python -m benchmarks.tables",
        description=first,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="change nothing")
    parser.add_argument("--show", action="store_true", help="print the tables")
    options = parser.parse_args(arguments)
    if options.show:
        print("\n".join(f"{name}\n\n{make(rows.RESULTS)}" for name, make in TABLES.items()))
        return 0
    stale = [page for page in PAGES if filled(page) != page.read_text("utf-8")]
    for page in stale:
        print(f"{page.name}: tables {'differ from the rows' if options.check else 'written'}")
        if not options.check:
            page.write_text(filled(page), "utf-8")
    return 1 if options.check and stale else 0


def filled(page: Path, folder: Path = rows.RESULTS) -> str:
    """The page's text with its tables as the rows of a folder give them."""

    def table(match):
        return f"{match[1]}{TABLES[match[2]](folder)}{match[4]}"

    return _MARKED.sub(table, page.read_text("utf-8"))


def markdown(head: str, lines: list[list]) -> str:
    """A table; ``head`` is its columns between bars. Without a line, a sentence."""
    if not lines:
        return _NOTHING
    columns = head.count("|") + 1
    body = ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]
    return "\n".join([f"| {head} |", "|" + "---|" * columns, *body]) + "\n"


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
    return markdown(f"{head} | MiB beside inputs and gradients", lines)


ENGINE_NAMES = {
    "products": "products alone, chunks of",
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
    return markdown("chunk | seconds: median (range) | MiB beside inputs and gradients", lines)


def scaling_table(folder: Path) -> str:
    """Time and memory over tokens and over pairs."""
    lines = [
        [r["over"], r["engine"], r["tokens"], r.get("pairs", 1), _seconds(r), _beside(r)]
        for r in rows.load(folder, "scaling")
        if "median_s" in r
    ]
    head = "over | engine | N | pairs | seconds: median (range)"
    return markdown(f"{head} | MiB beside inputs and gradients", lines)


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
    return markdown(f"{head} | x published | x published by flops", lines)


def ratio_table(folder: Path, shape: str = "gpt2") -> str:
    """The ratios of interleaved pipelines: of all rows, quartiles over rows, by the flop model."""
    base = {kind: _steps(folder, shape, kind) for kind in ("sampling", "steps")}
    found = base["sampling"] | base["steps"]
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
    return markdown("seconds of | measured | middle half of the rows | by flops", lines)


RATIOS = (
    ("DistillLens", "plain KD"),
    ("DistillLens, cached teacher", "DistillLens"),
    ("TRL", "plain KD"),
    ("DistillLens, 0.4 of the pairs", "DistillLens"),
    ("DistillLens, a quarter of the tokens", "DistillLens"),
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
    return markdown("shape | pipeline | rows | tokens | MiB | of published", lines)


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
    return markdown("answer | plain KD, s | DistillLens, s | lens adds | by flops", lines)


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
    return markdown(f"{head} | bytes a response token", lines)


def generation_table(folder: Path) -> str:
    """Tokens a second by engine, over those of one prompt at a time; the noise by the forward."""
    found = rows.load(folder, "generation")
    alone = {r["shape"]: r["tokens_per_s"] for r in found if r["engine"] == "one at a time"}
    lines = []
    for row in found:
        if row["engine"] == "noise":
            took = f"{1e3 * row['median_s']:.1f} ms by a forward of {1e3 * row['forward_s']:.1f} ms"
            lines.append([row["shape"], "noise of a step", took, ""])
            continue
        low, high = row["min_tokens_per_s"], row["max_tokens_per_s"]
        speed = f"{row['tokens_per_s']:.0f} ({low:.0f} to {high:.0f})"
        times = f"{row['tokens_per_s'] / alone[row['shape']]:.1f}"
        lines.append([row["shape"], row["engine"], speed, times])
    return markdown("model | engine | tokens/s: median (range) | x one at a time", lines)


def cost_table(folder: Path) -> str:
    """The cost model of one mean Dolly row, GPT-2's shapes, float32."""
    student, teacher = cost.gpt2(12, 768), cost.gpt2(48, 1600)
    arguments = ("DistillLens", student, teacher, [MEAN_ROW], 5)
    flops, bytes_ = cost.step_flops(*arguments), cost.step_bytes(*arguments)
    total = sum(flops.values())
    lines = [
        [term, f"{n / 1e9:.1f}", f"{n / total:.0%}", f"{bytes_[term] / 1e9:.1f}"]
        for term, n in flops.items()
    ]
    return markdown("term | GFLOP | share | GB to and from memory", lines)


MEAN_ROW = (139, 68)  # tokens and targets of Dolly's rows that fit 512


def roofline_table(folder: Path) -> str:
    """PREDICTION: milliseconds a step and device, 7B to 1.1B, 16 rows a device, H100."""
    lines, columns = [], {}
    pair = (cost.TINYLLAMA, cost.LLAMA_7B)
    for name, pipeline, passes in (
        ("plain KD, live", "plain KD", cost.FUSED),
        ("live, eager tiles", "DistillLens", cost.EAGER),
        ("live, fused tiles", "DistillLens", cost.FUSED),
        ("cached, eager tiles", "DistillLens, cached teacher", cost.EAGER),
        ("cached, fused tiles", "DistillLens, cached teacher", cost.FUSED),
    ):
        rows_ = [MEAN_ROW] * 16
        flops = cost.step_flops(pipeline, *pair, rows_, 5)
        moved = cost.step_bytes(pipeline, *pair, rows_, 5, size=2, passes=passes)
        columns[name] = cost.roofline_seconds(flops, moved, **cost.H100)
    for term in flops:
        lines.append([term, *(f"{seconds[term] * 1e3:.1f}" for seconds in columns.values())])
    totals = [sum(seconds.values()) for seconds in columns.values()]
    lines.append(["sum", *(f"{total * 1e3:.1f}" for total in totals)])
    tokens = 8 * 16 * MEAN_ROW[1]
    lines.append(["response tokens/s, 8 devices", *(f"{tokens / t:,.0f}" for t in totals)])
    return markdown(" | ".join(["ms a step", *columns]), lines)


def cache_size_table(folder: Path) -> str:
    """By the model: Dolly's 11.4k records of 74 response tokens, five pairs, two bytes a number."""
    tokens = 11370 * 74
    lines = [
        [name, f"{cost.cache_bytes(teacher, 1, 5) / 1e3:.0f}", f"{gb:.0f}"]
        for name, teacher in (
            ("GPT-2 1.5B", cost.gpt2(48, 1600)),
            ("Llama 7B", cost.LLAMA_7B),
        )
        for gb in [cost.cache_bytes(teacher, tokens, 5) / 1e9]
    ]
    return markdown("teacher | kB a response token | GB for Dolly", lines)


def figure_line() -> str:
    """The figure of scaling.py, once there is one."""
    there = (ROOT / "docs" / "scaling.png").exists()
    return "![time and memory over tokens and pairs](scaling.png)\n" if there else _NOTHING


TABLES = {
    "loss": loss_table,
    "loss-short": short_loss_table,
    "chunks": chunk_table,
    "scaling": scaling_table,
    "steps": step_table,
    "steps-small": lambda folder: step_table(folder, "small"),
    "ratios": ratio_table,
    "ratios-small": lambda folder: ratio_table(folder, "small"),
    "memory": memory_table,
    "lengths": length_table,
    "cache": cache_table,
    "generation": generation_table,
    "cost": cost_table,
    "roofline": roofline_table,
    "cache-size": cache_size_table,
    "gpu-loss": lambda folder: _gpu_table("gpu-loss", folder),
    "gpu-steps": lambda folder: _gpu_table("gpu-steps", folder),
    "gpu-precision": lambda folder: _gpu_table("gpu-precision", folder),
    "figure": lambda folder: figure_line(),
}


def _gpu_table(name, folder):
    from benchmarks import gpu_tables  # which makes its tables by this file

    return gpu_tables.TABLES[name](folder)


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


def _steps(folder, shape, kind):
    found = [r for r in rows.load(folder, "steps") if r["shape"] == shape and r["kind"] == kind]
    return {row["pipeline"]: row for row in found}


def _usual(found):
    """A row that says what the usual rows are like: "published" is counted over them too."""
    return next(r for r in found.values() if r["pipeline"] != "published" and "targets" in r)


def _speedup(found, pipeline):
    """Response tokens a second against the published pipeline's, measured and by flops."""
    row, published, usual = found[pipeline], found["published"], _usual(found)
    share = 1 if pipeline == "published" else _mean(row, "targets") / _mean(usual, "targets")
    flops = sum(published["gflop"].values()) / sum(row["gflop"].values())
    return share * published["mean_s"] / row["mean_s"], share * flops


def _mean(row, key):
    return statistics.mean(row[key])


if __name__ == "__main__":
    sys.exit(main())
