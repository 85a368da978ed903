"""The loss on a GPU: seconds, memory and errors of value and gradients, ours and rivals'.

The result of every engine is compared with float64 on the numbers that it is timed on: the program
of ``reference`` with autograd, some rows at a time.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor

from benchmarks import loss
from benchmarks.meter import PeakMemory, wait
from benchmarks.rivals import ENGINES, liger, missing, ours
from distilllens.linear_divergence.tiles import default_chunk_size

SHAPES = {
    "gpt2": loss.SHAPE,
    "qwen": {"vocab": 151936, "student_width": 896, "teacher_width": 1536},
    "precision": {"vocab": 8195, "student_width": 768, "teacher_width": 1600},
}
ON_GPU = {
    "auto": partial(ours, impl="auto"),
    "chunked": ENGINES["chunked"],
    "triton": partial(ours, impl="triton"),
    "TRL": ENGINES["TRL"],
    "reference": ENGINES["reference"],
    "Liger, eager": partial(liger, compiled=False),
    "Liger": liger,  # compiled, as its own default is
}
# Relative errors of the value and of gradients (by their norms) above which a row is wrong.
BOUNDS = {"float32": (1e-5, 1e-3), "TF32": (2e-3, 3e-2), "bfloat16": (1e-2, 5e-2)}
TIMED_SECONDS = 2.0  # per case, but at least three calls
_BLOCK = 256  # rows of the truth


def cases(part: str, toy: bool) -> list[dict]:
    """The cases of "gpt2", "qwen" (N 2048), "gpt2-long", "qwen-long" (N 8192) or "precision"."""
    shape, _, long = part.partition("-")
    if part == "precision":
        return _precision_cases(toy)
    n = ((6, 10) if toy else (2048, 8192))[bool(long)]
    sizes = (4, 8) if toy else (1024, 2048, 4096)
    found = []

    def add(engine, dtype="bfloat16", **more):
        found.append(_finished(shape, {"engine": engine, "tokens": n, "dtype": dtype, **more}, toy))

    for engine in ("auto", "triton", "chunked"):
        add(engine)
    for size in sizes:
        if size <= n:
            add("triton", chunk=size)
    # Qwen's vocabulary is aligned.
    floors = ("products", "products, aligned rows", "products, aligned")
    floors = floors if shape == "gpt2" else floors[:1]
    for engine in floors:
        add(engine, chunk=n)
    add("TRL")
    if part == "gpt2":
        add("reference")
        for tf32 in (False, True):
            for engine in floors:
                add(engine, "float32", chunk=n, tf32=tf32)
            for engine in ("chunked", "triton", "TRL"):
                add(engine, "float32", tf32=tf32)
        add("Liger, eager")
    add("Liger")  # last: its compilation takes longest
    return found


def _precision_cases(toy):
    modes = ({"tf32": False}, {"tf32": True}, {"tf32": False, "autocast": True})
    base = {"tokens": 6 if toy else 512, "dtype": "float32"}
    return [
        _finished("precision", {"engine": engine, **base, **mode}, toy)
        for mode in modes
        for engine in ("reference", "chunked", "triton")
    ]


def _finished(shape, case, toy):
    case = loss.finished({**({} if toy else SHAPES[shape]), **case}, SimpleNamespace(toy=toy))
    if case["dtype"] == "float32":
        case["name"] += ", bfloat16 autocast" if case.get("autocast") else ""
        case["name"] += ", TF32" if case["tf32"] else ""
    operation, of = ("precision", "") if shape == "precision" else ("loss", f" {shape}")
    case |= {"operation": operation, "shape": shape, "name": f"{operation}{of}: {case['name']}"}
    return {"repeats": 1 if toy else 15, **case}


@dataclass(frozen=True, eq=False)
class Problem:
    """Two heads, a few sets of rows to use in turn, and the float64 result of the first."""

    head: Tensor
    teacher_head: Tensor
    sets: list[tuple[Tensor, Tensor]]
    truth: tuple[Tensor, Tensor, Tensor]


def measure(case: dict, device: torch.device) -> dict:
    """The row of one case."""
    if reason := missing(case["engine"]):
        return {**case, "skipped": reason}
    torch.set_float32_matmul_precision("high" if case.get("tf32") else "highest")
    shape = ("vocab", "student_width", "teacher_width", "tokens", "dtype")
    given = problem(*(case[key] for key in shape), device)
    call, row = make_call(case, given), dict(case)
    if case["engine"] in ("auto", "chunked", "triton"):
        row["chunk_used"] = case.get("chunk") or default_chunk(case, device)
    start = time.perf_counter()
    found = call(0)
    wait(device)
    row["first_s"] = round(time.perf_counter() - start, 4)  # with compilation
    if found:
        row |= errors(case, found, given.truth)
    del found
    for at in (1, 2):
        start = time.perf_counter()
        call(at)
        wait(device)
        once = time.perf_counter() - start
    given.head.grad = None
    with PeakMemory(device) as peak:
        # Again, because the tiles of products are allocated here.
        call = make_call(case, given)
        call(0)
    row |= timed(call, device, min(case["repeats"], max(3, int(TIMED_SECONDS / once))))
    held = sum(t.numel() * t.element_size() for t in (given.sets[0][0], given.head))
    row |= {"peak_bytes": peak.bytes, "gradient_bytes": held}
    row["tflop_per_s"] = round(case["gflop"] / row["median_s"] / 1e3, 3)
    given.head.grad = None
    return row


def default_chunk(case: dict, device: torch.device) -> int:
    """The chunk size that an engine of ours uses by itself."""
    kernel = case["engine"] == "triton" or (case["engine"] == "auto" and device.type == "cuda")
    half = case["dtype"] == "bfloat16" or case.get("autocast")
    dtype = torch.bfloat16 if half else torch.float32
    return default_chunk_size(case["tokens"], case["vocab"], device, dtype if kernel else None)


@functools.lru_cache(maxsize=1)
def problem(vocab, student_width, teacher_width, tokens, dtype, device) -> Problem:
    """Random heads and three sets of rows on the device."""
    case = {"vocab": vocab, "student_width": student_width, "teacher_width": teacher_width}
    with torch.device(device):
        student, head, teacher, teacher_head = loss.inputs(
            case | {"tokens": tokens, "dtype": dtype}
        )
    sets = [(student.detach(), teacher)]
    sets += [(torch.randn_like(sets[0][0]), torch.randn_like(teacher)) for _ in range(2)]
    return Problem(head, teacher_head, sets, truth(student, head, teacher, teacher_head))


def truth(student, head, teacher, teacher_head) -> tuple[Tensor, Tensor, Tensor]:
    """Value and both gradients in float64."""
    head = head.detach().double().requires_grad_()
    teacher_head, total, gradients = teacher_head.double(), 0.0, []
    for start in range(0, len(student), _BLOCK):
        rows = slice(start, start + _BLOCK)
        leaf = student[rows].detach().double().requires_grad_()
        value = ours(leaf, head, teacher[rows].double(), teacher_head, impl="reference")
        value.backward()
        total = total + value.detach()
        gradients.append(leaf.grad)
    return total, torch.cat(gradients), head.grad


def make_call(case: dict, given: Problem):
    """A function of the number of a set: value and gradients; of products nothing."""
    if case["engine"].startswith("products"):
        student, teacher = given.sets[0]
        tensors = [student, given.head, teacher, given.teacher_head]
        products = loss.products(tensors, case["chunk"], case["engine"])
        return lambda at: products()
    engine = ON_GPU[case["engine"]]
    chunk = {"chunk_size": case["chunk"]} if case.get("chunk") else {}
    kind, autocast = given.head.device.type, case.get("autocast", False)

    def call(at):
        student, teacher = given.sets[at % len(given.sets)]
        student = student.detach().requires_grad_()
        given.head.grad = None
        with torch.autocast(kind, torch.bfloat16) if autocast else contextlib.nullcontext():
            value = engine(student, given.head, teacher, given.teacher_head, **chunk)
        value.backward()
        return value.detach(), student.grad, given.head.grad

    return call


def errors(case: dict, found, right) -> dict:
    """Relative errors against float64, and "wrong" if one exceeds its bound."""
    names = ("value_error", "student_gradient_error", "head_gradient_error")
    row = {}
    for name, one, other in zip(names, found, right, strict=True):
        difference = one.to(other.dtype, copy=True).sub_(other).norm() / other.norm()
        row[name] = float(f"{difference.item():.2e}")
    kind = "bfloat16" if case.get("autocast") else "TF32" if case.get("tf32") else case["dtype"]
    of_value, of_gradients = BOUNDS[kind]
    bounds = (of_value, of_gradients, of_gradients)
    # Written so that NaN exceeds any bound.
    over = [name for name, bound in zip(names, bounds, strict=True) if not row[name] <= bound]
    if over:
        row["wrong"] = ", ".join(f"{name} {row[name]:.1e}" for name in over)
    return row


def timed(call, device: torch.device, repeats: int) -> dict:
    """Seconds of calls over the sets in turn; on a GPU by CUDA events, without waiting between."""
    seconds = []
    if device.type == "cuda":
        events = [[torch.cuda.Event(enable_timing=True) for _ in "be"] for _ in range(repeats)]
        for at, (begin, end) in enumerate(events):
            begin.record()
            call(at)
            end.record()
        wait(device)
        seconds = [begin.elapsed_time(end) / 1e3 for begin, end in events]
    else:
        for at in range(repeats):
            start = time.perf_counter()
            call(at)
            seconds.append(time.perf_counter() - start)
    found = {"median_s": statistics.median(seconds), "min_s": min(seconds), "max_s": max(seconds)}
    return {"repeats": repeats, **{key: round(value, 6) for key, value in found.items()}}
