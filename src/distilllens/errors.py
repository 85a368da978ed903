"""What an error says, on one line."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the error's name where it has none.

    A line that ends in a colon announces the next one, which belongs to it.
    """
    first, *rest = [line.strip() for line in _text(error).splitlines() if line.strip()]
    while first.endswith(":") and rest:
        first += f" {rest.pop(0)}"
    return first


def named(error: BaseException) -> str:
    """``first_line``, after the error's name where the message alone says nothing (KeyError: 1)."""
    is_plain = isinstance(error, LookupError | TypeError | AttributeError | ArithmeticError)
    name = f"{type(error).__name__}: " if is_plain and str(error).strip() else ""
    return name + first_line(error)


def one_line(error: BaseException) -> str:
    """The whole message of an error on one line, or the error's name where it has none.

    Of a full disk, it is the file and how to go on.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        what = f"{error.filename} cannot be written: " if error.filename else ""
        return f"{what}{error.strerror}; make room, and repeat the same command"
    return " ".join(_text(error).split())


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """A question about the known word that is nearest to an unknown one, or nothing."""
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _text(error):
    return str(error) if str(error).strip() else type(error).__name__
