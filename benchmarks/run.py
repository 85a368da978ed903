"""Measure, and store rows in benchmarks/results: every case in a process of its own.

    python -m benchmarks.run --list                    the cases, and how long each part takes
    python -m benchmarks.run                           everything
    python -m benchmarks.run loss chunks               two parts
    python -m benchmarks.run loss --only "N2048"       cases whose name has this text in it
    python -m benchmarks.run steps --data DOLLY_DIR --tokenizer GPT2_DIR     on real rows
    python -m benchmarks.run generation --model DIR --prompts FILE      also of a trained model
    python -m benchmarks.run --toy                     tiny shapes, a minute, rows are discarded
    python -m benchmarks.tables                        write the tables of README.md and docs/

Rows are stored one by one and replace the older row of the same name, so a part that fails or is
stopped loses nothing that was measured before. On a busy machine only `median_cpu_s` with
`--threads 1` is meaningful.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import rows

PARTS = ("loss", "chunks", "scaling", "steps", "precision", "generation", "on_policy")
PARTS += ("resident", "estimate")
_MARK = "ROW "  # of a line that is a row; everything else a library prints is passed on


def main(arguments: list[str] | None = None) -> int:
    """Run the given parts; the exit status is 1 if a case failed."""
    options = parse(arguments)
    if options.case:
        return run_case(json.loads(options.case))
    if options.list:
        print(listing(options))
        return 0
    failed = []
    with tempfile.TemporaryDirectory() as thrown_away:
        folder = Path(thrown_away) if options.toy and not options.results else options.results
        folder = folder or rows.RESULTS
        for name in options.parts:
            failed += run_part(name, options, folder)
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    return 1 if failed else 0


def parse(arguments):
    """The command line."""
    first, _, rest = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        "python -m benchmarks.run",
        description=first,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--list", action="store_true", help="list cases and durations, run nothing")
    parser.add_argument("--only", default="", help="cases whose name has this text in it")
    parser.add_argument(
        "--toy", action="store_true", help="tiny shapes: check that everything runs"
    )
    parser.add_argument("--threads", type=int, help="torch's threads (default: torch's choice)")
    parser.add_argument("--data", help="Dolly's training records, a file or its folder")
    parser.add_argument("--tokenizer", help="a folder with the tokenizer for --data")
    parser.add_argument("--model", help="folder of a trained model to measure as well")
    parser.add_argument("--prompts", help="records whose prompts or first words --model continues")
    parser.add_argument("--rows", type=int, default=50, help="rows of GPT-2's steps (default 50)")
    parser.add_argument("--results", type=Path, help="where rows go (default benchmarks/results)")
    parser.add_argument("--gflops", type=float, default=100, help="speed assumed by --list")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.parts = options.parts or list(PARTS)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {min(unknown)!r}; there are {', '.join(PARTS)}")
    if options.data and not options.tokenizer:
        parser.error("--data needs --tokenizer")
    if bool(options.model) != bool(options.prompts):
        parser.error("--model and --prompts need each other")
    return options


def part_of(name):
    """The module of a part."""
    from importlib import import_module

    return import_module(f"benchmarks.{name}")


def listing(options) -> str:
    """Every case with its seconds, every part with its minutes."""
    lines, total = [], 0
    for name in options.parts:
        part = part_of(name)
        found = [case for case in part.cases(options) if options.only in case["name"]]
        guesses = [part.seconds(case, options.gflops) for case in found]
        total += sum(guesses)
        lines.append(f"{name}: {part.ABOUT}: about {sum(guesses) / 60:.0f} minutes")
        lines += [f"    {s:5.0f} s  {c['name']}" for c, s in zip(found, guesses, strict=True)]
    speed = f"{options.gflops:g} GFLOP/s in float32"
    return "\n".join([*lines, f"all: about {total / 60:.0f} minutes at {speed}"])


def run_part(name: str, options, folder: Path) -> list[str]:
    """Every case of a part; returns the names of those that failed."""
    part, seen, failed = part_of(name), set(), []
    for case in part.cases(options):
        if options.only not in case["name"]:
            continue
        case |= {"part": name, "threads": options.threads}
        for row in run_in_process(case, failed):
            rows.store(folder, name, row)
            seen.add(row["name"])
            print(said(row), file=sys.stderr, flush=True)
    if not options.only and not failed:
        rows.keep(folder, name, seen)
    if hasattr(part, "finish"):
        part.finish(folder)
    return failed


def run_in_process(case: dict, failed: list):
    """Rows of a case as its process prints them."""
    command = [sys.executable, "-m", "benchmarks.run", "--case", json.dumps(case)]
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    quiet |= {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    root = Path(__file__).parents[1]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=root, env=os.environ | quiet
    ) as process:
        for line in process.stdout:
            if line.startswith(_MARK):
                yield json.loads(line.removeprefix(_MARK))
            else:
                print(line, end="", file=sys.stderr)
    if process.returncode:
        failed.append(f"{case['part']}: {case['name']} (exit status {process.returncode})")


def run_case(case: dict) -> int:
    """Measure one case here and print its rows."""
    import torch

    part, threads = case.pop("part"), case.pop("threads")
    torch.set_num_threads(threads or torch.get_num_threads())
    about = rows.environment(torch.get_num_threads())
    for row in part_of(part).measure(case):
        print(_MARK + json.dumps({**row, **about}), flush=True)
    return 0


def said(row: dict) -> str:
    """A row in one line."""
    if "skipped" in row:
        return f"{row['name']}: {row['skipped']}"
    time = f"{row['median_s']:.3f} s" if "median_s" in row else f"{row['mean_s']:.3f} s a step"
    speed = f", {row['gflop_per_s']} GFLOP/s" if "gflop_per_s" in row else ""
    speed += f", {row['tokens_per_s']} tokens/s" if "tokens_per_s" in row else ""
    memory = f", {row['peak_bytes'] >> 20} MiB" if "peak_bytes" in row else ""
    return f"{row['name']}: {time}{speed}{memory}"


if __name__ == "__main__":
    sys.exit(main())
