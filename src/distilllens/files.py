"""Files that are complete or absent, their hashes, and the room that a disk has for them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path

# Opening a symbolic link fails, so that what it points to is never written.
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_PART = re.compile(r"(.+)\.\d+\.part")


def write_atomically(path: Path, content: str | bytes):
    """Write a file so that a reader, or a crash, finds the old or the new one, whole.

    Raises:
        ValueError: a symbolic link in the place of our temporary file.
        OSError: with the path.
    """
    data, part = content.encode() if isinstance(content, str) else content, part_of(path)
    with named_errors(path):
        file = open_for_writing(part, os.O_TRUNC)
        try:
            with open(file, "wb") as stream:
                stream.write(data)
            settle(part, path)
        except OSError:
            part.unlink(missing_ok=True)
            raise


def open_for_writing(path: Path, flags: int = 0) -> int:
    """A descriptor of a file to write, made where it is missing; a link is never followed.

    Args:
        flags: ``os.O_APPEND`` or ``os.O_TRUNC``.

    Raises:
        ValueError: the path is a symbolic link.
    """
    try:
        if path.is_symlink():  # where the system has no O_NOFOLLOW
            raise OSError(errno.ELOOP, "")
        return os.open(path, os.O_WRONLY | os.O_CREAT | NO_LINK | flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP and path.is_symlink():
            raise ValueError(linked(path)) from error
        raise


def linked(path: Path) -> str:
    """What is said of a symbolic link in a place where we write."""
    return f"{path} is a symbolic link, through which nothing is written; move it away"


@contextmanager
def named_errors(path: str | Path) -> Iterator[None]:
    """Errors of the disk name the file, which the system does only where it cannot be opened."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def unmade_on_failure(folder: str | Path) -> Iterator[None]:
    """If the block fails, the empty folders that it made are removed."""
    folder = Path(folder).absolute()
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        for path in missing:
            with suppress(OSError):  # not empty, or removed by another process
                path.rmdir()
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


def existing(folder: str | Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    there = Path(folder).absolute()
    while not there.exists():
        there = there.parent
    return there


def free_at(folder: str | Path) -> int:
    """Bytes that are free on the disk of a folder, which need not exist."""
    return shutil.disk_usage(existing(folder)).free


def in_bytes(size: float) -> str:
    """A size in words: 1.25 GB."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size / 1e3:.3g} kB"
