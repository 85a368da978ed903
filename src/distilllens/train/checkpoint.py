"""Checkpoints that are complete or ignored: a mark with the hash of every file, written last."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

from distilllens.files import flush, sha256, write_json

MARK = "complete.json"
_NAME = re.compile(r"checkpoint-(\d+)")
logger = logging.getLogger(__name__)


def mark_whole(folder: str | Path):
    """Write a mark with size and SHA-256 of a checkpoint's files, once they are on the disk."""
    folder = Path(folder)
    names = [str(file.relative_to(folder)) for file in sorted(folder.rglob("*")) if file.is_file()]
    write_json(folder / MARK, {"files": described(folder, [n for n in names if n != MARK])})


def described(folder: str | Path, names: list[str]) -> dict[str, dict]:
    """Name -> size and SHA-256 of files in a folder, once they are on the disk."""
    found = {}
    for name in names:
        file = Path(folder) / name
        flush(file)
        found[name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    return found


def difference_from(folder: str | Path, files: dict, *, contents: bool = True) -> str | None:
    """What differs between a folder and what ``described`` found there before; None if nothing.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: something else than a description.
    """
    for name, (size, digest) in {name: _entry(entry) for name, entry in files.items()}.items():
        file = Path(folder) / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if contents and digest is not None and sha256(file) != digest:
            return f"the contents of {name} have changed"
    return None


def is_whole(folder: str | Path) -> bool:
    """Whether every file in the mark exists with the size it had; contents are not read."""
    return _damage(Path(folder), contents=False) is None


def damage_of(folder: str | Path) -> str | None:
    """What is wrong with a checkpoint, its contents included; None for a complete one.

    A mark of version 0.1.0 has sizes alone; they are then all that is compared.
    """
    return _damage(Path(folder), contents=True)


def last_whole(output_dir: str | Path, *, contents: bool = True) -> Path | None:
    """The newest complete ``checkpoint-N`` of a run, or None.

    A newer checkpoint with a mark that no longer matches its files is skipped with a warning.

    Args:
        contents: compare hashes, not only sizes.
    """
    for _, path in sorted(_checkpoints(output_dir), reverse=True):
        damage = _damage(path, contents)
        if damage is None:
            return path
        if (path / MARK).exists():
            logger.warning("%s is damaged and not used: %s", path, damage)
    return None


def rotate(output_dir: str | Path, limit: int | None, keep: list[str | Path]):
    """Delete the oldest checkpoints until ``limit`` are left, incomplete ones first.

    Args:
        limit: None keeps all.
        keep: checkpoints that are never deleted.
    """
    if limit is None:
        return
    found = sorted((is_whole(path), step, path) for step, path in _checkpoints(output_dir))
    kept = {Path(path).resolve() for path in keep}
    old = [path for _, _, path in found if path.resolve() not in kept]
    for path in old[: max(0, min(len(found) - limit, len(old)))]:
        # Without its mark first: what a kill leaves behind is then known to be incomplete.
        (path / MARK).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)


def _checkpoints(output_dir):
    """``(step, folder)`` of every checkpoint of a run."""
    return [
        (int(match[1]), path)
        for path in Path(output_dir).glob("checkpoint-*")
        if (match := _NAME.fullmatch(path.name)) and path.is_dir() and not path.is_symlink()
    ]


def _damage(folder, contents):
    try:
        files = json.loads((folder / MARK).read_text(encoding="utf-8"))["files"]
        if not files:
            return f"{MARK} lists no file"
        return difference_from(folder, files, contents=contents)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MARK} cannot be read ({type(error).__name__})"


def _entry(entry):
    """``(bytes, sha256)`` of a file in a mark; version 0.1.0 wrote the size alone."""
    if isinstance(entry, int):
        return entry, None
    return int(entry["bytes"]), str(entry["sha256"])
