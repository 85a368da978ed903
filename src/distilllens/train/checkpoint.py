"""Checkpoints that are complete or ignored."""

from __future__ import annotations

import json
import re
from pathlib import Path

from distilllens.files import flush, write_json

MARK = "complete.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def mark_whole(folder: str | Path):
    """Write a mark with the sizes of a checkpoint's files, once they are on the disk."""
    folder = Path(folder)
    sizes = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != MARK:
            flush(file)
            sizes[str(file.relative_to(folder))] = file.stat().st_size
    write_json(folder / MARK, {"files": sizes})


def is_whole(folder: str | Path) -> bool:
    """True if every file in the mark exists with the size it had."""
    folder = Path(folder)
    try:
        sizes = json.loads((folder / MARK).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return all(_size(folder / name) == size for name, size in sizes.items())


def last_whole(output_dir: str | Path) -> Path | None:
    """The newest complete ``checkpoint-N`` of a run, or None."""
    found = [
        (int(match[1]), path)
        for path in Path(output_dir).glob("checkpoint-*")
        if (match := _NAME.fullmatch(path.name)) and is_whole(path)
    ]
    return max(found)[1] if found else None


def _size(file):
    return file.stat().st_size if file.is_file() else None
