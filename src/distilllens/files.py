"""Files that are complete or absent, and their hashes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from fnmatch import fnmatch
from pathlib import Path

# Opening a symbolic link fails, so that what it points to is never written.
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_PART = re.compile(r"(.+?)(\.\d+)?\.part")


def write_atomically(path: Path, text: str):
    """Write a text file so that a reader, or a crash, finds the old or the new one, whole."""
    part = part_of(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        with open(os.open(part, flags | NO_LINK, 0o666), "w", encoding="utf-8") as stream:
            stream.write(text)
        settle(part, path)
    except OSError as error:
        if error.errno != errno.ELOOP:  # a link of somebody else's
            part.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: object):
    """Write a value as JSON, with ``write_atomically``."""
    write_atomically(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def part_of(path: Path) -> Path:
    """Where this process writes a file before it has its name."""
    return path.with_name(f"{path.name}.{os.getpid()}.part")


def is_part_of(path: Path, *names: str) -> bool:
    """Whether a path has the name of a temporary file of ours for one of ``names`` (patterns)."""
    found = _PART.fullmatch(path.name)
    return found is not None and any(fnmatch(found[1], name) for name in names)


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
