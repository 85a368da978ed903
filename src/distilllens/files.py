"""Files that are complete or absent, and their hashes."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path


def write_atomically(path: Path, text: str):
    """Write a text file so that a reader, or a crash, finds the old or the new one, whole."""
    part = part_of(path)
    part.write_text(text, encoding="utf-8")
    settle(part, path)


def write_json(path: Path, value: object):
    """Write a value as JSON, with ``write_atomically``."""
    write_atomically(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def part_of(path: Path) -> Path:
    """Where this process writes a file before it has its name."""
    return path.with_name(f"{path.name}.{os.getpid()}.part")


def settle(part: Path, path: Path):
    """Give a written file its name, once its bytes are on the disk."""
    flush(part)
    os.replace(part, path)


def flush(path: Path):
    """Return once a file's bytes are on the disk."""
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
