"""complete.json: the SHA-256 of a finished results folder's settings and files, written last."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from hashlib import sha256 as digest
from pathlib import Path
from typing import NotRequired, TypedDict

from distilllens.files import sha256, write_json
from distilllens.stored import DamagedFile, read_stored

SEAL = "complete.json"


class Seal(TypedDict):
    """What ``complete.json`` holds."""

    files: dict[str, str]  # path in the folder -> SHA-256
    settings: NotRequired[str]  # SHA-256; the first versions did not note it


def write_seal(folder: Path, settings: Mapping, files: Collection[str]):
    """Record the settings and the files, by their paths in the folder, of a finished evaluation."""
    hashes = {name: sha256(folder / name) for name in sorted(files)}
    write_json(folder / SEAL, {"files": hashes, "settings": _digest(settings)})


def unseal(folder: Path):
    """Forget the record, before a recorded file changes."""
    (folder / SEAL).unlink(missing_ok=True)


def read_seal(folder: Path) -> Seal | None:
    """The record, or None where there is none.

    Raises:
        DamagedFile: it cannot be read.
    """
    return read_stored(folder / SEAL, Seal) if (folder / SEAL).exists() else None


def check_settings(seal: Seal, settings: Mapping, file: Path):
    """Refuse settings that are not those of the finished evaluation.

    Args:
        settings: what ``file`` holds.

    Raises:
        DamagedFile: they have changed.
    """
    now = _digest(settings)
    if (before := seal.get("settings", now)) != now:
        raise DamagedFile(
            f"{file}: the settings have changed since the evaluation was finished "
            f"({_hashes(before, now)})"
        )


def has_all(folder: Path, seal: Seal, files: Collection[str]) -> bool:
    """Whether every recorded file is there; none has changed.

    Args:
        files: the paths of exactly those that must be recorded.

    Raises:
        DamagedFile: a recorded file has changed, or other files are recorded.
    """
    recorded, whole = seal["files"], True
    for name in sorted(recorded.keys() ^ {*files}):
        what = "names {}, which is no" if name in recorded else "does not name {}, which is a"
        raise DamagedFile(
            f"{folder / SEAL} {what.format(name)} file of the settings in {folder}/evaluation.json "
            "(if the settings were changed, restore them instead)"
        )
    for name, before in recorded.items():
        if not (folder / name).is_file():
            whole = False  # it was deleted in order to be made again
        elif (now := sha256(folder / name)) != before:
            raise DamagedFile(
                f"{folder / name} has changed since it was finished ({_hashes(before, now)})"
            )
    return whole


def _digest(settings):
    return digest(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _hashes(before, now):
    return f"its SHA-256 was {before[:12]}... and is now {now[:12]}..."
