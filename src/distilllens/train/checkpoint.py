"""Checkpoints that are either whole or not there."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

MARK = "complete.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def mark_whole(folder: str | Path):
    """Write the sizes of a finished checkpoint's files beside them, once they are on the disk."""
    folder = Path(folder)
    sizes = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != MARK:
            _flush(file)
            sizes[str(file.relative_to(folder))] = file.stat().st_size
    write_atomically(folder / MARK, json.dumps({"files": sizes}, indent=1) + "\n")


def is_whole(folder: str | Path) -> bool:
    """True when every file that the mark lists is there with the size it had."""
    folder = Path(folder)
    try:
        sizes = json.loads((folder / MARK).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return all(_size(folder / name) == size for name, size in sizes.items())


def last_whole(output_dir: str | Path) -> Path | None:
    """The newest whole ``checkpoint-N`` of a run, or None."""
    found = [
        (int(match[1]), path)
        for path in Path(output_dir).glob("checkpoint-*")
        if (match := _NAME.fullmatch(path.name)) and is_whole(path)
    ]
    return max(found)[1] if found else None


def write_atomically(path: Path, text: str):
    """Write a text file so that a reader, or a crash, finds the old or the new one, whole."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    _flush(part)
    os.replace(part, path)


def _flush(file):
    with open(file, "rb") as stream:
        os.fsync(stream.fileno())


def _size(file):
    return file.stat().st_size if file.is_file() else None
