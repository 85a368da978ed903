"""Rows: one JSON object per line, one file per part; a new row replaces the one of its name."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def load(folder: Path, part: str) -> list[dict]:
    """The stored rows of a part, in the order in which they were first measured."""
    path = Path(folder) / f"{part}.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def store(folder: Path, part: str, row: dict) -> None:
    """Replace the row of this name, or append it; the file is complete at every moment."""
    rows = {old["name"]: old for old in load(folder, part)} | {row["name"]: row}
    _write(Path(folder) / f"{part}.jsonl", rows.values())


def keep(folder: Path, part: str, names: set[str]) -> None:
    """Drop the rows of other names: cases that a part no longer has."""
    rows = [row for row in load(folder, part) if row["name"] in names]
    _write(Path(folder) / f"{part}.jsonl", rows)


def environment(threads: int) -> dict:
    """Versions, threads, load and commit, which every row records."""
    return {
        "threads": threads,
        "load": round(os.getloadavg()[0], 1),
        **{name: metadata.version(name) for name in ("torch", "transformers", "trl")},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "commit": commit(),
    }


def version_of(name: str) -> str:
    """The version of a package, "none" if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"


def commit() -> str:
    """The commit, with a + if the library differs from it; outside a clone $COMMIT, or nothing."""
    if not (Path(__file__).parents[1] / ".git").exists() or not shutil.which("git"):
        return os.environ.get("COMMIT", "")
    git = ["git", "-C", str(Path(__file__).parents[1])]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "src"], capture_output=True)
    return head.stdout.strip() + ("+" if changed.returncode == 1 else "")


def _write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    beside.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    os.replace(beside, path)
