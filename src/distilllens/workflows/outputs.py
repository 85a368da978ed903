"""Bad numbers, pages and folders, refused before any work."""

from __future__ import annotations

import os
from pathlib import Path

PAGE = "report.html"  # of a run and of the demo


def check_count(flag: str, value: int):
    """Refuse a number below 1.

    Raises:
        ValueError: with the number.
    """
    if value < 1:
        raise ValueError(f"{flag} must be at least 1, got {value}")


def check_page(path: Path):
    """Refuse a page that cannot be written.

    Raises:
        ValueError: a folder, or a file in a folder that does not exist.
        OSError: a folder without write permission.
    """
    if path.is_dir():
        raise ValueError(
            f"--output {path} is a folder; name a file in it, such as {path}/page.html"
        )
    if not path.parent.is_dir():
        raise ValueError(f"--output {path}: there is no folder {path.parent}; create it first")
    if not os.access(path.parent, os.W_OK):
        raise OSError(f"--output {path}: the folder {path.parent} cannot be written")


def check_folder(flag: str, path: Path):
    """Refuse a folder that cannot be created or written.

    Raises:
        ValueError: the path, or a folder above it, is a file.
        OSError: a folder without write permission.
    """
    above = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not above.is_dir():
        raise ValueError(f"{flag} {path}: {above} is a file; name a folder")
    if not os.access(above, os.W_OK):
        raise OSError(f"{flag} {path}: the folder {above} cannot be written")
