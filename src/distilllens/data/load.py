"""Records from files, folders and the hub; every error names the file and the line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path

from distilllens.data.records import check_record, kind_of
from distilllens.errors import first_line

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".txt", ".txt.gz")
STORY_SEPARATOR = "<|endoftext|>"


def load_records(source: str | PathLike | Iterable[str | PathLike]) -> list[dict]:
    """The records of one file, of several, or of all data files directly in a folder, in order.

    ``.jsonl`` holds one JSON object per line and ``.json`` a list of them. ``.txt`` holds stories
    separated by lines ``<|endoftext|>``, each a record ``{"text": ...}``. All may end in ``.gz``.
    A record is ``instruction`` / ``input`` / ``output``, ``prompt`` / ``completion``, ``messages``
    or ``text`` (see :mod:`distilllens.data.records`); other fields are kept. The files of a folder
    are read in order of their names. All records must be of one kind.

    Raises:
        ValueError: a file is missing, empty, of an unknown suffix or broken (UTF-8, JSON, gzip), a
            record is invalid, or records are of two kinds; the message starts with ``FILE:LINE``.
    """
    records, first = [], None
    for file in data_files(source):
        count = len(records)
        for line, value in _read(file):
            where = f"{file}:{line}"
            kind = check_record(value, where)
            first = first or (kind, where)
            if kind != first[0]:
                raise ValueError(
                    f"{where}: a {kind!r} record, but {first[1]} is a {first[0]!r} record; "
                    "train on one kind at a time"
                )
            records.append(value)
        if len(records) == count:
            raise ValueError(f"{file}:1: the file holds no record; it needs at least one")
    return records


def load_hub(dataset_name: str, split: str = "train", config: str | None = None) -> list[dict]:
    """The records of one split of a data set on the Hugging Face hub (or in its local cache).

    Raises:
        ValueError: the data set or split cannot be loaded, or a record is invalid; the message
            then starts with ``NAME[SPLIT]:ROW``, rows counted from 0 as on the hub.
    """
    import datasets

    try:
        rows = datasets.load_dataset(dataset_name, config, split=split)
    except Exception as error:  # datasets, huggingface_hub and requests have their own classes
        raise ValueError(
            f"cannot load the data set {dataset_name!r}, split {split!r}: {first_line(error)}"
        ) from error
    # Every row of a table has every column; a field that a record does not have is None there.
    records = [{k: v for k, v in row.items() if v is not None} for row in rows]
    if not records:
        raise ValueError(f"{dataset_name}[{split}] holds no record; it needs at least one")
    kinds = {kind_of(record) for record in records}
    if len(kinds) > 1:
        raise ValueError(
            f"{dataset_name}[{split}] mixes records of the kinds {sorted(map(str, kinds))}"
        )
    for row, record in enumerate(records):
        check_record(record, f"{dataset_name}[{split}]:{row}")
    return records


def data_files(source: str | PathLike | Iterable[str | PathLike]) -> Iterator[Path]:
    """The data files of a source, in reading order.

    Raises:
        ValueError: the source is empty, a file is missing or of an unknown suffix, or a folder has
            no data files.
    """
    sources = [source] if isinstance(source, (str, PathLike)) else list(source)
    if not sources:
        raise ValueError("no data file was named; name at least one file or folder")
    for path in map(Path, sources):
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES))
            if not inside:
                raise ValueError(f"{path}: no data file in this folder; known are {_known()}")
            yield from inside
        elif not path.exists():
            raise ValueError(f"{path}: no such file or folder")
        elif not path.name.endswith(SUFFIXES):
            raise ValueError(f"{path}: unknown suffix {path.suffix!r}; known are {_known()}")
        else:
            yield path


def _known():
    return ", ".join(SUFFIXES)


def _read(file: Path) -> Iterator[tuple[int, object]]:
    """``(line, value)`` for every record of a file; lines count from 1."""
    try:
        content = file.read_bytes()
        if file.suffix == ".gz":
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{file}:1: broken gzip ({error}); compress the file again") from error
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from error
    text = _decode(file, content)
    stem = file.name.removesuffix(".gz")
    if stem.endswith(".txt"):
        return _stories(text)
    return _list_items(file, text) if stem.endswith(".json") else _lines(file, text)


def _decode(file, content):
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise ValueError(
            f"{file}:{line}: byte 0x{byte:02x} is not UTF-8 ({error.reason}); save it as UTF-8"
        ) from error


def _lines(file, text):
    # Not splitlines(): JSON strings may contain U+2028 and other separators.
    for line, content in enumerate(text.split("\n"), 1):
        if content.strip():
            try:
                yield line, json.loads(content)
            except (ValueError, RecursionError) as error:
                raise _broken_json(file, line, error) from error


def _list_items(file, text):
    """The objects of a JSON list, each with the line on which it starts."""
    decoder, line, counted = json.JSONDecoder(), 1, 0
    position = _skip_space(text, 0)
    if not text[position:]:
        return
    if text[position] != "[":
        raise ValueError(
            f"{file}:1: a .json file holds one list of objects, this one starts with "
            f"{text[position : position + 20]!r}; one object a line is .jsonl"
        )
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _broken_json(file, getattr(error, "lineno", 1), error) from error
    # The text is a valid list; what follows only finds where its items start.
    position = _skip_space(text, position + 1)
    while text[position] != "]":
        line, counted = line + text.count("\n", counted, position), position
        value, position = decoder.raw_decode(text, position)
        yield line, value
        position = _skip_space(text, position)
        if text[position] == ",":
            position = _skip_space(text, position + 1)


def _skip_space(text, position):
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _broken_json(file, line, error):
    if isinstance(error, RecursionError):
        return ValueError(f"{file}:{line}: broken JSON (nested too deeply)")
    where = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
    reason = getattr(error, "msg", str(error))
    return ValueError(f"{file}:{line}: broken JSON ({reason}{where})")


def _stories(text):
    story, start = [], 1
    for line, content in enumerate([*text.split("\n"), STORY_SEPARATOR], 1):
        if content.strip() == STORY_SEPARATOR:
            if joined := "\n".join(story).strip():
                yield start, {"text": joined}
            story, start = [], line + 1
        else:
            story.append(content.removesuffix("\r"))
