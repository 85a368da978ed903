"""Where records come from: entries of a mixture, as TRL names their keys, and what each gives."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

from distilllens.data.format import example_fields
from distilllens.data.hub import file_rows, hub_rows, streamed_files, streamed_rows
from distilllens.data.load import SUFFIXES, Intake, data_files, rows_of
from distilllens.errors import did_you_mean
from distilllens.fingerprints import add_samples

_ELSEWHERE = {"weight": "fraction", "probability": "fraction", "num_rows": "rows"}
_TEXTS = ("path", "name", "data_dir", "split")


@dataclass(frozen=True)
class Source:
    """Rows that can be read again and again.

    Args:
        path: a data file, a folder, the id of a data set on the hub, or a builder of ``datasets``
            (json, csv, parquet) with ``data_files``.
        name: the configuration of a data set.
        data_dir, data_files: as for ``datasets.load_dataset``.
        split: of the data set; a file has none.
        columns: the fields of a row that are kept; all by default.
        fraction: share of a mixture, relative to those of the other sources.
        rows: only the first so many records.
        files: files and folders that are read instead of a data set.
    """

    path: str
    name: str | None = None
    data_dir: str | None = None
    data_files: str | tuple[str, ...] | Mapping[str, Any] | None = None
    split: str = "train"
    columns: tuple[str, ...] | None = None
    fraction: float | None = None
    rows: int | None = None
    files: tuple[str, ...] | None = None

    @property
    def label(self) -> str:
        """The source as messages and pages call it."""
        if self.files is not None:
            return self.path
        named = f"{self.path}/{self.name}" if self.name else self.path
        given = self.data_files
        given = given.get(self.split) if isinstance(given, Mapping) else given
        given = [given] if isinstance(given, str) else given
        return f"{named}[{self.split}]" + (f" of {', '.join(given)}" if given else "")

    @property
    def hub_id(self) -> str | None:
        """The id of a data set on the hub; None for files and folders of this machine."""
        is_id = self.files is None and "/" in self.path and not Path(self.path).exists()
        return self.path if is_id else None

    def read(self, *, warn: bool = True) -> Iterator[tuple[str, object]]:
        """``(where, row)`` of every row.

        Raises:
            ValueError: a file or data set that cannot be read.
        """
        if self.files is not None:
            rows = chain.from_iterable(map(rows_of, data_files(self.files, warn=warn)))
        else:
            rows = hub_rows(self.path, self.split, self.name, warn=warn, **self._place)
        return self._selected(rows)

    def shards(self, *, warn: bool = True) -> tuple[Shard, ...]:
        """The parts of the source that can be streamed apart; one if only the first rows count.

        Raises:
            ValueError: it cannot be found, or not streamed.
        """
        if self.files is not None:
            found = tuple(map(str, data_files(self.files, warn=warn)))
        else:
            found = streamed_files(self.path, self.split, self.name, **self._place)
        if found is None or self.rows is not None:
            return (Shard(self, found),)
        return tuple(Shard(self, (file,)) for file in found)

    @property
    def _place(self):
        given = {"data_dir": self.data_dir, "data_files": self.data_files}
        if isinstance(self.data_files, tuple):
            given["data_files"] = [*self.data_files]
        return {name: value for name, value in given.items() if value is not None}

    def _selected(self, rows):
        if self.columns is None:
            return rows
        return ((where, self._of_columns(row)) for where, row in rows)

    def _of_columns(self, row):
        if not isinstance(row, Mapping):
            return row
        return {name: value for name, value in row.items() if name in self.columns}


@dataclass(frozen=True)
class Shard:
    """Files of a source that are streamed one after another.

    Args:
        files: paths or URLs; None for a table that ``datasets`` streams.
    """

    source: Source
    files: tuple[str, ...] | None

    def read(self) -> Iterator[tuple[str, object]]:
        """``(where, row)`` of every row, read when it is asked for."""
        source = self.source
        if self.files is None:
            place = source._place
            rows = streamed_rows(source.path, source.split, source.name, **place)
        elif source.files is not None:
            rows = chain.from_iterable(rows_of(Path(file)) for file in self.files)
        else:
            rows = chain.from_iterable(file_rows(file, file) for file in self.files)
        return source._selected(rows)


def sources_of(entries: Sequence[Mapping[str, Any]]) -> tuple[Source, ...]:
    """The sources that the entries of ``datasets`` name.

    Raises:
        ValueError: an entry with an unknown key or a value of a wrong type, files that do not
            exist, or shares of some of the sources only.
    """
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise ValueError("datasets must be a list of entries such as {path: data.jsonl}")
    found = tuple(_source(entry, number) for number, entry in enumerate(entries, 1))
    if len({source.fraction is None for source in found}) > 1:
        raise ValueError("datasets: set fraction in all entries or in none")
    return found


def file_source(files: Sequence[str]) -> Source:
    """The source of files and folders."""
    return Source(", ".join(files), files=tuple(files))


def load_sources(
    sources: Sequence[Source], *, chat: bool = False, warn: bool = True
) -> list[list[dict]]:
    """The records of each source, as ``load_records`` reads them.

    ``rows`` keeps the first so many; ``fraction`` the first rows of each source, as many as its
    share of the largest mixture that repeats no row (TRL's rule).

    Raises:
        ValueError: as ``load_records``; fewer records than ``rows``; sources that are trained on in
            different forms.
    """
    found = []
    for source in sources:
        intake = Intake(skip_empty=True, chat=chat)
        intake.add(source.read(warn=warn), source.label)
        records = intake.finish(warn)
        if source.rows is not None and len(records) < source.rows:
            raise ValueError(
                f"datasets: {source.label} has {len(records)} records, fewer than rows: "
                f"{source.rows}"
            )
        found.append(records[: source.rows])
    check_forms(sources, [records[0] for records in found], chat=chat)
    if sources[0].fraction is not None:
        weights = [source.fraction / sum(s.fraction for s in sources) for source in sources]
        total = min(len(rows) / weight for rows, weight in zip(found, weights, strict=True))
        found = [rows[: round(w * total)] for rows, w in zip(found, weights, strict=True)]
        if empty := [s for s, rows in zip(sources, found, strict=True) if not rows]:
            raise ValueError(
                f"datasets: {empty[0].label} gets no row: a fraction of {empty[0].fraction:g} is "
                f"less than one of the {sum(map(len, found))} rows of the largest mixture that "
                "repeats none; raise it, or leave the source out"
            )
    return found


def check_forms(sources: Sequence[Source], records: Sequence[dict], *, chat: bool):
    """Refuse sources whose records become unlike examples: text beside messages, for instance.

    Args:
        records: the first of each source.

    Raises:
        ValueError: with two of the sources, and what their records become.
    """
    forms = [example_fields(record, chat=chat) for record in records]
    for source, form in zip(sources, forms, strict=True):
        if form != forms[0]:
            raise ValueError(
                f"datasets: the records of {sources[0].label} are trained on as {forms[0]}, and "
                f"those of {source.label} as {form}; train on one form at a time"
                + ("" if chat else ", or set chat to write instructions as messages")
            )


def fingerprint_of(shards: Sequence[Shard]) -> str:
    """What distinguishes streamed data without reading all of it: sizes and samples of the files.

    Of a data set on the hub, the URLs of its files count, which name a commit.
    """
    digest = hashlib.sha256()
    for shard in shards:
        source = replace(shard.source, files=None, path="", data_dir=None, data_files=None)
        digest.update(repr(source).encode())
        for file in shard.files or (shard.source.label,):
            if Path(file).is_file():
                add_samples(digest, Path(file))
            else:
                digest.update(file.encode())
    return digest.hexdigest()


def _source(entry, number):
    what = f"datasets: entry {number}"
    if not isinstance(entry, Mapping):
        raise ValueError(f"{what} is {entry!r}; write a mapping such as {{path: data.jsonl}}")
    known = [field.name for field in fields(Source) if field.name != "files"]
    given = {name: value for name, value in entry.items() if value is not None}
    for name in given:
        if name not in known:
            other = _ELSEWHERE.get(name)
            hint = f"; did you mean {other}?" if other else did_you_mean(name, known)
            raise ValueError(
                f"{what} has the unknown key {name!r}{hint} (known: {', '.join(known)})"
            )
    if "path" not in given:
        raise ValueError(f"{what} has no path: a data file, a folder or the id of a data set")
    for name in _TEXTS:
        if name in given and (not isinstance(given[name], str) or not given[name]):
            raise ValueError(f"{what}: {name} must be text, got {given[name]!r}")
    _check_numbers(what, given)
    given["columns"] = _texts(what, "columns", given.get("columns"))
    if not isinstance(given.get("data_files"), Mapping):
        given["data_files"] = _texts(what, "data_files", given.get("data_files"))
    return _of_files(Source(**given), what)


def _check_numbers(what, given):
    rows, fraction = given.get("rows"), given.get("fraction")
    if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 1):
        raise ValueError(f"{what}: rows must be a whole number, at least 1, got {rows!r}")
    is_number = isinstance(fraction, int | float) and not isinstance(fraction, bool)
    if fraction is not None and not (is_number and 0 < fraction < float("inf")):
        raise ValueError(f"{what}: fraction must be a number above 0, got {fraction!r}")
    if rows is not None and fraction is not None:
        raise ValueError(f"{what}: set rows or fraction, not both")


def _texts(what, name, value):
    if value is None:
        return None
    value = [value] if isinstance(value, str) else value
    if (
        not isinstance(value, list | tuple)
        or not value
        or not all(isinstance(v, str) for v in value)
    ):
        raise ValueError(f"{what}: {name} must be a list of texts, got {value!r}")
    return tuple(value)


def _of_files(source, what):
    """The source, of files if its path is one, or a folder that ``datasets`` saved."""
    path = Path(source.path)
    is_saved = (path / "state.json").exists() and (path / "dataset_info.json").exists()
    if not path.is_file() and not is_saved:
        if source.path.endswith(SUFFIXES):
            raise ValueError(f"{what}: {source.path}: no such file or folder")
        return source
    for name in ("name", "data_dir", "data_files"):
        if getattr(source, name) is not None:
            raise ValueError(f"{what}: {source.path} is read as it is; leave {name} out")
    if source.split != "train":
        raise ValueError(f"{what}: {source.path} has no splits; leave split out")
    list(data_files([source.path], warn=False))
    return replace(source, files=(source.path,))
