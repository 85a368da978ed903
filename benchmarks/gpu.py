"""The parts of benchmarks/gpu.sh, each a process of its own: `python -m benchmarks.gpu PART`.

A row is stored in gpu.jsonl as soon as it is measured. A case that was started and did not finish
leaves a row that says so. `adopt --results DIR` copies the rows of DIR into benchmarks/results.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import traceback
from pathlib import Path

from benchmarks import rows

LOSS = ("gpt2", "qwen", "gpt2-long", "qwen-long", "precision")
PARTS = ("environment", "tests", *LOSS, "steps", "table", "adopt")
ROOT = Path(__file__).parents[1]


def main(arguments: list[str] | None = None) -> int:
    """Measure one part; the exit status is 1 if something in it failed."""
    options = parse(arguments)
    if options.part == "table":
        from benchmarks import gpu_tables

        print(gpu_tables.short(options.results))
        return 0
    if options.part == "adopt":
        return adopt(options.results)
    if options.part == "tests":
        return run_tests(options)
    import torch

    if not options.toy and not torch.cuda.is_available():
        print("no CUDA device; --toy rehearses on the CPU", file=sys.stderr)
        return 2
    device = torch.device("cpu" if options.toy else "cuda")
    about = environment(device)
    if options.part == "environment":
        store(options, {"name": "environment", "operation": "environment", **about})
        return 0
    run = run_steps if options.part == "steps" else run_cases
    return run(options, device, {key: about[key] for key in ("device", "torch", "commit")})


def parse(arguments):
    """The command line."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--toy", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--results", type=Path, default=rows.RESULTS, help="folder of gpu.jsonl")
    parser.add_argument("--after", help=argparse.SUPPRESS)  # the case that broke the device
    return parser.parse_args(arguments)


def adopt(folder: Path) -> int:
    """Copy rows into benchmarks/results, and drop rows there of cases that no longer exist."""
    from benchmarks import gpu_loss, gpu_steps

    found = rows.load(folder, "gpu")
    if unfinished := [row["name"] for row in found if row.get("skipped") == UNFINISHED]:
        print(f"left out, did not finish: {', '.join(unfinished)}", file=sys.stderr)
    for row in found:
        if row["name"] not in unfinished:
            rows.store(rows.RESULTS, "gpu", row)
    names = {case["name"] for part in LOSS for case in gpu_loss.cases(part, toy=False)}
    rows.keep(rows.RESULTS, "gpu", names | gpu_steps.names() | {"environment", "tests"})
    return 0


def store(options, row):
    """Store a row and print it in one line."""
    rows.store(options.results, "gpu", row)
    print(as_line(row), flush=True)


def as_line(row: dict) -> str:
    """A row in one line."""
    if row["name"] == "environment":
        return ", ".join(f"{key} {value}" for key, value in row.items() if key not in _NOT_SHOWN)
    if "skipped" in row or "summary" in row:
        return f"{row['name']}: {row.get('skipped') or row['summary']}"
    if "mean_s" in row:
        busy = f", GPU busy {1e3 * row['busy_s']:.1f} ms" if "busy_s" in row else ""
        return f"{row['name']}: {1e3 * row['mean_s']:.1f} ms, {row['tokens_per_s']} tokens/s{busy}"
    error = f", relative error {row['value_error']:.0e}" if "value_error" in row else ""
    wrong = " WRONG" if "wrong" in row else ""
    memory = f"{row['peak_bytes'] >> 20} MiB, first call {row['first_s']:.1f} s"
    return f"{row['name']}: {1e3 * row['median_s']:.2f} ms, {memory}{error}{wrong}"


_NOT_SHOWN = ("name", "operation", "load", "machine")


def environment(device) -> dict:
    """The environment as in rows.py, and the GPU."""
    import torch

    about = rows.environment(torch.get_num_threads())
    about |= {"torch": torch.__version__, "cuda": torch.version.cuda, "device": device.type}
    for name in ("triton", "liger_kernel"):
        about[name.removesuffix("_kernel")] = rows.version_of(name)
    if device.type == "cuda":
        of = torch.cuda.get_device_properties(device)
        about |= {"device": of.name, "device_bytes": of.total_memory}
        about |= {"capability": f"{of.major}.{of.minor}", "driver": driver()}
    return about


def driver() -> str:
    """The driver's version according to nvidia-smi; empty without that program."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip().partition("\n")[0]


def run_tests(options) -> int:
    """Run the tests marked gpu."""
    row = {"name": "tests", "operation": "tests"}
    rows.store(options.results, "gpu", {**row, "skipped": UNFINISHED})
    marked = [
        file for file in ROOT.glob("tests/**/test_*.py") if "mark.gpu" in file.read_text("utf-8")
    ]
    # Warnings of versions other than the pinned ones are not failures here.
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rf", "--durations=3"]
    command += ["-p", "no:cacheprovider", "-W", "default", *map(str, sorted(marked))]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        last = ""
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    store(options, {**row, "summary": last.strip("= ")})
    return 1 if process.returncode else 0


OURS = ("auto", "chunked", "triton", "reference")
UNFINISHED = "did not finish in time"


def run_cases(options, device, about) -> int:
    """The cases of a loss part; after one that broke the device, the rest run in a new process."""
    from benchmarks import gpu_loss

    found = gpu_loss.cases(options.part, options.toy)
    names = [case["name"] for case in found]
    failed = options.after is not None
    for case in found[names.index(options.after) + 1 if failed else 0 :]:
        rows.store(options.results, "gpu", {**case, **about, "skipped": UNFINISHED})
        try:
            row = gpu_loss.measure(case, device)
        except Exception as error:
            traceback.print_exc()
            row = {**case, "skipped": f"failed: {type(error).__name__}: {first_line(error)}"}
            failed = True
        failed = failed or ("wrong" in row and case["engine"] in OURS)  # a rival is only marked
        store(options, {**row, **about})
        if "skipped" in row and broken(device):
            again = ["--results", str(options.results), "--after", case["name"]]
            toy = ["--toy"] if options.toy else []
            command = [sys.executable, "-m", "benchmarks.gpu", options.part, *toy, *again]
            os.execv(sys.executable, command)
    return 1 if failed else 0


def broken(device) -> bool:
    """Whether the device accepts no more work, as after an illegal memory access."""
    import torch

    if device.type != "cuda":
        return False
    try:
        torch.cuda.empty_cache()
        torch.ones(1, device=device).item()
    except Exception:
        return True
    return False


def first_line(error) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def run_steps(options, device, about) -> int:
    """Whole training steps."""
    from benchmarks import gpu_steps

    if rows.version_of("distilllens") == "none":
        print("distilllens is not installed (pip install --no-deps .): no cache can be written")
    failed = False
    for row in gpu_steps.measure(options.toy, device):
        failed = failed or "skipped" in row
        store(options, {**row, **about})
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
