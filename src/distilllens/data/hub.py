"""Rows of a data set on the Hugging Face hub, or of a folder that ``datasets`` can load."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

from distilllens.data.tables import arrow_tables, csv_rows, table_rows
from distilllens.data.text_files import json_lines, json_list, read_text
from distilllens.errors import first_line

_OWN = (".jsonl", ".json", ".csv", ".jsonl.gz", ".json.gz", ".csv.gz")
# The settings of a builder that say where its files are, not how to read them.
_PLACES = ("name", "version", "data_dir", "data_files", "description")


def hub_rows(dataset_name: str, split: str, config: str | None) -> Iterator[tuple[str, object]]:
    """``(where, row)`` of one split.

    ``datasets`` would fit JSON and CSV into a table: it gives every object the keys of the others,
    rounds numbers, and takes the answer "None" of a CSV file for a missing one. So these files are
    only found and downloaded by it, and read as ``load_records`` reads them.

    Raises:
        ValueError: the data set or split cannot be loaded, or a JSON or CSV file is broken.
    """
    import datasets

    try:
        files = _own_files(datasets, dataset_name, config)
        if files is None:
            # Under a README, datasets' cache of a folder does not notice that a file has changed.
            mode = "force_redownload" if Path(dataset_name, "README.md").exists() else None
            rows = datasets.load_dataset(dataset_name, config, split=split, download_mode=mode)
        else:
            local = datasets.DownloadManager().download(files)
    except Exception as error:  # datasets, huggingface_hub and requests have their own classes
        raise _cannot_load(dataset_name, split, error) from error
    if files is None:
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


def _cannot_load(dataset_name, split, error):
    # "An error occurred while generating the dataset" is all that the first line would say.
    if type(error).__name__ == "DatasetGenerationError" and error.__cause__ is not None:
        error = error.__cause__
    reason = first_line(error)
    if type(error).__name__ == "DatasetGenerationCastError":
        reason = next((line for line in str(error).splitlines()[1:] if line), reason)
    return ValueError(f"cannot load the data set {dataset_name!r}, split {split!r}: {reason}")


def _own_files(datasets, dataset_name, config):
    """Split -> paths or URLs of its files; None if they are not ours to read."""
    try:
        builder, unreachable = datasets.load_dataset_builder(dataset_name, config), None
    except Exception as error:
        builder, unreachable = None, error
    on_hub = builder is not None and not Path(dataset_name).is_dir()
    if builder is None or not builder.config.data_files:  # the hub is out of reach
        builder, on_hub = _downloaded(datasets, dataset_name, config) or builder, False
        if builder is None:
            raise unreachable
    files = {
        str(k): list(map(str, paths)) for k, paths in (builder.config.data_files or {}).items()
    }
    every = [path for paths in files.values() for path in paths]
    if not every or not all(path.endswith(_OWN) for path in every) or _has_settings(builder.config):
        return None
    if on_hub:
        with suppress(Exception):  # what is left to a run out of the hub's reach: see _downloaded
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


def _downloaded(datasets, dataset_name, config):
    """The builder of the files that lie in the hub's cache; None if they are not all there."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(dataset_name, repo_type="dataset", local_files_only=True)
        return datasets.load_dataset_builder(folder, config)
    except Exception:  # not in the cache, no name of a data set, files of another configuration
        return None


def _file_rows(names, paths):
    for name, path in zip(names, paths, strict=True):
        text = read_text(Path(path), name)
        if name.endswith((".csv", ".csv.gz")):
            yield from csv_rows(name, text)
        else:  # .json files on the hub hold a list or lines
            yield from (json_list if text.lstrip().startswith("[") else json_lines)(name, text)
