"""JSON files that we wrote, read back with a check: a damaged one is named with file and entry."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

_NAMES = {
    str: "text",
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    type(None): "null",
    dict: "an object",
    list: "a list",
}
# Thousands of rows have one shape.
get_type_hints = cache(get_type_hints)


class DamagedFile(ValueError):
    """A file of ours that cannot be read, or holds what we never write."""


def read_stored(path: str | Path, shape: Any) -> Any:
    """The value in a JSON file, checked against a shape.

    Args:
        shape: what ``check_stored`` takes.

    Raises:
        DamagedFile: the file is missing, unreadable or no JSON, or its value has another shape; the
            message is one line with the file, the entry, what it holds and what it should hold.
    """
    return check_stored(_parsed(_text_of(path), str(path)), shape, str(path))


def read_stored_rows(path: str | Path, shape: Any) -> list:
    """The rows of a file of JSON lines, each checked against a shape; the last line must be whole.

    Raises:
        DamagedFile: as ``read_stored``; the message starts with ``FILE:LINE``.
    """
    lines = enumerate(_text_of(path).split("\n"), 1)
    return [
        check_stored(_parsed(line, where := f"{path}:{number}"), shape, where)
        for number, line in lines
        if line
    ]


def check_stored(value: Any, shape: Any, where: str) -> Any:
    """A value of a file, checked against a shape.

    Args:
        shape: a type. ``float`` is any finite number, ``bool`` is no number; ``A | B``,
            ``list[X]`` and ``dict[str, X]`` go down into the value. A ``TypedDict`` must have its
            required keys and may have others. A dataclass must have its fields without a default
            and no others, and an instance is returned. ``Any`` is not checked.
        where: what a message starts with.

    Raises:
        DamagedFile: an entry is missing, unknown, or of another type.
    """
    return _checked(value, shape, where, "")


def _checked(value, shape, where, entry):
    if shape is Any:
        return value
    kind = get_origin(shape) or shape
    if kind in (Union, types.UnionType):
        return _one_of(value, get_args(shape), where, entry)
    if kind in (list, dict):
        return _collection(value, kind, get_args(shape), where, entry)
    if is_typeddict(shape) or is_dataclass(shape):
        return _record(value, shape, where, entry)
    if not _is_a(value, kind):
        raise _wrong(value, _NAMES[kind], where, entry)
    return value


def _is_a(value, kind):
    if kind is float:
        kind = (int, float)
    if isinstance(value, bool) and kind is not bool:
        return False
    if isinstance(value, int) and abs(value) >= 2**64:  # no count of anything, and no float
        return False
    return isinstance(value, kind) and not (isinstance(value, float) and not math.isfinite(value))


def _one_of(value, shapes, where, entry):
    fitting = [shape for shape in shapes if _is_a(value, _outer(shape))]
    for shape in fitting:
        try:
            return _checked(value, shape, where, entry)
        except DamagedFile as error:
            found = error
    if fitting:
        raise found
    raise _wrong(value, " or ".join(_NAMES[_outer(shape)] for shape in shapes), where, entry)


def _outer(shape):
    """The type that JSON has for a shape."""
    kind = get_origin(shape) or shape
    return dict if is_typeddict(kind) or is_dataclass(kind) else kind


def _collection(value, kind, inner, where, entry):
    if not isinstance(value, kind):
        raise _wrong(value, _NAMES[kind], where, entry)
    if not inner:
        return value
    if kind is list:
        return [_checked(v, inner[0], where, f"{entry}[{at}]") for at, v in enumerate(value)]
    return {key: _checked(v, inner[1], where, _below(entry, key)) for key, v in value.items()}


def _record(value, shape, where, entry):
    if not isinstance(value, Mapping):
        raise _wrong(value, "an object", where, entry)
    hints = get_type_hints(shape)
    if is_typeddict(shape):
        # With annotations as text, __required_keys__ holds the NotRequired ones too.
        extras = get_type_hints(shape, include_extras=True)
        required = {n for n in shape.__required_keys__ if get_origin(extras[n]) is not NotRequired}
    else:
        defaults = ((f.name, f.default, f.default_factory) for f in fields(shape))
        required = {name for name, *default in defaults if default == [MISSING, MISSING]}
        if unknown := sorted(value.keys() - hints.keys()):
            raise DamagedFile(f"{where}: unknown entry {_below(entry, unknown[0])!r}")
    for name in hints:
        if name in required and name not in value:
            raise DamagedFile(f"{where}: the entry {_below(entry, name)!r} is missing")
    checked = dict(value) | {
        name: _checked(value[name], hint, where, _below(entry, name))
        for name, hint in hints.items()
        if name in value
    }
    return checked if is_typeddict(shape) else shape(**checked)


def _below(entry, name):
    return f"{entry}.{name}" if entry else str(name)


def _wrong(value, right, where, entry):
    text = json.dumps(value, ensure_ascii=False)
    shown = text if len(text) <= 40 else f"{text[:37]}..."
    subject = f"the entry {entry!r}" if entry else "the content"
    return DamagedFile(f"{where}: {subject} is {shown}; it must be {right}")


def _text_of(path):
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DamagedFile(f"{path} is missing") from error
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DamagedFile(f"{path} is not UTF-8 (byte {error.start}); it is damaged") from error


def _parsed(text, where):
    try:
        return json.loads(text)
    except RecursionError as error:
        raise DamagedFile(f"{where}: broken JSON (nested too deeply)") from error
    except ValueError as error:
        raise DamagedFile(f"{where}: broken JSON ({error})") from error


def flat(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """``(dotted name, value)`` of each entry of nested settings."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
