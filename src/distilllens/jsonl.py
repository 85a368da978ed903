"""JSON lines: rows appended one by one, readable after a crash at any byte."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from distilllens.files import write_atomically


def append_rows(path: Path, rows: Sequence[dict]):
    """Append rows to a file, which may not exist yet; they are on the disk on return."""
    with open(path, "ab") as stream:
        end_torn_line(stream, path)
        stream.write(encode_rows(rows))
        stream.flush()
        os.fsync(stream.fileno())


def write_rows(path: Path, rows: Iterable[dict]):
    """Replace a file by these rows, whole or not at all."""
    write_atomically(path, encode_rows(rows).decode())


def read_rows(path: Path) -> list[dict] | None:
    """Every row of a file that was written whole, or None where there is no file."""
    if not path.exists():
        return None
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def whole_rows(path: Path) -> list[dict]:
    """The rows of a file that may end in a torn line; lines that are no JSON object are skipped."""
    found = (parse_row(line) for line in path.read_bytes().split(b"\n"))
    return [row for row in found if row is not None]


def sort_rows(path: Path):
    """Put a file's lines, without torn ones, into the order of their bytes."""
    lines = sorted(line for line in path.read_bytes().split(b"\n") if parse_row(line) is not None)
    write_atomically(path, b"".join(line + b"\n" for line in lines).decode())


def encode_rows(rows: Iterable[dict]) -> bytes:
    """Rows as the bytes of their lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def parse_row(line: bytes) -> dict | None:
    """The JSON object on a line, or None."""
    try:
        row = json.loads(line)
    except ValueError:  # a line that a crash has torn
        return None
    return row if isinstance(row, dict) else None


def end_torn_line(stream, path: Path):
    """End the last line of a file opened for appending, which a crash may have torn."""
    if stream.tell() > 0 and _last_byte(path) != b"\n":
        stream.write(b"\n")


def _last_byte(path):
    with open(path, "rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1)
