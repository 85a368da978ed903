"""Time and peak memory of linear_divergence, each engine in a process of its own.

    python benchmarks/run.py             measure everything (about four minutes on two cores)
    python benchmarks/run.py --table     print the table of the stored rows
    python benchmarks/run.py --rows 512 --threads 1     on a busy machine: processor seconds of one
                                         thread are nearly the same whatever else is running

The floor is the four matrix products alone (both projections, both gradients), over chunks of
several sizes with every tile allocated beforehand: no engine that projects once can beat it.
Rows go to ``results/linear_divergence.jsonl``, one JSON object a line; the table is made of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "linear_divergence.jsonl"
SHAPE = {"rows": 2048, "vocab": 50257, "student_width": 768, "teacher_width": 1600}  # GPT-2's
REPEATS = 3


def cases(rows):
    """What is measured, in this order; the floor's chunk sizes surround the engine's own."""
    for chunk in (64, 128, 256, 512):
        yield {"engine": "products", "dtype": "float32", "chunk": chunk}
    yield {"engine": "chunked", "dtype": "float32", "divergence": "jsd"}
    yield {"engine": "reference", "dtype": "float32", "divergence": "jsd"}
    yield {"engine": "chunked", "dtype": "float32", "divergence": "jsd", "rows": rows // 4}
    yield {"engine": "reference", "dtype": "float32", "divergence": "jsd", "rows": rows // 4}
    yield {"engine": "products", "dtype": "bfloat16", "chunk": 256}
    yield {"engine": "chunked", "dtype": "bfloat16", "divergence": "jsd"}


def products(torch, tensors, chunk):
    """The four matrix products of a call, and nothing else."""
    student, head, teacher, teacher_head = (tensor.detach() for tensor in tensors)
    tiles = [student.new_empty(chunk, head.shape[0]) for _ in range(2)]
    hidden_gradient, head_gradient = torch.empty_like(student), torch.empty_like(head)

    def call():
        for start in range(0, len(student), chunk):
            rows = slice(start, start + chunk)
            ours, theirs = (tile[: len(student[rows])] for tile in tiles)
            torch.mm(student[rows], head.T, out=ours)
            torch.mm(teacher[rows], teacher_head.T, out=theirs)
            torch.mm(ours, head, out=hidden_gradient[rows])
            torch.addmm(head_gradient, ours.T, student[rows], beta=start > 0, out=head_gradient)

    return call


def engine(torch, tensors, case):
    """One call of linear_divergence with its backward."""
    from distilllens import Head, linear_divergence

    student, head, teacher, teacher_head = tensors
    options = {"divergence": case["divergence"], "impl": case["engine"]}

    def call():
        student.grad = head.grad = None
        loss, _ = linear_divergence(student, Head(head), teacher, Head(teacher_head), **options)
        loss.backward()

    return call


def measure(case):
    """The row of one case, measured in this process."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(case.pop("threads") or torch.get_num_threads())
    make = {"dtype": getattr(torch, case["dtype"])}
    tensors = [  # filled in place: the peak before the calls is the inputs'
        torch.empty(case["rows"], case["student_width"], **make).normal_().requires_grad_(),
        torch.empty(case["vocab"], case["student_width"], **make)
        .normal_(std=0.05)
        .requires_grad_(),
        torch.empty(case["rows"], case["teacher_width"], **make).normal_(),
        torch.empty(case["vocab"], case["teacher_width"], **make).normal_(std=0.05),
    ]
    if case["engine"] == "products":
        call = products(torch, tensors, case["chunk"])
    else:
        call = engine(torch, tensors, case)
    before, load = _peak_bytes(), os.getloadavg()[0]
    call()
    seconds, processor = [], []
    for _ in range(REPEATS):
        start, started = time.perf_counter(), time.process_time()
        call()
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - started)
    return {
        "operation": "linear_divergence, forward and backward",
        **case,
        "median_s": round(statistics.median(seconds), 4),
        "min_s": round(min(seconds), 4),
        "max_s": round(max(seconds), 4),
        "median_cpu_s": round(statistics.median(processor), 4),
        "peak_bytes": _peak_bytes() - before,
        "gradient_bytes": sum(t.numel() * t.element_size() for t in tensors[:2]),
        "threads": torch.get_num_threads(),
        "load": round(load, 1),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def _peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def table(rows):
    """Markdown: seconds, processor seconds, their ratios to the fastest products, peak memory."""
    lines = [
        "| engine | N | dtype | seconds: median (min to max) | x floor "
        "| processor seconds | x floor | MiB beside the inputs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        floor = [
            other
            for other in rows
            if other["engine"] == "products"
            and all(other[key] == row[key] for key in ("dtype", "rows", "threads"))
        ]
        ratios = {
            key: f"{row[key] / min(other[key] for other in floor):.2f}" if floor else ""
            for key in ("median_s", "median_cpu_s")
        }
        what = row.get("divergence") or f"chunk {row['chunk']}"
        lines.append(
            f"| {row['engine']}, {what} | {row['rows']} | {row['dtype']} | {row['median_s']:.2f} "
            f"({row['min_s']:.2f} to {row['max_s']:.2f}) | {ratios['median_s']} | "
            f"{row['median_cpu_s']:.2f} | {ratios['median_cpu_s']} | {row['peak_bytes'] >> 20} |"
        )
    return "\n".join(lines)


def main():
    """Measure every case in a fresh process, store the rows, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="only print the stored rows")
    parser.add_argument("--rows", type=int, default=SHAPE["rows"], help="tokens, N")
    parser.add_argument("--threads", type=int, help="of torch; default its own")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(json.loads(arguments.case))))
        return
    if not arguments.table:
        run_all(arguments.rows, arguments.threads)
    print(table([json.loads(line) for line in RESULTS.read_text("utf-8").splitlines()]))


def run_all(rows, threads):
    """Every case in its own process; rows are stored as they come."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", encoding="utf-8") as stored:
        for case in cases(rows):
            case = {**SHAPE, "rows": rows, "threads": threads, **case}
            command = [sys.executable, __file__, "--case", json.dumps(case)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            line = json.dumps({**json.loads(done.stdout), "commit": commit}) + "\n"
            stored.write(line)
            stored.flush()
            print(line, end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
