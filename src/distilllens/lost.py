"""A fault of one process ends all of them, each with a line that says which and why."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from distilllens.errors import one_line

# A process that fails with the others says so within these seconds of them.
_GRACE_SECONDS = 5.0
_GOES_ON = "the same command goes on from the last save"
# What gloo, NCCL and the store of a process group say where another process is gone, or late.
_LOST = re.compile(
    r"Connection (closed|reset|refused)|Broken pipe|[Tt]imed out|[Tt]imeout|Socket|gloo|NCCL|"
    r"TCPStore|failed to (recv|send)|process group|remote worker"
)
# Errors of a process's own that say the same words: of its workers, and of its accelerator.
_OWN = re.compile(r"DataLoader|(CUDA|HIP|XPU|MPS) error")


class LostProcess(ConnectionError):
    """Another process of the run is gone, or does not answer; the message is one line."""


@contextmanager
def faults_told(group: Callable[[], tuple[Any, int, int]], patience: str) -> Iterator[None]:
    """An error of this process reaches the others, and theirs this one; alone, nothing happens.

    A process that waits for another one that has ended gets an error at once, and for one that
    hangs, after the timeout of the process group.

    Args:
        group: ``(store, rank, size)`` of the processes, asked for when an error has come.
        patience: that timeout in words.

    Raises:
        LostProcess: instead of what the process group says where another process is gone.
    """
    try:
        yield
    except LostProcess:
        raise
    except Exception as error:
        store, rank, size = group()
        if size == 1:
            raise
        # A RuntimeError of torch may have become one of ours.
        if not any(map(_is_of_lost, _chain(error))):
            _tell(store, rank, one_line(error))
            raise
        _tell(store, rank, "")
        told, text = _of_others(store, rank, size, patience)
        if not told:  # the error may yet be one of this process alone
            text += f" (process {rank}: {one_line(error)})"
            _tell(store, rank, text)
        raise LostProcess(text) from error


def _is_of_lost(error):
    text = str(error)
    return isinstance(error, RuntimeError) and bool(_LOST.search(text) and not _OWN.search(text))


def _chain(error):
    while error is not None:
        yield error
        error = error.__cause__


def _tell(store, rank, text):
    with suppress(RuntimeError):  # the store is in a process that may be gone
        store.set(_key(rank), text)


def _of_others(store, rank, size, patience):
    """Whether one of the others has told why it ended, and what is known of them, in words."""
    others, deadline, told = {*range(size)} - {rank}, time.monotonic() + _GRACE_SECONDS, {}
    while others - told.keys() and time.monotonic() < deadline and not any(told.values()):
        try:
            ready = [other for other in others - told.keys() if store.check([_key(other)])]
            told |= {other: store.get(_key(other)).decode() for other in ready}
        except RuntimeError:  # which process 0 holds, without a launcher
            return False, f"process 0 has ended without a word; {_GOES_ON}"
        time.sleep(0.05)
    if faults := {other: text for other, text in told.items() if text}:
        other, text = min(faults.items())
        return True, f"process {other} has ended: {text}"
    missing = sorted(others - told.keys()) or sorted(others)
    names = ", ".join(map(str, missing))
    verb = "es" if len(missing) > 1 else ""
    text = f"process{verb} {names} ended without a word, or did not answer for {patience}"
    return False, f"{text}; {_GOES_ON}"


def _key(rank):
    return f"distilllens/ended/{rank}"
