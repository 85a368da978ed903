"""Tables -> rows: CSV, and Arrow in memory, in Parquet files and as ``datasets`` saves it."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from distilllens.data.conversations import parsed
from distilllens.data.whole_json import TwiceNamed
from distilllens.errors import first_line

_NUM_ROWS = 1000  # of a table that are in memory


def csv_rows(name: str, lines: Iterable[str]) -> Iterator[tuple[str, dict]]:
    """``(FILE:LINE, row)`` of comma-separated lines, of which the first names the columns.

    An empty cell is None, except for the prompt of a completion. ``prompt`` and ``completion``
    may be the JSON text of messages.

    Raises:
        ValueError: the text is not CSV, two columns have one name, or a row has another number
            of cells than the header.
    """
    reader, header, line = csv.reader((f"{each}\n" for each in lines), strict=True), None, 1
    try:
        for cells in _of_any_length(reader):
            start, line = line, reader.line_num + 1
            if not cells:
                continue
            if header is None:
                header = _header(cells, f"{name}:{start}")
            elif len(cells) != len(header):
                raise ValueError(
                    f"{name}:{start}: the row has {len(cells)} cells, but the header names "
                    f"{len(header)} columns"
                )
            else:
                try:
                    row = _csv_row(header, cells)
                except TwiceNamed as error:
                    raise ValueError(f"{name}:{start}: {error}") from error
                yield f"{name}:{start}", row
    except csv.Error as error:
        raise ValueError(f"{name}:{line}: broken CSV ({error})") from error


def parquet_rows(file: Path) -> Iterator[tuple[str, dict]]:
    """``(FILE:ROW, row)`` of a Parquet file, rows counted from 0.

    Raises:
        ValueError: it cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    def tables():
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(_NUM_ROWS):
            yield pyarrow.Table.from_batches([batch])

    yield from _file_rows(file, "Parquet", tables)


def arrow_rows(file: Path) -> Iterator[tuple[str, dict]]:
    """The same of an Arrow file that ``datasets`` wrote.

    Raises:
        ValueError: it cannot be read.
    """
    from datasets import Dataset

    yield from _file_rows(file, "Arrow", lambda: arrow_tables(Dataset.from_file(str(file))))


def arrow_tables(dataset) -> Iterator:
    """The rows of a ``datasets.Dataset`` as Arrow tables."""
    yield from dataset.with_format("arrow").iter(batch_size=_NUM_ROWS)


def table_rows(table) -> Iterator[dict]:
    """The rows of an Arrow table.

    A table has every column in every row and every field in every struct, with null where a value
    is missing. So null in a struct is an absent key, except for a message's content. JSON, which
    has nulls of its own, stays as it was written.
    """
    for row in table.to_pylist():
        yield {field.name: _plain(row[field.name], field.type) for field in table.schema}


def _file_rows(file, kind, read):
    number = 0
    try:
        for table in read():
            for row in table_rows(table):
                yield f"{file}:{number}", row
                number += 1
    except Exception as error:  # pyarrow's errors are of several classes
        raise ValueError(f"{file}: cannot be read as {kind} ({first_line(error)})") from error


def _plain(value, kind):
    from pyarrow import JsonType, types

    if value is None:
        return None
    if isinstance(kind, JsonType):
        return json.loads(value)
    if types.is_struct(kind):
        items = {field.name: _plain(value[field.name], field.type) for field in kind}
        return {
            key: item
            for key, item in items.items()
            if item is not None or (key == "content" and items.get("role") is not None)
        }
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return [_plain(item, kind.value_type) for item in value]
    return value


def _header(cells, where):
    """The names of the columns; one may be empty, as that of pandas' index is."""
    for number, name in enumerate(cells):
        if name in cells[:number]:
            raise ValueError(f"{where}: two columns of the header are called {name!r}")
    return cells


def _csv_row(header, cells):
    row = {column: _cell(column, text) for column, text in zip(header, cells, strict=True)}
    if "prompt" in row and row["prompt"] is None and row.get("completion"):
        row["prompt"] = ""
    return row


def _cell(column, text):
    if not text:
        return None
    if column in ("prompt", "completion") and text.lstrip().startswith("["):
        try:
            value = parsed(text)
        except TwiceNamed:
            if _is_messages(json.loads(text)):
                raise
            return text  # which looks like JSON
        if _is_messages(value):
            return value or text
    return text


def _is_messages(value):
    return isinstance(value, list) and all(isinstance(m, dict) and "role" in m for m in value)


def _of_any_length(reader):
    """The rows of a reader; csv has one limit of cells for the whole process, and it stays."""
    while True:
        before = csv.field_size_limit(sys.maxsize)
        try:
            cells = next(reader, None)
        finally:
            csv.field_size_limit(before)
        if cells is None:
            return
        yield cells
