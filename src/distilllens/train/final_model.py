"""The final model of a run: which files it consists of, and whether they are as they were."""

from __future__ import annotations

from pathlib import Path
from typing import NotRequired, TypedDict

from distilllens.errors import one_line
from distilllens.marks import RUN_FILE, FileNote, difference_from
from distilllens.stored import DamagedFile, read_stored


class _Final(TypedDict):
    weights: NotRequired[dict[str, FileNote]]
    files: NotRequired[dict[str, FileNote]]


def damage_of_final(output_dir: str | Path) -> str | None:
    """What is wrong with the final model of a run; None if nothing, or if it is not known.

    Its other files may have been edited since, but not deleted. A run of version 0.1.0 did not note
    what they were.
    """
    try:
        note = read_stored(Path(output_dir) / RUN_FILE, _Final)
    except DamagedFile as error:
        return one_line(error)
    missing = (name for name in note.get("files", {}) if not (Path(output_dir) / name).is_file())
    damage = difference_from(output_dir, note.get("weights", {}))
    return damage or next((f"{name} is missing" for name in missing), None)


def edited_files(output_dir: str | Path) -> list[str]:
    """Files of the final model, beside its weights, that have changed since they were written."""
    note, folder = read_stored(Path(output_dir) / RUN_FILE, _Final), Path(output_dir)
    files = note.get("files", {})
    return [name for name in files if difference_from(folder, {name: files[name]})]


def files_of(output_dir: str | Path) -> list[str]:
    """The files of the final model of a run, weights first."""
    note = read_stored(Path(output_dir) / RUN_FILE, _Final)
    return [*note.get("weights", {}), *note.get("files", {})]
