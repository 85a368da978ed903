"""Check the fields of a recipe, with hints for YAML's pitfalls."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from types import SimpleNamespace

from distilllens.workflows.field_table import KINDS, Field
from distilllens.workflows.recipe_file import Recipe, number_hint

# What other commands and tools call a field.
_ELSEWHERE = {
    "batch_size": "per_device_train_batch_size",
    "data": "train_file",
    "dataset": "dataset_name",
    "device": "use_cpu",
    "epochs": "num_train_epochs",
    "eval_data": "eval_file",
    "layer_map": "lens_layers",
    "lmbda": "on_policy_fraction",
    "lr": "learning_rate",
    "max_completion_length": "on_policy_max_new_tokens",
    "max_new_tokens": "on_policy_max_new_tokens",
    "model": "model_name_or_path",
    "model_name": "model_name_or_path",
    "no_cuda": "use_cpu",
    "output": "output_dir",
    "steps": "max_steps",
    "student": "model_name_or_path",
    "teacher": "teacher_model_name_or_path",
    "tokenizer": "tokenizer_name_or_path",
    "torch_dtype": "dtype",
}

# The type of a list's elements -> what a recipe may have there, and its name.
_ITEMS = {str: (str, "texts"), int: (int, "whole numbers"), float: (int | float, "numbers")}
_ITEMS[dict] = (dict, "mappings")
# Field of mappings -> one of them.
_EXAMPLES = {"teachers": "{model: A, weight: 0.7}", "datasets": "{path: data.jsonl}"}


class UnknownField(ValueError):
    """A name that is no field.

    Args:
        name: as it was given, with underscores.
    """

    def __init__(self, message: str, name: str):
        super().__init__(message)
        self.name = name


def meant_field(name: str, known: Iterable[str]) -> str | None:
    """The field that was probably meant by an unknown name, or None."""
    if (other := _ELSEWHERE.get(name)) in known:
        return other
    return next(iter(difflib.get_close_matches(name, known, n=1)), None)


def declared(fields: Iterable[Field]) -> dict[str, SimpleNamespace]:
    """Field -> what ``check_recipe`` reads of it, where there are no flags."""
    return {
        field.name: SimpleNamespace(
            type=KINDS[field.type],
            kinds={KINDS[kind] for kind in field.kinds},
            items=KINDS[field.items],
            nargs=field.nargs,
            choices=field.choices,
            default=field.default,
        )
        for field in fields
    }


def check_recipe(recipe: Recipe, actions: dict) -> dict:
    """The values of a recipe, each of the type of its field: 4.0 is 4 where numbers are whole.

    Args:
        actions: field -> argparse action, whose ``type`` has the name of the field's type; or its
            ``kinds``, a set, where a field takes more than flags can say.

    Raises:
        UnknownField: the first unknown field, with file and line, and what was probably meant.
        ValueError: the first value of a wrong type, likewise.
    """
    values = {}
    for name, value in recipe.values.items():
        if name not in actions:
            close = meant_field(str(name), actions)
            hint = f"; did you mean {close}?" if close else ""
            text = f"{recipe.where(name)}: unknown field {name!r}{hint}"
            raise UnknownField(text, str(name))
        if problem := _problem(name, value, actions[name], recipe.texts.get(name)):
            raise ValueError(f"{recipe.where(name)}: {name} {problem}")
        is_whole = isinstance(value, float) and _is_whole(actions[name])
        values[name] = int(value) if is_whole else value
    return values


def located(error: ValueError, recipe: Recipe, flags: list[str]) -> ValueError:
    """The error itself; with file and line of the first field in it that no flag sets."""
    given = {flag.split("=")[0].lstrip("-").replace("-", "_") for flag in flags if flag[:1] == "-"}
    # Libraries write --field or `field`; a word without an underscore may be a mere word.
    for at, word in enumerate(str(error).split()):
        name = word.strip("-`'\":,.()")
        marked = at == 0 or "_" in name or word.startswith(("--", "`"))
        if marked and name in recipe.lines and name not in given:
            return ValueError(f"{recipe.where(name)}: {error}")
    return error


def _problem(name, value, action, text):
    """What is wrong with a value; None if nothing is. ``text``: the value as it was written."""
    if value is None:
        return _problem_of_nothing(action)
    if name == "lens_layers" and isinstance(value, int) and value > 60:
        return (
            f'is the number {value}: YAML reads 2:8 as 128; write it in quotes, "2:8" or "2:8,4:16"'
        )
    kind, kinds = getattr(action.type, "__name__", ""), _kinds(action)
    if kind == "bool":
        return None if value in (True, False) else f"must be true or false, got {value!r}"
    if kind in ("int", "float"):
        return _number_problem(value, whole=kind == "int")
    if _is_of_numbers(action, kinds) and not isinstance(value, list):
        return _problem_of_no_list(value, action, kinds)
    if isinstance(value, dict | list) or (dict in kinds and not isinstance(value, str)):
        return _collection_problem(name, value, action, kinds)
    if isinstance(value, bool) and bool in kinds:
        return None
    if isinstance(value, bool):
        word = _word(value, text, action)
        return (
            f"must be text, got {value}: YAML reads a bare {text or word} as "
            f'{str(value).lower()}; write "{word}" in quotes'
        )
    if isinstance(value, int | float) and int in kinds:
        return _number_problem(value, whole=True)
    if not isinstance(value, str) and name != "lens_layers":
        return f"must be text, got {value!r}" + (f'; write "{text}" in quotes' if text else "")
    if value == "":
        return "is empty; give it a value, or leave it out"
    choices = [str(getattr(choice, "value", choice)) for choice in action.choices or ()]
    if choices and str(value) not in choices:
        return f"must be one of {', '.join(choices)}, got {value!r}"
    return None


def _problem_of_nothing(action):
    if action.default is None or type(None) in _kinds(action):
        return None
    default = getattr(action.default, "value", action.default)
    return f"is empty; give it a value, or leave the line out for {default!r}"


def mappings_of(name: str) -> str:
    """What a field of mappings takes, in words."""
    return f"mappings such as {_EXAMPLES[name]}" if name in _EXAMPLES else "mappings"


def _collection_problem(name, value, action, kinds):
    if isinstance(value, list) and (action.nargs == "+" or list in kinds):
        kind, what = _ITEMS[getattr(action, "items", str)]
        what = mappings_of(name) if kind is dict else what
        wrong = [p for p in value if isinstance(p, bool) or not isinstance(p, kind)]
        hint = number_hint(wrong[0]) if wrong and isinstance(wrong[0], str) else ""
        return f"must be a list of {what}, got {wrong[0]!r} in it{hint}" if wrong else None
    if dict in kinds:
        fine = isinstance(value, dict)
        return None if fine else f"must be a mapping such as {{key: value}}, got {value!r}"
    what = "list" if isinstance(value, list) else "mapping"
    return f"takes one value, got the {what} {value!r}"


def _is_of_numbers(action, kinds):
    """Whether a field takes a list of numbers, and no text."""
    return list in kinds and kinds <= {int, list} and getattr(action, "items", str) is not str


def _problem_of_no_list(value, action, kinds):
    """What is wrong with one value where a list of numbers is taken, or one whole number."""
    if int in kinds and isinstance(value, int) and not isinstance(value, bool):
        return None
    example = "[1, 2]" if action.items is int else "[0.1, 0.2]"
    wanted = f"a list of {_ITEMS[action.items][1]} such as {example}"
    wanted = f"a whole number or {wanted}" if int in kinds else wanted
    hint = number_hint(value) if isinstance(value, str) else ""
    return f"must be {wanted}, got {value!r}{hint}"


def _kinds(action):
    return getattr(action, "kinds", None) or {action.type}


def _is_whole(action):
    kind = getattr(action.type, "__name__", "")
    return kind == "int" or (kind != "float" and int in _kinds(action))


def _word(value, text, action):
    """The word in quotes that was probably meant by a bare true, false, yes, no, on or off."""
    plain = "yes" if value else "no"
    if text is None or text.lower() in ("true", "false") or plain in (action.choices or ()):
        return plain
    return text


def _number_problem(value, whole):
    if isinstance(value, str):
        return f"must be a number, got the text {value!r}{number_hint(value)}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"must be a number, got {value!r}"
    if whole and isinstance(value, float) and not value.is_integer():
        return f"must be a whole number, got {value}"
    return None
