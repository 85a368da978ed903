"""A YAML file read as a recipe: its fields, the line of each, and none of YAML's traps."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from distilllens.errors import first_line

_MOST_BYTES, _MOST_VALUES = 2**20, 10_000
_MERGE = "tag:yaml.org,2002:merge"


@dataclass(frozen=True)
class Recipe:
    """The fields of a recipe.

    Args:
        path: of the file, as the user named it.
        values: field -> value.
        lines: field -> the line it stands on, from 1.
        texts: field -> the value as it was written, where it is one word.
        inner: field -> the same of its value, where that is a mapping.
    """

    path: str
    values: dict[Any, Any]
    lines: dict[Any, int]
    texts: dict[Any, str]
    inner: dict[Any, Recipe] = field(default_factory=dict)

    def where(self, name) -> str:
        """``recipe.yaml:3``, the file and the line of a field."""
        return f"{self.path}:{self.lines[name]}" if name in self.lines else self.path


def read_recipe(path: str, what: str = "recipe") -> Recipe:
    """The mapping in a YAML file.

    Args:
        what: what messages call it.

    Raises:
        ValueError: no such file, broken UTF-8, or as ``parse_recipe``.
        OSError: a file that cannot be read.
    """
    return parse_recipe(_text_of(path, what), path, what)


def parse_recipe(text: str, path: str, what: str = "recipe") -> Recipe:
    """The mapping in a YAML text.

    Args:
        path, what: what messages call the text.

    Raises:
        ValueError: broken YAML, not a mapping, a field given twice, a number that YAML reads as
            another one than is written, aliases that stand for more than 10,000 values. The
            message is one line with file and line.
    """
    root, values = _read(text, lambda line: path if line is None else f"{path}:{line}")
    if values is None:
        raise ValueError(f"{what} {path} is empty; it must be a mapping of fields to values")
    if not isinstance(values, dict):
        raise ValueError(f"{what} {path} must be a mapping of fields to values, got {values!r}")
    return _located(path, root, values)


def recipe_text(values: Mapping[str, Any]) -> str:
    """Fields as a recipe that ``read_recipe`` reads back as the same values."""
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def _located(path, root, values):
    """The values of a mapping node, with the lines on which they stand."""
    scalars = [(key, value) for key, value in root.value if isinstance(key, yaml.ScalarNode)]
    return Recipe(
        path,
        values,
        {key.value: key.start_mark.line + 1 for key, _ in scalars},
        {key.value: value.value for key, value in scalars if isinstance(value, yaml.ScalarNode)},
        {
            key.value: _located(path, value, values[key.value])
            for key, value in scalars
            if isinstance(value, yaml.MappingNode) and key.value in values
        },
    )


def parse_mapping(text: str, what: str, *, may_be_text: bool = False) -> Any:
    """A mapping written as one text, such as ``{beta: 0.5}``: YAML, of which JSON is a part.

    Args:
        what: what messages call the text.
        may_be_text: other texts are returned as they are.

    Returns:
        The mapping; None for ``null``.

    Raises:
        ValueError: no mapping, or as ``parse_recipe``.
    """
    example = "; write a mapping such as '{key: value}'"
    is_text = may_be_text and text.lstrip()[:1] not in ("{", "")
    if is_text:
        return text
    try:
        _, value = _read(text, lambda line: what, _FlagLoader)
    except ValueError as error:
        raise ValueError(f"{error}{example}") from None
    value = None if value == "none" else value
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{what} must be a mapping, got {text!r}{example}")
    return value


def parse_list(text: str, what: str) -> list:
    """A list written as one text, such as ``[0, 3, 6]``, in YAML or JSON.

    Args:
        what: what messages call the text.

    Raises:
        ValueError: no list, or as ``parse_recipe``.
    """
    _, value = _read(text, lambda line: what, _FlagLoader)
    if not isinstance(value, list):
        raise ValueError(f"{what} must be a list such as '[a, b]', got {text!r}")
    return value


def _read(text, where, kind=None):
    """The root node of a YAML text, and its value; errors begin with ``where(line)``."""
    try:
        loader = (kind or _Loader)(text)
        root = loader.get_single_node()
        if root is not None:
            _check_nodes(root)
        return root, None if root is None else loader.construct_document(root)
    except RecursionError:
        raise ValueError(f"{where(None)} is nested too deeply") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or first_line(error)
        kind = "" if isinstance(error, _TrapError) else "broken YAML: "
        line = mark.line + 1 if mark else None
        if isinstance(error, yaml.reader.ReaderError):  # a character, of which it knows no line
            line = text.count("\n", 0, error.position) + 1
        raise ValueError(f"{where(line)}: {kind}{problem}") from None


def _text_of(path, what):
    try:
        with open(path, "rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise ValueError(f"{what} {path} does not exist") from None
    except IsADirectoryError:
        raise ValueError(f"{what} {path} is a folder; name a YAML file in it") from None
    if len(content) > _MOST_BYTES:
        raise ValueError(f"{what} {path} is larger than 1 MB, too large for one")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}:{line}: {what} is not UTF-8: {error}") from None


class _TrapError(yaml.MarkedYAMLError):
    """YAML that is valid and says something else than its author means."""

    def __init__(self, node, problem):
        super().__init__(problem=problem, problem_mark=node.start_mark)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, for which dates are text and numbers are what is written."""


# Looked up by their first character: without this copy, yaml.SafeLoader itself would change.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _whole_number(loader, node):
    text = node.value
    digits = text.lstrip("+-").replace("_", "")
    try:
        value = loader.construct_yaml_int(node)
    except ValueError as error:
        raise _TrapError(node, f"{text[:20]}... is no number that can be used: {error}") from None
    octal = digits.startswith("0") and digits.isdecimal() and value != int(digits)
    if ":" in text or octal:
        raise _TrapError(node, _misread(text, value))
    return value


def _real_number(loader, node):
    value = loader.construct_yaml_float(node)
    if ":" in node.value:
        raise _TrapError(node, _misread(node.value, value))
    if math.isinf(value) and not node.value.lower().endswith(".inf"):
        raise _TrapError(node, f"the number {node.value} is too large")
    return value


def _misread(text, value):
    return f'YAML reads {text} as the number {value}; write it in quotes, "{text}"'


_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _real_number)


class _FlagLoader(_Loader):
    """The same for a command line, where 1e-7 is a number, as it is in JSON."""


_FlagLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def number_hint(text: str) -> str:
    """How to write a text that is a number to Python, but not to YAML; else nothing."""
    try:
        number = float(text)
    except ValueError:
        return ""
    if not math.isfinite(number):
        return ""
    if "e" in text.lower():
        mantissa, exponent = text.lower().split("e")
        mantissa += "" if "." in mantissa else ".0"
        exponent = exponent if exponent.startswith(("+", "-")) else f"+{exponent}"
        if f"{mantissa}e{exponent}" != text.lower():
            return (
                ": YAML reads it as text without a decimal point and a sign of the exponent; "
                f"write {mantissa}e{exponent}"
            )
    return f"; write {number:g} without quotes"


def _check_nodes(root):
    """Refuse fields that are given twice, and aliases that stand for too many values."""
    sizes: dict[int, int | None] = {}

    def size(node):
        """The number of values of a node, once every alias in it is written out."""
        if id(node) in sizes:
            if sizes[id(node)] is None:
                raise _TrapError(node, "this value holds itself by an alias")
            return sizes[id(node)]
        sizes[id(node)] = None
        inner = node.value if isinstance(node, yaml.CollectionNode) else ()
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
            if node is not root:  # of the fields themselves, check_recipe knows the types
                _check_numbers(node)
            inner = [part for pair in inner for part in pair]
        sizes[id(node)] = found = 1 + sum(map(size, inner))
        if found > _MOST_VALUES:
            raise _TrapError(
                node, f"with its aliases written out, this holds more than {_MOST_VALUES} values"
            )
        return found

    size(root)


def _check_keys(node):
    seen = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
            continue
        if (first := seen.setdefault((key.tag, key.value), key)) is not key:
            line = first.start_mark.line + 1
            raise _TrapError(key, f"{key.value} is given twice, first on line {line}")


def _check_numbers(node):
    """Refuse numbers in a mapping that YAML reads as text."""
    for _, value in node.value:
        is_bare = isinstance(value, yaml.ScalarNode) and value.style is None
        if is_bare and value.tag.endswith(":str") and (hint := number_hint(value.value)):
            raise _TrapError(value, f"got the text {value.value!r}{hint}, or put it in quotes")
