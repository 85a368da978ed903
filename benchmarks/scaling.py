"""Time and memory by the number of tokens and of layer pairs; rows and a figure."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks import loss, rows
from benchmarks.meter import PeakMemory, timed
from distilllens import Head, LayerMap, cost
from distilllens.lens import LayerStates
from distilllens.objective import Objective

ABOUT = "time and memory over tokens (512 to 8192) and layer pairs (1 to 8), with a figure"
SHAPE = {"vocab": 50257, "student_width": 128, "teacher_width": 256, "dtype": "float32"}
TOY = {"vocab": 211, "student_width": 8, "teacher_width": 12, "dtype": "float32"}
FIGURE = Path(__file__).parents[1] / "docs" / "scaling.png"


def cases(options) -> list[dict]:
    """Narrow models, so that a point takes a second; memory does not depend on the width."""
    shape, unit = (TOY, 4) if options.toy else (SHAPE, 512)
    found = [{"over": "tokens", "engine": "chunked", "tokens": unit * 2**k} for k in range(5)]
    found += [{"over": "tokens", "engine": "reference", "tokens": unit * 2**k} for k in range(3)]
    pairs = ({"tokens": unit, "pairs": count} for count in (1, 2, 4, 8))
    found += [{"over": "pairs", "engine": "chunked", **more} for more in pairs]
    for case in found:
        pairs = case.get("pairs", 1)
        case |= {**shape, "repeats": 2}
        case["name"] = f"{case['over']}: {case['engine']} N{case['tokens']} P{pairs}"
        models = (cost.Model(0, case[f"{w}_width"], case["vocab"], 0) for w in _WHO)
        case["gflop"] = cost.divergence_flops(case["tokens"] * pairs, *models) / 1e9
    return found


_WHO = ("student", "teacher")


def seconds(case: dict, gflop_per_s: float) -> float:
    """Narrow models: elementwise work is about as much as the products."""
    return 4 + 2.5 * case["repeats"] * case["gflop"] / gflop_per_s


def measure(case: dict):
    """The row of one point."""
    if case["over"] == "tokens":
        yield from loss.measure(case)
        return
    call, held = lens_call(case)
    call()
    with PeakMemory() as peak:
        found = timed(call, case["repeats"])
    yield {
        "operation": "Objective with a lens term, forward and backward",
        **case,
        **found,
        "peak_bytes": peak.bytes,
        "gradient_bytes": held,
    }


def lens_call(case: dict):
    """A call of the whole objective, and the bytes of rows and gradients that it must hold."""
    torch.manual_seed(0)
    pairs, n, vocab = case["pairs"], case["tokens"], case["vocab"]
    depths = range(pairs + 1)

    def states(width, trained):
        made = [torch.randn(1, n + 1, width, requires_grad=trained) for _ in depths]
        return LayerStates(dict(enumerate(made)), normed=True, final=made[-1])

    student, teacher = states(case["student_width"], True), states(case["teacher_width"], False)
    head = torch.randn(vocab, case["student_width"]).mul_(0.05).requires_grad_()
    teacher_head = torch.randn(vocab, case["teacher_width"]).mul_(0.05)
    labels = torch.zeros(1, n + 1, dtype=torch.long)
    objective = Objective(
        layer_map=LayerMap([(depth, depth) for depth in range(pairs)]), output_weight=0.0
    )

    def call():
        head.grad = None
        for depth in depths:
            student[depth].grad = None
        objective(student, Head(head), teacher, Head(teacher_head), labels).total.backward()

    # The pairs' rows are stacked once a model, and the student's have a gradient.
    stacked = 4 * pairs * n * (3 * case["student_width"] + case["teacher_width"])
    return call, stacked + 4 * head.numel()


def finish(folder: Path) -> None:
    """The figure; only real rows go into docs/."""
    real = folder == rows.RESULTS
    draw(rows.load(folder, "scaling"), FIGURE if real else folder / FIGURE.name)


def draw(found: list[dict], path: Path) -> None:
    """Seconds and MiB over tokens and over pairs, one panel each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.4), layout="constrained")
    panels = figure.subplots(2, 2, sharex="col")
    for column, over in enumerate(("tokens", "pairs")):
        for engine, mark in (("chunked", "o-"), ("reference", "s--")):
            points = [r for r in found if r["over"] == over and r["engine"] == engine]
            points = [r for r in points if "median_s" in r]
            at = [r[over] for r in points]
            seconds_ = [r["median_s"] for r in points]
            memory = [(r["peak_bytes"] - r["gradient_bytes"]) / 2**20 for r in points]
            for panel, values in zip(panels[:, column], (seconds_, memory), strict=True):
                if at:
                    panel.plot(at, values, mark, label=engine)
        panels[1, column].set_xlabel(over)
    panels[0, 0].set_ylabel("seconds")
    panels[1, 0].set_ylabel("MiB beside inputs and gradients")
    for panel in panels.flat:
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    panels[0, 0].legend()
    figure.savefig(path, dpi=90, format="png")
