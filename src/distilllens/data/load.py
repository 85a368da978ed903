"""Records from files, folders and the hub; every error names the file and the line."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path

from distilllens.data.hub import hub_rows
from distilllens.data.records import canonical, kind_of, read_record, with_answer
from distilllens.data.tables import arrow_rows, csv_rows, parquet_rows
from distilllens.data.text_files import json_lines, json_list, read_lines, read_text, stories

TEXT_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".txt", ".txt.gz")
TABLE_SUFFIXES = (".csv", ".csv.gz", ".parquet", ".arrow")
SUFFIXES = TEXT_SUFFIXES + TABLE_SUFFIXES

logger = logging.getLogger(__name__)


def load_records(
    source: str | PathLike | Iterable[str | PathLike],
    *,
    skip_empty: bool = True,
    warn: bool = True,
    chat: bool = False,
) -> list[dict]:
    """The records of one file, of several, or of all data files directly in a folder, in order.

    ``.jsonl`` holds one JSON object per line and ``.json`` a list of them. ``.txt`` holds stories
    separated by lines ``<|endoftext|>``, each a record ``{"text": ...}``. ``.csv`` names its
    columns in the first line; an empty cell is no field. These may end in ``.gz``. ``.parquet`` and
    ``.arrow`` are tables, and a folder that ``datasets`` saved is its ``.arrow`` files. The files
    of a folder are read in order of their names; tables only if it has no other data.

    A record is ``instruction`` / ``input`` / ``output`` (and ``system`` / ``history``), ``prompt``
    / ``completion``, ``messages`` or ``text``; ``conversations`` become messages, content in text
    parts becomes text, and a field that is null is left out. Other fields are kept. All records
    must be of one kind. Each has its place, ``FILE:LINE``, as an attribute ``place``.

    Args:
        skip_empty: leave out records whose target is empty; otherwise they are refused.
        warn: log what was left out, and the fields that nothing reads.
        chat: a chat template will write instruction records: it reads their ``tools`` and
            ``chat_template_kwargs``, too.

    Raises:
        ValueError: a file is missing, empty, of an unknown suffix or broken (UTF-8, JSON, gzip), a
            record is invalid, records are of two kinds, or none of a file has a target; the message
            starts with ``FILE:LINE``, or ``FILE:ROW`` for tables, rows counted from 0.
    """
    intake = Intake(skip_empty, chat)
    for file in data_files(source, warn=warn):
        intake.add(rows_of(file), f"{file}:1: the file")
    return intake.finish(warn)


def load_prompts(
    source: str | PathLike | Iterable[str | PathLike], *, chat: bool = False
) -> list[tuple[str, dict]]:
    """``(FILE:LINE, record)`` of records to be answered, read as by ``load_records``.

    They need no answer; in place of one they have some text (see ``with_answer``).

    Args:
        chat: as in ``load_records``.

    Raises:
        ValueError: as ``load_records``, or a record has no prompt.
    """
    intake, places = Intake(skip_empty=False, chat=chat), []

    def rows(file):
        for where, row in rows_of(file):
            places.append(where)
            yield where, _to_answer(row, where)

    for file in data_files(source):
        intake.add(rows(file), f"{file}:1: the file")
    return list(zip(places, intake.finish(warn=True), strict=True))


def load_hub(
    dataset_name: str,
    split: str = "train",
    config: str | None = None,
    *,
    warn: bool = True,
    chat: bool = False,
) -> list[dict]:
    """The records of one split of a data set on the Hugging Face hub (or in its local cache).

    Records are read as by ``load_records``; those of JSON files are as they are in the files.

    Raises:
        ValueError: the data set or split cannot be loaded, or as ``load_records``; the message
            starts with ``FILE:LINE`` for JSON files and else with ``NAME[SPLIT]:ROW``, rows counted
            from 0 as on the hub.
    """
    intake = Intake(skip_empty=True, chat=chat)
    rows = hub_rows(dataset_name, split, config, warn=warn)
    intake.add(rows, f"{dataset_name}[{split}]")
    return intake.finish(warn)


def _to_answer(row, where):
    """A row with some answer; what else is wrong with it is left for ``read_record``."""
    if not isinstance(row, dict):
        return row
    try:
        record = canonical(row)
    except ValueError:
        return row
    try:
        record = with_answer(record, "answer")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if kind_of(record) == "messages" and len(record.get("messages") or ()) == 1:
        raise ValueError(f"{where}: 'messages' holds nothing before the answer: no prompt")
    return record


class Intake:
    """Records of one kind, and what is to be said about them when all are there."""

    def __init__(self, skip_empty, chat=False):
        self.skip_empty, self.chat, self.records, self.unused = skip_empty, chat, [], Counter()
        self.first, self.num_rows, self.first_empty = None, 0, None

    def add(self, rows, source):
        """Take the rows of a source, ``(where, row)``; at least one must have a target."""
        num_rows, num_records = self.num_rows, len(self.records)
        for where, row in rows:
            self.num_rows += 1
            kind, record, conversation, unused = read_record(
                row, where, skip_empty=self.skip_empty, chat=self.chat
            )
            if record is None:
                self.first_empty = self.first_empty or where
                continue
            self.first = self.first or (kind, conversation, where)
            if (kind, conversation) != self.first[:2]:
                raise ValueError(
                    f"{where}: a {_named(kind, conversation)}, but {self.first[2]} is a "
                    f"{_named(*self.first[:2])}; train on one kind at a time"
                )
            self.records.append(record)
            if unused:
                self.unused.update(unused)
        if self.num_rows == num_rows:
            raise ValueError(f"{source} holds no record; it needs at least one")
        if len(self.records) == num_records:
            raise ValueError(
                f"{source} holds {self.num_rows - num_rows} records, but all of their targets are "
                "empty; a target is output, completion, messages or text"
            )

    def finish(self, warn):
        """The records, once the warnings are logged."""
        if warn and self.first_empty:
            logger.warning(
                "leaving out %d of %d records that have no target; the first is %s",
                self.num_rows - len(self.records),
                self.num_rows,
                self.first_empty,
            )
        if warn and self.unused:
            fields = ", ".join(f"{name!r} (in {n})" for name, n in sorted(self.unused.items()))
            logger.warning(
                "nothing reads these fields of the %d records from %s on: %s",
                len(self.records),
                self.first[2],
                fields,
            )
        return self.records


def _named(kind, conversation):
    return f"{kind!r} record" + (" of messages" if conversation and kind == "prompt" else "")


def data_files(
    source: str | PathLike | Iterable[str | PathLike], *, warn: bool = True
) -> Iterator[Path]:
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
            yield from _inside(path, warn)
        elif not path.exists():
            raise ValueError(f"{path}: no such file or folder")
        elif not path.name.endswith(SUFFIXES):
            raise ValueError(f"{path}: unknown suffix {path.suffix!r}; known are {_known()}")
        else:
            yield path


def _inside(folder, warn):
    """The data files of a folder."""
    splits = sorted(part.parent.name for part in folder.glob("*/state.json"))
    if (folder / "dataset_dict.json").exists() and splits:
        raise ValueError(
            f"{folder}: a data set of the splits {', '.join(splits)}; name one of these folders, "
            f"such as {folder / splits[0]}"
        )
    files = sorted(file for file in folder.iterdir() if file.name.endswith(SUFFIXES))
    texts = [file for file in files if file.name.endswith(TEXT_SUFFIXES)]
    tables = [file for file in files if file not in texts]
    if (folder / "dataset_info.json").exists() and (folder / "state.json").exists():
        texts = []  # a saved data set: its .json files describe the .arrow files
    if texts and tables and warn:
        logger.warning(
            "%s: %s is read, and tables are not: %s",
            folder,
            ", ".join(file.name for file in texts),
            ", ".join(file.name for file in tables),
        )
    if not files:
        raise ValueError(f"{folder}: no data file in this folder; known are {_known()}")
    return texts or tables


def _known():
    return ", ".join(SUFFIXES)


def rows_of(file: Path) -> Iterator[tuple[str, object]]:
    """``(where, value)`` for every row of a file; only lists of JSON are read whole.

    Raises:
        ValueError: a file that cannot be read, with file and line.
    """
    stem, name = file.name.removesuffix(".gz"), str(file)
    if stem.endswith((".parquet", ".arrow")):
        return parquet_rows(file) if stem.endswith(".parquet") else arrow_rows(file)
    if stem.endswith(".json"):
        return json_list(name, read_text(file, name))
    rows = {".jsonl": json_lines, ".txt": stories, ".csv": csv_rows}
    return rows[Path(stem).suffix](name, read_lines(file, name))
