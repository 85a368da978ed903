"""What a recipe is made of: its data files and models, as hashes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distilllens.data import data_files
from distilllens.files import sha256
from distilllens.fingerprints import fingerprint
from distilllens.loading import load_config

_MODELS = ("model_name_or_path", "teacher_model_name_or_path")


def files_of(value: str | list[str] | None) -> list[str]:
    """The value of a field that names one file, several, or none."""
    return [value] if isinstance(value, str) else list(value or [])


def data_of(fields: Mapping[str, Any]) -> list[str]:
    """The files and folders of a recipe's training data; of a mixture, the files."""
    found = files_of(fields.get("train_file"))
    for entry in fields.get("datasets") or []:
        named = [entry.get("path"), *files_of(entry.get("data_files"))]
        found += [name for name in named if name and Path(name).is_file()]
    return found


class Materials:
    """Hashes files and models; each is read once, so that all runs are compared with one state."""

    def __init__(self):
        self._known: dict[str, Any] = {}

    def files(self, names: list[str]) -> dict[str, str]:
        """Path -> SHA-256 of the data files in these files and folders, as far as they exist."""
        there = [name for name in names if Path(name).exists()]
        files = [str(file) for file in data_files(there, warn=False)] if there else []
        return {file: self._once(file, lambda file=file: sha256(file)) for file in files}

    def models(self, fields: Mapping[str, Any]) -> dict[str, dict[str, str]]:
        """Role -> fingerprint of the models that a recipe names, of several teachers each."""
        named = {name: fields[name] for name in _MODELS if fields.get(name)}
        for number, entry in enumerate(fields.get("teachers") or [], 1):
            named |= {f"teacher {number}": entry["model"]} if entry.get("model") else {}
        trusted = bool(fields.get("trust_remote_code"))
        return {role: self._model(name, trusted) for role, name in named.items()}

    def _model(self, name, trusted):
        def read():
            return fingerprint(name, load_config("model", name, trust_remote_code=trusted))

        return self._once(f"model {name}", read)

    def _once(self, key: str, read: Callable):
        if key not in self._known:
            self._known[key] = read()
        return self._known[key]
