"""linear_divergence and its rivals: seconds and memory of value and gradients together.

The floor is the four matrix products alone (both projections, both gradients), chunk by chunk, with
every tile allocated beforehand: an engine that projects once can only beat it with faster products.
On a GPU products are faster where rows are aligned, so there the floor has variants at odd
vocabularies: "products, aligned rows" pads the rows of the tiles, and "products, aligned" also
splits the vocabulary into its largest multiple of 16 bytes and the rest.
"""

from __future__ import annotations

import torch

from benchmarks.meter import PeakMemory, timed, too_large
from benchmarks.rivals import ENGINES, WHOLE, missing, whole_tensors
from distilllens import cost

ABOUT = "value and gradients of the loss at GPT-2's shapes: floor, ours, rivals"
SHAPE = {"vocab": 50257, "student_width": 768, "teacher_width": 1600}
TOY = {"vocab": 211, "student_width": 8, "teacher_width": 12}


def cases(options) -> list[dict]:
    """N 2048, 512 and 10240 in float32, then bfloat16; the largest with fewer repeats."""
    tokens = (32, 8, 160) if options.toy else (2048, 512, 10240)
    found = []

    def add(engine, n, dtype="float32", repeats=3, **more):
        found.append({"engine": engine, "tokens": n, "dtype": dtype, "repeats": repeats, **more})

    for n, chunks, repeats in ((tokens[0], (64, 128, 256, 512), 2), (tokens[1], (256, 512), 3)):
        for chunk in chunks:
            add("products", n, chunk=chunk)
        for engine in ENGINES:
            add(engine, n, repeats=3 if engine == "chunked" else repeats)
    add("products", tokens[2], repeats=2, chunk=512)
    for engine in ENGINES:
        if engine != "Liger":
            add(engine, tokens[2], repeats=2 if engine == "chunked" else 1)
    for chunk in (256, 512):
        add("products", tokens[0], "bfloat16", chunk=chunk)
    add("chunked", tokens[0], "bfloat16")
    add("TRL", tokens[0], "bfloat16", 1)
    add("products", tokens[2], "bfloat16", 2, chunk=512)
    add("chunked", tokens[2], "bfloat16", 2)
    return [finished(case, options) for case in found]


def finished(case: dict, options) -> dict:
    """A case with shape, name and flops per call."""
    case = {**(TOY if options.toy else SHAPE), **case}
    chunk = f" {case['chunk']}" if case.get("chunk") else ""
    case["name"] = f"{case['engine']}{chunk} {case['dtype']} N{case['tokens']}"
    models = [cost.Model(0, case[f"{who}_width"], case["vocab"], 0) for who in _WHO]
    projections = 3 if case["engine"] == "TRL" else 1
    case["gflop"] = cost.divergence_flops(case["tokens"], *models, projections) / 1e9
    return case


_WHO = ("student", "teacher")


def seconds(case: dict, gflop_per_s: float) -> float:
    """An estimate for the whole case: flops, more for slower engines, and the process's start."""
    speed = gflop_per_s * (4 if case["dtype"] == "bfloat16" and case["engine"] != "TRL" else 1)
    slower = {"reference": 2.5, "published formula": 3, "TRL": 1.5, "Liger": 3}
    skipped = case["engine"] in WHOLE and case["tokens"] > 4096
    work = case["repeats"] * slower.get(case["engine"], 1.1) * case["gflop"] / speed
    return 4 + (0 if skipped else work)


def measure(case: dict):
    """The row of one case."""
    row = {"operation": "linear_divergence, forward and backward", **case}
    if reason := missing(case["engine"]):
        yield {**row, "skipped": reason}
        return
    if case["engine"] in WHOLE:
        size = 4 * case["tokens"] * case["vocab"]
        needs = round(whole_tensors(case["engine"]) * size)
        if reason := too_large(needs):
            yield {**row, "skipped": reason, "needs_bytes": needs}
            return
    tensors = inputs(case)
    few = [t[:64].detach().clone().requires_grad_(t.requires_grad) for t in tensors]
    few[1], few[3] = tensors[1], tensors[3]
    make_call(case, few)()  # wakes threads and kernels
    tensors[1].grad = None
    call = make_call(case, tensors)
    with PeakMemory() as peak:
        row |= timed(call, case["repeats"])
    gradients = sum(t.numel() * t.element_size() for t in tensors[:2])
    yield {**row, "peak_bytes": peak.bytes, "gradient_bytes": gradients}


def inputs(case: dict) -> list[torch.Tensor]:
    """Student, its head, teacher, its head."""
    torch.manual_seed(0)
    dtype = getattr(torch, case["dtype"])
    rows, vocab = case["tokens"], case["vocab"]

    def make(count, width, std=1.0):
        return torch.empty(count, width, dtype=dtype).normal_(std=std)

    student, teacher = case["student_width"], case["teacher_width"]
    return [
        make(rows, student).requires_grad_(),
        make(vocab, student, 0.05).requires_grad_(),
        make(rows, teacher),
        make(vocab, teacher, 0.05),
    ]


def make_call(case: dict, tensors):
    """A function that computes value and gradients once."""
    if case["engine"].startswith("products"):
        return products(tensors, case["chunk"], case["engine"])
    student, head, *teacher = tensors
    engine = ENGINES[case["engine"]]
    chunk = {"chunk_size": case["chunk"]} if case.get("chunk") else {}

    def call():
        student.grad = head.grad = None
        engine(student, head, *teacher, **chunk).backward()

    return call


def products(tensors, chunk, layout="products"):
    """The four matrix products of a call, and nothing else."""
    student, head, teacher, teacher_head = (tensor.detach() for tensor in tensors)
    tiles = [new_tile(student, chunk, len(head), padded=layout != "products") for _ in range(2)]
    slices = [slice(0, len(head))]
    unit = 16 // head.element_size()
    if layout == "products, aligned" and len(head) % unit:
        cut = len(head) - len(head) % unit
        slices = [slice(0, cut), slice(cut, len(head))]
    hidden_gradient, head_gradient = torch.empty_like(student), torch.empty_like(head)

    def call():
        for start in range(0, len(student), chunk):
            rows = slice(start, start + chunk)
            ours, theirs = (tile[: len(student[rows])] for tile in tiles)
            for words in slices:
                torch.mm(student[rows], head[words].T, out=ours[:, words])
                torch.mm(teacher[rows], teacher_head[words].T, out=theirs[:, words])
            for words in slices:
                sides, out = (ours[:, words], head[words]), hidden_gradient[rows]
                torch.addmm(out, *sides, beta=words.start > 0, out=out)
                sides, out = (ours[:, words].T, student[rows]), head_gradient[words]
                torch.addmm(out, *sides, beta=start > 0, out=out)

    return call


def new_tile(like, rows, size, *, padded):
    """A tile, whose rows begin at multiples of 128 bytes if ``padded``."""
    unit = 128 // like.element_size() if padded else 1
    return like.new_empty(rows, -(-size // unit) * unit)[:, :size]
