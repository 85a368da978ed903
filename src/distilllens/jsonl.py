"""JSON lines: rows are appended one by one and stay readable after a crash at any byte."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from distilllens.files import named_errors, open_for_writing, write_atomically


def append_rows(path: Path, rows: Sequence[dict]):
    """Append rows to a file, created if missing; they are on disk on return.

    Raises:
        ValueError: the path is a symbolic link.
        OSError: with the path.
    """
    with named_errors(path), open_to_append(path) as stream:
        stream.write(encode_rows(rows))
        stream.flush()
        os.fsync(stream.fileno())


def write_rows(path: Path, rows: Iterable[dict]):
    """Replace a file by these rows, atomically."""
    write_atomically(path, encode_rows(rows))


def read_rows(path: Path) -> list[dict] | None:
    """Every row of a file without torn lines, or None if there is no file."""
    if not path.exists():
        return None
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def whole_rows(path: Path) -> list[dict]:
    """The rows of a file that may have torn lines; lines that are not JSON objects are skipped."""
    rows = map(parse_row, path.read_bytes().split(b"\n"))
    return [row for row in rows if row is not None]


def sort_rows(path: Path):
    """Sort the lines of a file by their bytes, and drop torn ones."""
    lines = sorted(line for line in path.read_bytes().split(b"\n") if parse_row(line) is not None)
    write_atomically(path, b"".join(line + b"\n" for line in lines))


def encode_rows(rows: Iterable[dict]) -> bytes:
    """The lines of rows, as UTF-8."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def parse_row(line: bytes) -> dict | None:
    """The JSON object on a line, or None if there is none."""
    try:
        row = json.loads(line)
    except ValueError:  # a line torn by a crash
        return None
    return row if isinstance(row, dict) else None


def open_to_append(path: Path):
    """A file opened for appending; if a crash left its last line unfinished, the line is ended.

    Raises:
        ValueError: the path is a symbolic link.
    """
    stream = open(open_for_writing(path, os.O_APPEND), "ab")  # noqa: SIM115
    if stream.tell() > 0 and _last_byte(path) != b"\n":
        stream.write(b"\n")
    return stream


def _last_byte(path):
    with open(path, "rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1)
