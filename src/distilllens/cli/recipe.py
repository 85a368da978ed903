"""Check the fields of a recipe, with hints for YAML's pitfalls."""

from __future__ import annotations

import difflib
import math

from distilllens.workflows.recipe_file import Recipe


def check_recipe(recipe: Recipe, actions: dict):
    """Refuse unknown fields and values of a wrong type.

    Args:
        actions: field -> argparse action, whose ``type`` is the type of the field.

    Raises:
        ValueError: the first one, with file and line, and what would be right.
    """
    for name, value in recipe.values.items():
        if name not in actions:
            close = difflib.get_close_matches(str(name), actions, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"{recipe.where(name)}: unknown field {name!r}{hint}")
        if problem := _problem(name, value, actions[name], recipe.texts.get(name)):
            raise ValueError(f"{recipe.where(name)}: {name} {problem}")


def located(error: ValueError, recipe: Recipe, flags: list[str]) -> ValueError:
    """The error itself; with file and line if its text begins with a field that no flag sets."""
    name = str(error).split(" ")[0]
    given = {flag.split("=")[0].lstrip("-").replace("-", "_") for flag in flags if flag[:1] == "-"}
    if name in recipe.lines and name not in given:
        return ValueError(f"{recipe.where(name)}: {error}")
    return error


def _problem(name, value, action, text):
    """What is wrong with a value; None if nothing is. ``text``: the value as it was written."""
    if value is None:
        return None
    if name == "lens_layers" and isinstance(value, int) and value > 60:
        return (
            f'is the number {value}: YAML reads 2:8 as 128; write it in quotes, "2:8" or "2:8,4:16"'
        )
    kind = getattr(action.type, "__name__", "")  # by name: transformers wraps some types
    if kind == "string_to_bool":
        if value not in (True, False):
            return f"must be true or false, got {value!r}"
    elif kind in ("int", "float"):
        return _number_problem(value, whole=kind == "int")
    elif isinstance(value, bool):
        word = _word(value, text, action)
        return (
            f"must be text, got {value}: YAML reads a bare {text or word} as "
            f'{str(value).lower()}; write "{word}" in quotes'
        )
    elif not isinstance(value, str | dict | list) and name != "lens_layers":
        return f"must be text, got {value!r}" + (f'; write "{text}" in quotes' if text else "")
    elif isinstance(value, list) and action.nargs is None and name != "report_to":
        return f"takes one value, got the list {value!r}"
    elif value == "" or value == []:
        return "is empty; give it a value, or leave it out"
    return None


def _word(value, text, action):
    """The word in quotes that was probably meant by a bare true, false, yes, no, on or off."""
    plain = "yes" if value else "no"
    if text is None or text.lower() in ("true", "false") or plain in (action.choices or ()):
        return plain
    return text


def _number_problem(value, whole):
    if isinstance(value, str):
        return f"must be a number, got the text {value!r}{_number_hint(value)}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"must be a number, got {value!r}"
    if whole and isinstance(value, float) and not value.is_integer():
        return f"must be a whole number, got {value}"
    return None


def _number_hint(text):
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
