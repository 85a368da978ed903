"""JSON lines, JSON lists and stories -> rows, each with the line on which it starts."""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path

from distilllens.data.whole_json import DECODER, TwiceNamed
from distilllens.errors import first_line

STORY_SEPARATOR = "<|endoftext|>"
_MOST_LINES = 1000  # that one object of printed JSON is looked for on


def read_text(file: Path, name: str) -> str:
    """The text of a file, which may be compressed by gzip.

    Args:
        name: the file as messages call it.

    Raises:
        ValueError: as ``read_lines``.
    """
    return "\n".join(read_lines(file, name))


def read_lines(file: Path | str, name: str) -> Iterator[str]:
    """The lines of a file, one at a time and without their ends; it may be compressed by gzip.

    Only a line feed ends a line: JSON strings may contain U+2028 and other separators.

    Args:
        file: a path, or a URL that fsspec opens.
        name: the file as messages call it.

    Raises:
        ValueError: it cannot be read, or is not gzip or UTF-8; with the line.
    """
    line, begun = 0, codecs.BOM_UTF8
    try:
        with _opened(file, name) as content:
            for raw in content:
                line += 1
                yield raw.removeprefix(begun).removesuffix(b"\n").decode()
                begun = b""
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{name}:{line + 1}: broken gzip ({error}); compress the file again"
        ) from error
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise ValueError(f"{name}: cannot be read ({reason})") from error
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(
            f"{name}:{line}: byte 0x{byte:02x} is not UTF-8 ({error.reason}); save it as UTF-8"
        ) from error


@contextmanager
def _opened(file, name):
    if "://" in str(file):
        import fsspec

        with fsspec.open(
            str(file), "rb", compression="gzip" if name.endswith(".gz") else None
        ) as f:
            yield f
    else:
        with (gzip.open if name.endswith(".gz") else open)(file, "rb") as f:
            yield f


def json_lines(name: str, lines: Iterable[str]) -> Iterator[tuple[str, object]]:
    """``(FILE:LINE, value)`` of every line that is not blank.

    Raises:
        ValueError: a line is not JSON, or an object on it has two fields of one name.
    """
    lines = iter(lines)
    for line, content in enumerate(lines, 1):
        if content.strip():
            try:
                yield f"{name}:{line}", DECODER.decode(content)
            except (ValueError, RecursionError) as error:
                rest = "\n".join([content, *islice(lines, _MOST_LINES)])
                hint = "" if isinstance(error, TwiceNamed) else _hint(rest, len(content))
                raise _broken_json(name, line, error, hint) from error


def json_list(name: str, text: str) -> Iterator[tuple[str, object]]:
    """``(FILE:LINE, value)`` of every item of a JSON list.

    Raises:
        ValueError: the text is not a list, or broken, or an object has two fields of one name.
    """
    line, counted = 1, 0
    position = _skip_space(text, 0)
    if not text[position:]:
        return
    if text[position] != "[":
        raise ValueError(
            f"{name}:1: a .json file holds one list of objects, this one starts with "
            f"{text[position : position + 20]!r}; one object a line is .jsonl"
        )
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _broken_json(name, getattr(error, "lineno", 1), error) from error
    # The text is a valid list; what follows only finds where its items start.
    position = _skip_space(text, position + 1)
    while text[position] != "]":
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = DECODER.raw_decode(text, position)
        except ValueError as error:
            raise _broken_json(name, line, error) from error
        yield f"{name}:{line}", value
        position = _skip_space(text, position)
        if text[position] == ",":
            position = _skip_space(text, position + 1)


def stories(name: str, lines: Iterable[str]) -> Iterator[tuple[str, dict]]:
    """``(FILE:LINE, {"text": story})`` of the texts between lines ``<|endoftext|>``.

    Blank stories are left out.
    """
    story, start = [], 1
    for line, content in enumerate(chain(lines, [STORY_SEPARATOR]), 1):
        if content.strip() == STORY_SEPARATOR:
            if joined := "\n".join(story).strip():
                yield f"{name}:{start}", {"text": joined}
            story, start = [], line + 1
        else:
            story.append(content.removesuffix("\r"))


def _skip_space(text, position):
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _broken_json(name, line, error, hint=""):
    if isinstance(error, RecursionError):
        return ValueError(f"{name}:{line}: broken JSON (nested too deeply)")
    where = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
    reason = getattr(error, "msg", str(error))
    return ValueError(f"{name}:{line}: broken JSON ({reason}{where}){hint}")


def _hint(text, first):
    """What to do if the value that begins a text ends after its ``first`` characters."""
    begins = len(text) - len(text.lstrip())
    try:
        value, end = json.JSONDecoder().raw_decode(text.lstrip())
    except (ValueError, RecursionError):
        return ""
    if isinstance(value, list):
        return "; this looks like a JSON list: name the file .json"
    if isinstance(value, dict) and begins + end > first:
        return (
            "; this looks like pretty-printed JSON, but .jsonl holds one object per line: "
            "convert it with jq -c . or make it a list in a .json file"
        )
    return ""
