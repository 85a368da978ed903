"""Rows of a data set on the Hugging Face hub, or of a folder that ``datasets`` can load."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from itertools import chain
from pathlib import Path

from distilllens.data.tables import arrow_tables, csv_rows, table_rows
from distilllens.data.text_files import json_lines, json_list, read_lines
from distilllens.errors import first_line

_OWN = (".jsonl", ".json", ".csv", ".jsonl.gz", ".json.gz", ".csv.gz")
logger = logging.getLogger(__name__)
# The settings of a builder that say where its files are, not how to read them.
_PLACES = ("name", "version", "data_dir", "data_files", "description")


def hub_rows(
    dataset_name: str, split: str, config: str | None, *, warn: bool, **place
) -> Iterator[tuple[str, object]]:
    """``(where, row)`` of one split.

    ``datasets`` would fit JSON and CSV into a table: it gives every object the keys of the others,
    rounds numbers, and takes the answer "None" of a CSV file for a missing one. So these files are
    only found and downloaded by it, and read as ``load_records`` reads them; where that cannot be,
    a warning says so (unless ``warn`` is False).

    Args:
        place: ``data_dir`` and ``data_files``, as ``datasets.load_dataset`` takes them.

    Raises:
        ValueError: the data set or split cannot be loaded, or a JSON or CSV file is broken.
    """
    import datasets

    try:
        files = _own_files(datasets, dataset_name, config, **place)
        if files is None:
            # Under a README, datasets' cache of a folder does not notice that a file has changed.
            mode = "force_redownload" if Path(dataset_name, "README.md").exists() else None
            settings = {"split": split, "download_mode": mode, **place}
            rows = datasets.load_dataset(dataset_name, config, **settings)
        else:
            local = datasets.DownloadManager().download(files)
    except Exception as error:  # datasets, huggingface_hub and requests have their own classes
        raise _cannot_load(dataset_name, split, error) from error
    if files is None:
        if warn and _may_differ(datasets, rows):
            logger.warning(
                "%s: the files are not read themselves (the hub is out of reach, or they have "
                "settings), but the table that datasets made of them: numbers may be rounded or "
                "stand where there was text, and keys that were null are absent",
                dataset_name,
            )
        tables = (row for table in arrow_tables(rows) for row in table_rows(table))
        yield from ((f"{dataset_name}[{split}]:{n}", row) for n, row in enumerate(tables))
    elif split in files:
        yield from _file_rows(files[split], local[split])
    else:  # a part, such as train[:100]
        rows = {name: list(_file_rows(files[name], paths)) for name, paths in local.items()}
        try:
            instruction = datasets.ReadInstruction.from_spec(split)
            parts = instruction.to_absolute({name: len(found) for name, found in rows.items()})
        except Exception as error:
            raise _cannot_load(dataset_name, split, error) from error
        for part in parts:
            yield from rows[part.splitname][part.from_ : part.to]


def streamed_files(
    dataset_name: str, split: str, config: str | None, **place
) -> tuple[str, ...] | None:
    """Paths or URLs of the JSON and CSV files of a split; None if ``datasets`` must read them.

    Raises:
        ValueError: the data set cannot be found, or has no such split.
    """
    import datasets

    try:
        files = _own_files(datasets, dataset_name, config, whole=False, **place)
    except Exception as error:  # as in hub_rows
        raise _cannot_load(dataset_name, split, error) from error
    if files is not None and split not in files:
        raise ValueError(
            f"cannot stream split {split!r} of {dataset_name!r}: it has {', '.join(files)}, and a "
            "part of a split is not streamed"
        )
    return None if files is None else tuple(files[split])


def streamed_rows(
    dataset_name: str, split: str, config: str | None, **place
) -> Iterator[tuple[str, object]]:
    """``(where, row)`` of a split that is a table, read when they are asked for.

    Raises:
        ValueError: the data set or split cannot be loaded.
    """
    import datasets

    try:
        found = datasets.load_dataset(dataset_name, config, split=split, streaming=True, **place)
        tables = (row for table in arrow_tables(found) for row in table_rows(table))
        for number, row in enumerate(tables):
            yield f"{dataset_name}[{split}]:{number}", row
    except Exception as error:  # as in hub_rows
        raise _cannot_load(dataset_name, split, error) from error


def _cannot_load(dataset_name, split, error):
    # "An error occurred while generating the dataset" is all that the first line would say.
    if type(error).__name__ == "DatasetGenerationError" and error.__cause__ is not None:
        error = error.__cause__
    reason = first_line(error)
    if type(error).__name__ == "DatasetGenerationCastError":
        reason = next((line for line in str(error).splitlines()[1:] if line), reason)
    return ValueError(f"cannot load the data set {dataset_name!r}, split {split!r}: {reason}")


def _own_files(datasets, dataset_name, config, *, whole=True, **place):
    """Split -> paths or URLs of its files; None if they are not ours to read."""
    builder = datasets.load_dataset_builder(dataset_name, config, **place)
    files = {
        str(k): list(map(str, paths)) for k, paths in (builder.config.data_files or {}).items()
    }
    every = [path for paths in files.values() for path in paths]
    if not every or not all(path.endswith(_OWN) for path in every) or _has_settings(builder.config):
        return None
    if whole and any("://" in path for path in every):
        with suppress(Exception):  # the table is all that datasets finds when the hub is away
            builder.download_and_prepare()
    return files


def _has_settings(config):
    """Whether a separator, one field of a JSON object, types of columns or the like are set."""
    default = type(config)()
    return any(
        getattr(config, field.name) != getattr(default, field.name)
        for field in fields(config)
        if field.name not in _PLACES
    )


def _may_differ(datasets, rows):
    """Whether a table may differ from the JSON or CSV files that it was made of."""
    nested = any(not isinstance(kind, datasets.Value) for kind in rows.features.values())
    return rows.info.builder_name == "csv" or (rows.info.builder_name == "json" and nested)


def file_rows(name: str, path: str) -> Iterator[tuple[str, object]]:
    """``(NAME:LINE, row)`` of a JSON or CSV file, or of a URL.

    Raises:
        ValueError: it cannot be read, with the line.
    """
    lines = read_lines(path, name)
    if name.endswith((".csv", ".csv.gz")):
        return csv_rows(name, lines)
    begun = []
    for line in lines:
        begun.append(line)
        if line.strip():
            break
    whole = chain(begun, lines)
    # .json files on the hub hold a list or lines.
    if begun and begun[-1].lstrip().startswith("["):
        return json_list(name, "\n".join(whole))
    return json_lines(name, whole)


def _file_rows(names, paths):
    return chain.from_iterable(map(file_rows, names, paths))
