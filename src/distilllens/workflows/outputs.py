"""Bad numbers, pages and folders, refused before any work."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from distilllens.files import write_atomically

PAGE = "report.html"  # of a run and of the demo
# What the beginning of every page, and of every figure, says of its maker.
_PAGE_MARK, _FIGURE_MARK = b'<meta name="generator" content="distilllens">', b"distilllens"
_BEGINNING = 4096  # bytes


def check_count(flag: str, value: int):
    """Refuse a number below 1.

    Raises:
        ValueError: with the number.
    """
    if value < 1:
        raise ValueError(f"{flag} must be at least 1, got {value}")


def check_page(path: Path, flag: str = "--output"):
    """Refuse a page that cannot be written, or that would replace another file than our page.

    Raises:
        ValueError: a folder, a link, a file that is no page of ours, or a file in a folder that
            does not exist.
        OSError: a folder that cannot be written.
    """
    if path.is_symlink():
        raise ValueError(
            f"{flag} {path} is a symbolic link, which the page would replace; name the file itself"
        )
    if path.is_dir():
        raise ValueError(f"{flag} {path} is a folder; name a file in it, such as {path}/page.html")
    if not path.parent.is_dir():
        raise ValueError(f"{flag} {path}: there is no folder {path.parent}; create it first")
    if path.exists() and not _is_ours(path, _PAGE_MARK):
        raise ValueError(
            f"{flag} {path} exists and is no page of distilllens, so it is not replaced; name "
            "another file, or move it away"
        )
    _check_writable(f"{flag} {path}", path.parent)


def write_page(path: Path, page: str, flag: str = "--output"):
    """Write a page, unless it would replace another file than our page.

    Raises:
        ValueError, OSError: as ``check_page``.
    """
    check_page(path, flag)
    write_atomically(path, page)


def check_figures(folder: Path, names: Iterable[str], flag: str = "--figures"):
    """Refuse figures that would replace other files than our figures.

    Raises:
        ValueError: with the first such file.
    """
    for path in (folder / name for name in names):
        if path.is_symlink() or (path.exists() and not _is_ours(path, _FIGURE_MARK)):
            raise ValueError(
                f"{flag} {folder}: {path.name} exists there and is no figure of this version of "
                "distilllens, so nothing is replaced; name another folder, or move it away"
            )


def check_folder(flag: str, path: Path):
    """Refuse a folder that cannot be created or written.

    Raises:
        ValueError: the path, or a folder above it, is a file.
        OSError: a folder that cannot be written.
    """
    above = next(
        folder
        for folder in (path, *path.absolute().parents)
        if folder.exists() or folder.is_symlink()
    )
    if not above.exists():
        raise ValueError(f"{flag} {path}: {above} is a symbolic link to nothing; remove it")
    if not above.is_dir():
        raise ValueError(f"{flag} {path}: {above} is a file; name a folder")
    _check_writable(f"{flag} {path}", above)


def check_new_folder(flag: str, path: Path):
    """Refuse a folder that cannot be created or written, or that holds something.

    Raises:
        ValueError: the path, or a folder above it, is a file; the folder is not empty, or a link,
            or cannot be replaced: the working directory, or where something is mounted.
        OSError: a folder that cannot be written.
    """
    check_folder(flag, path)
    if path.is_symlink():
        raise ValueError(
            f"{flag} {path} is a symbolic link, which the folder would replace; name the folder "
            "itself"
        )
    if path.exists() and any(path.iterdir()):
        raise ValueError(f"{flag} {path} exists and is not empty; name another folder")
    if path.exists():  # it will be replaced by a folder that is made beside it
        if path.resolve() == Path.cwd() or os.path.ismount(path):
            raise ValueError(f"{flag} {path} cannot be replaced; name a new folder inside it")
        _check_writable(f"{flag} {path}", path.resolve().parent)


def _is_ours(path, mark):
    """Whether a file begins as ours do; an empty one has nothing to lose."""
    if not path.is_file():
        return False
    with open(path, "rb") as stream:
        beginning = stream.read(_BEGINNING)
    return not beginning or mark in beginning


def _check_writable(what, folder):
    # Permissions do not tell: root has all of them, on a file system that takes nothing.
    try:
        tempfile.TemporaryDirectory(dir=folder, prefix=".distilllens-").cleanup()
    except OSError as error:
        text = f"{what}: the folder {folder} cannot be written ({error.strerror})"
        raise OSError(text) from error
