"""What an error says, on one line."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the error's name where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def one_line(error: BaseException) -> str:
    """The whole message of an error on one line, or the error's name where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
