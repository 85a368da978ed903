"""Checkpoints that are complete or ignored: a mark with the hash of every file, written last."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path
from typing import NotRequired, TypedDict

from distilllens.errors import one_line
from distilllens.files import write_json
from distilllens.marks import MARK, FileNote, described, difference_from
from distilllens.stored import DamagedFile, read_stored

_NAME = re.compile(r"checkpoint-(\d+)")
logger = logging.getLogger(__name__)


class SharedOut(TypedDict):
    """How the rows of a step were shared out: ``elastic.StepRows``."""

    per_device: int
    accumulation: int
    processes: int
    asked: int


class Mark(TypedDict):
    """What ``complete.json`` holds; version 0.1.0 knew a file by its size alone."""

    files: dict[str, int | FileNote]
    versions: NotRequired[dict[str, str]]
    run: NotRequired[str]
    step_rows: NotRequired[SharedOut]


def mark_whole(folder: str | Path, **more):
    """Write a mark with size and SHA-256 of a checkpoint's files, once they are on the disk.

    Args:
        more: further entries of ``Mark``.
    """
    folder = Path(folder)
    names = [str(file.relative_to(folder)) for file in sorted(folder.rglob("*")) if file.is_file()]
    found = described(folder, [n for n in names if n != MARK])
    write_json(folder / MARK, {"files": found, **more})


def versions_of(folder: str | Path) -> dict[str, str]:
    """Library -> version that a checkpoint was written with; empty if it does not say."""
    try:
        return read_stored(Path(folder) / MARK, Mark).get("versions", {})
    except DamagedFile:
        return {}


def is_whole(folder: str | Path) -> bool:
    """Whether every file in the mark exists with the size it had; contents are not read."""
    return _damage(Path(folder), contents=False) is None


def damage_of(folder: str | Path) -> str | None:
    """What is wrong with a checkpoint, its contents included; None for a complete one.

    A mark of version 0.1.0 has sizes alone: contents are checked as far as their formats allow.
    """
    return _damage(Path(folder), contents=True)


def last_whole(
    output_dir: str | Path, *, contents: bool = True, run: str | None = None
) -> Path | None:
    """The newest complete ``checkpoint-N`` of a run, or None.

    A newer checkpoint of another run, or whose files no longer match its mark, is skipped with a
    warning.

    Args:
        contents: compare hashes, not only sizes.
        run: the identity of the run, which its checkpoints note; None for any run.
    """
    for _, path in sorted(_checkpoints(output_dir), reverse=True):
        damage = _damage(path, contents)
        if damage is None and run in (None, _run_of(path) or run):
            return path
        if damage is None:
            logger.warning("%s is a checkpoint of another run and not used", path)
            continue
        if (path / MARK).exists():
            logger.warning("%s is damaged and not used: %s", path, damage)
    return None


def rotate(output_dir: str | Path, limit: int | None, keep: list[str | Path]):
    """Delete the oldest checkpoints until ``limit`` are left, incomplete ones first.

    Args:
        limit: None and 0 keep all, as in transformers.
        keep: checkpoints that are never deleted.
    """
    if not limit:
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


def _run_of(folder):
    """The identity of the run that wrote a whole checkpoint; None where it is not noted."""
    return read_stored(folder / MARK, Mark).get("run")


def _damage(folder, contents):
    try:
        files = read_stored(folder / MARK, Mark)["files"]
        if not files:
            return f"{MARK} lists no file"
        return difference_from(folder, files, contents=contents)
    except (DamagedFile, OSError) as error:
        return f"its mark cannot be read: {one_line(error)}"
