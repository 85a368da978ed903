"""Tables of the cost model: predictions, nothing measured."""

from __future__ import annotations

from pathlib import Path

from benchmarks.markdown import table
from distilllens import cost


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
    return table("term | GFLOP | share | GB to and from memory", lines)


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
    return table(" | ".join(["ms a step", *columns]), lines)


def cache_size_table(folder: Path) -> str:
    """PREDICTION: Dolly's 11.4k records of 74 response tokens, five pairs, two bytes per number."""
    tokens = 11370 * 74
    lines = [
        [name, f"{cost.cache_bytes(teacher, 1, 5) / 1e3:.0f}", f"{gb:.0f}"]
        for name, teacher in (
            ("GPT-2 1.5B", cost.gpt2(48, 1600)),
            ("Llama 7B", cost.LLAMA_7B),
        )
        for gb in [cost.cache_bytes(teacher, tokens, 5) / 1e9]
    ]
    return table("teacher | kB a response token | GB for Dolly", lines)


TABLES = {"cost": cost_table, "roofline": roofline_table, "cache-size": cache_size_table}
