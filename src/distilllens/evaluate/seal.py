"""complete.json: the SHA-256 of every finished file of a results folder, written last."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from distilllens.files import sha256, write_json
from distilllens.stored import DamagedFile, read_stored

SEAL = "complete.json"


class _Seal(TypedDict):
    files: dict[str, str]  # path in the folder -> SHA-256


def seal(folder: Path, files: Iterable[Path]):
    """Record the files of a finished evaluation."""
    hashes = {file.relative_to(folder).as_posix(): sha256(file) for file in sorted(files)}
    write_json(folder / SEAL, {"files": hashes})


def unseal(folder: Path):
    """Forget the record, before a recorded file changes."""
    (folder / SEAL).unlink(missing_ok=True)


def is_sealed(folder: Path) -> bool:
    """Whether the evaluation is finished, with every recorded file there and unchanged.

    Raises:
        DamagedFile: a recorded file has changed, or the record cannot be read.
    """
    if not (folder / SEAL).exists():
        return False
    whole = True
    for name, before in read_stored(folder / SEAL, _Seal)["files"].items():
        if not (folder / name).is_file():
            whole = False  # it was deleted in order to be made again
        elif (now := sha256(folder / name)) != before:
            raise DamagedFile(
                f"{folder / name} has changed since it was finished (its SHA-256 was "
                f"{before[:12]}... and is now {now[:12]}...)"
            )
    return whole
