"""Read a YAML recipe and check its fields, with hints for YAML's pitfalls."""

from __future__ import annotations

import difflib
from pathlib import Path

import yaml


def read_recipe(path: str) -> dict:
    """The mapping in a YAML file.

    Raises:
        ValueError: no such file, broken UTF-8 or YAML (with the line), not a mapping.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"recipe {path} does not exist")
    try:
        recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"recipe {path} is not UTF-8: {error}") from None
    except RecursionError:
        raise ValueError(f"recipe {path} is nested too deeply") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else path
        problem = getattr(error, "problem", None) or error
        raise ValueError(f"{where}: broken YAML: {problem}") from None
    if not isinstance(recipe, dict):
        raise ValueError(f"recipe {path} must be a mapping of fields to values, got {recipe!r}")
    return recipe


def check_recipe(path: str, recipe: dict, actions: dict):
    """Refuse unknown fields and values of a wrong type.

    Args:
        actions: field -> argparse action, whose ``type`` is the type of the field.

    Raises:
        ValueError: the first one, and what would be right.
    """
    for name, value in recipe.items():
        if name not in actions:
            close = difflib.get_close_matches(str(name), actions, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"{path}: unknown field {name!r}{hint}")
        _check_value(path, name, value, actions[name])


def _check_value(path, name, value, action):
    if value is None:
        return
    if name == "lens_layers" and isinstance(value, int) and value > 60:
        raise ValueError(
            f"{path}: lens_layers is the number {value}: YAML reads 2:8 as 128; "
            'write it in quotes, "2:8" or "2:8,4:16"'
        )
    kind = getattr(action.type, "__name__", "")  # by name: transformers wraps some types
    if kind == "string_to_bool":
        if value not in (True, False):
            raise ValueError(f"{path}: {name} must be true or false, got {value!r}")
    elif kind in ("int", "float"):
        _check_number(path, name, value, whole=kind == "int")
    elif isinstance(value, bool):
        word = "no" if value is False else "yes"
        raise ValueError(
            f"{path}: {name} must be text, got {value}: "
            f'YAML reads a bare {word} as {str(value).lower()}; write "{word}" in quotes'
        )
    elif not isinstance(value, str | dict | list) and name != "lens_layers":
        raise ValueError(f"{path}: {name} must be text, got {value!r}")
    elif isinstance(value, list) and action.nargs is None and name != "report_to":
        raise ValueError(f"{path}: {name} takes one value, got the list {value!r}")
    elif value == "" or value == []:
        raise ValueError(f"{path}: {name} is empty; give it a value, or leave it out")


def _check_number(path, name, value, whole):
    if isinstance(value, str):
        hint = _number_hint(value)
        raise ValueError(f"{path}: {name} must be a number, got the text {value!r}{hint}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{path}: {name} must be a number, got {value!r}")
    if whole and isinstance(value, float) and not value.is_integer():
        raise ValueError(f"{path}: {name} must be a whole number, got {value}")


def _number_hint(text):
    try:
        number = float(text)
    except ValueError:
        return ""
    if "e" in text.lower() and "." not in text:
        mantissa, exponent = text.lower().split("e")
        return f": YAML reads it as text without a decimal point; write {mantissa}.0e{exponent}"
    return f"; write {number:g} without quotes"
