"""Size and SHA-256 of files, noted beside them when they were written, and compared again."""

from __future__ import annotations

import json
import logging
import zipfile
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import NotRequired, TypedDict

from distilllens.files import flush, sha256
from distilllens.stored import DamagedFile, read_stored

# The notes of a finished run and of a checkpoint.
RUN_FILE, MARK = "run.json", "complete.json"
_WEIGHTS = ("*model*.safetensors", "*model*.bin", "*model*.index.json")
_PICKLE = b"\x80\x02"  # the first bytes of torch.save's old format
logger = logging.getLogger(__name__)


class FileNote(TypedDict):
    """Size and contents of a file."""

    bytes: int
    sha256: str


class Noted(TypedDict):
    """What is noted beside weights; version 0.1.0 knew a file by its size alone."""

    weights: NotRequired[dict[str, FileNote]]  # of a run
    files: NotRequired[dict[str, int | FileNote]]  # of a checkpoint


def described(folder: str | Path, names: list[str]) -> dict[str, FileNote]:
    """Name -> size and SHA-256 of files in a folder, once they are on the disk."""
    found = {}
    for name in names:
        file = Path(folder) / name
        flush(file)
        found[name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    return found


def difference_from(
    folder: str | Path, files: dict[str, int | FileNote], *, contents: bool = True
) -> str | None:
    """What differs between a folder and what ``described`` found there before; None if nothing."""
    for name, entry in files.items():
        file = Path(folder) / name
        size = entry if isinstance(entry, int) else entry["bytes"]
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if not contents:
            continue
        if isinstance(entry, int):
            if (why := unreadable(file)) is not None:
                return f"{name} cannot be read: {why}"
        elif sha256(file) != entry["sha256"]:
            return f"the contents of {name} have changed"
    return None


def unreadable(file: Path) -> str | None:
    """Why a file of a checkpoint cannot be read, as far as its format tells; None if it can.

    torch.save writes archives with a CRC-32 of every member; its old format has no checksum.
    """
    try:
        if file.suffix in (".pt", ".pth"):
            with open(file, "rb") as stream:
                if stream.read(len(_PICKLE)) == _PICKLE:
                    return None
            with zipfile.ZipFile(file) as archive:
                bad = archive.testzip()
            return None if bad is None else f"the contents of its part {bad} have changed"
        if file.suffix == ".json":
            json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError, zipfile.BadZipFile, NotImplementedError) as error:
        return str(error) or type(error).__name__
    return None


def check_noted_weights(what: str, name: str | Path):
    """Refuse weights that are not those which training noted beside them; large files are read.

    Args:
        what: what the message calls the model.
        name: its folder; nothing is known of the models of the hub.

    Raises:
        ValueError: with the file that has changed.
    """
    folder = Path(name).absolute()
    for file in (folder / note for note in (RUN_FILE, MARK)):
        if not file.is_file():
            continue
        try:
            note = read_stored(file, Noted)
        except DamagedFile as error:
            logger.warning("the weights beside it are not compared: %s", error)
            continue
        noted = {**note.get("weights", {}), **note.get("files", {})}
        noted = {n: noted[n] for n in noted if any(fnmatch(n, w) for w in _WEIGHTS)}
        # What is not there is not loaded: whoever loads weights knows which of them it lacks.
        there = {n: entry for n, entry in noted.items() if (folder / n).is_file()}
        states = [(folder / n).stat() for n in there]
        states = tuple((state.st_size, state.st_mtime_ns, state.st_ino) for state in states)
        if (why := _difference(folder, json.dumps(there), states)) is not None:
            raise ValueError(
                f"cannot load {what}: {why}, as {file.name} beside it tells; restore the file, or "
                f"train again (weights that you changed belong in a folder without {file.name})"
            )


@cache  # one command loads some models twice
def _difference(folder, noted, states):
    return difference_from(folder, json.loads(noted))
