"""The demo's folder, checked and claimed before torch is imported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from distilllens.files import write_json
from distilllens.workflows.outputs import PAGE, check_page

MARKER = "demo.json"
FIGURE = "divergence_by_depth.png"
DATA = ("train.jsonl", "test.jsonl")


def check_demo(output: Path, steps: int, seed: int) -> None:
    """Refuse arguments of ``run_demo`` that make no demo.

    Raises:
        ValueError: steps < 1, a negative seed, an output that is a file or holds other things, or
            a report.html of others.
    """
    if steps < 1:
        raise ValueError(f"--steps must be at least 1, got {steps}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed must be between 0 and {2**32 - 1}, got {seed}")
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file; name a folder")
    if output.exists() and any(output.iterdir()) and not _is_demo(output):
        raise ValueError(
            f"--output {output} is not empty and holds no earlier demo; name another folder"
        )
    if output.exists():
        check_page(output / PAGE)


def claim(output: Path) -> None:
    """Create the folder and mark it as an unfinished demo.

    Raises:
        OSError: it cannot be written.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_marker(output, {"finished": False})
    except OSError as error:
        raise OSError(f"--output {output} cannot be written: {error.strerror}") from error


def write_marker(output: Path, result: Mapping) -> None:
    """Write ``demo.json``."""
    write_json(output / MARKER, result)


def _is_demo(folder):
    try:
        return "finished" in json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False
