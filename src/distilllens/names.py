"""Short names that tell paths apart."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

_DATA_SUFFIXES = (".jsonl", ".json", ".gz", ".txt", ".csv", ".parquet", ".arrow")


def shortest_names(paths: Sequence[str], separator: str = "/") -> list[str]:
    """Names for paths: their last parts, as many as tell each from the others.

    Paths that no number of parts tells apart keep equal names. Suffixes of data files are dropped.
    """
    parts = [_parts(path) for path in paths]
    names = []
    for path in parts:
        length = 1
        while length < len(path) and sum(other[-length:] == path[-length:] for other in parts) > 1:
            length += 1
        names.append(separator.join(path[-length:]))
    return names


def unique_names(paths: Sequence[str]) -> list[str]:
    """``shortest_names`` joined by ``_``, for files and folders that are called so.

    Raises:
        ValueError: one path twice, or two paths that would get one name.
    """
    real = [str(Path(path).resolve()) if Path(path).exists() else path for path in paths]
    parts, names = [_parts(path) for path in real], shortest_names(real, "_")
    for number, path in enumerate(parts):
        if path in parts[:number]:
            raise ValueError(f"{paths[number]} is named twice")
    for number, name in enumerate(names):
        if name in names[:number]:
            other = paths[names.index(name)]
            raise ValueError(f"{other} and {paths[number]} would both be called {name}; rename one")
    return names


def _parts(path):
    parts = [part for part in Path(os.path.normpath(path)).parts if part.strip("/\\")]
    *above, last = parts or ["model"]
    suffix = "".join(s for s in Path(last).suffixes if s in _DATA_SUFFIXES)
    return [*above, last.removesuffix(suffix)]
