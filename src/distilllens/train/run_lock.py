"""One run at a time writes into a folder."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distilllens.files import NO_LINK, named_errors

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps two runs apart
    fcntl = None

LOCK_FILE = "run.lock"
# Folders that cannot be written, and file systems without locks.
_NO_LOCKS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


@contextmanager
def claimed(output_dir: str | Path) -> Iterator[None]:
    """No other run writes into the folder meanwhile; the system forgets the lock of a dead process.

    The main process of a run holds the lock for all of them. The folder is made where it is
    missing, and the lock is removed at the end.

    Raises:
        ValueError: another run is using the folder, or the lock is no file of ours.
    """
    if fcntl is None or os.environ.get("RANK", "0") != "0":
        yield
        return
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir {folder} is a file; name a folder")
    held = _locked(folder)
    if held is None:
        yield
        return

    def let_go():
        nonlocal held
        if held is not None:
            os.close(held)
        held = None

    # A process that a dead run has started, such as a data loader's, must not keep the lock.
    os.register_at_fork(after_in_child=let_go)
    try:
        yield
    finally:
        (folder / LOCK_FILE).unlink(missing_ok=True)
        let_go()


def _locked(folder):
    """A descriptor of the locked file; None where the file system cannot lock."""
    path = folder / LOCK_FILE
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT | NO_LINK, 0o666)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return None
            if error.errno in (errno.ELOOP, errno.EMLINK, errno.EISDIR):
                raise ValueError(_foreign(path)) from error
            raise
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(file)
            raise ValueError(_taken(folder)) from error
        except OSError as error:
            os.close(file)
            if error.errno in _NO_LOCKS:
                return None
            raise
        # The run that held it may have removed the file before we got the lock.
        if _is_open(file, path):
            break
        os.close(file)
    if not stat.S_ISREG(os.fstat(file).st_mode) or os.read(file, 20).strip(b"0123456789\n"):
        os.close(file)
        raise ValueError(_foreign(path))
    try:
        with named_errors(path):
            os.truncate(file, 0)
            os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
    except OSError:
        os.close(file)
        raise
    return file


def _is_open(file, path):
    """Whether a path still names an open file."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _foreign(path):
    return f"{path} is in the place of our lock, and is none; remove it, or name another folder"


def _taken(folder):
    try:
        number = (folder / LOCK_FILE).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        number = ""
    who = f" (process {number})" if number.isdecimal() else ""
    return f"output_dir {folder} is in use by another run{who}; wait for it, or name another folder"
