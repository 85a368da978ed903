"""Pages and folders that could not be written, refused before any work."""

from __future__ import annotations

import os
from pathlib import Path


def check_page(path: Path):
    """Refuse a page that could not be written.

    Raises:
        ValueError: a folder, or a file in a folder that does not exist.
        OSError: a folder that cannot be written.
    """
    if path.is_dir():
        raise ValueError(
            f"--output {path} is a folder; name a file in it, such as {path}/page.html"
        )
    if not path.parent.is_dir():
        raise ValueError(f"--output {path}: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK):
        raise OSError(f"--output {path}: the folder {path.parent} cannot be written")


def check_folder(flag: str, path: Path):
    """Refuse a folder that could not be made or written.

    Raises:
        ValueError: a file is in its place, or above it.
        OSError: the folder above it cannot be written.
    """
    above = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not above.is_dir():
        raise ValueError(f"{flag} {path}: {above} is a file; name a folder")
    if not os.access(above, os.W_OK):
        raise OSError(f"{flag} {path}: the folder {above} cannot be written")
