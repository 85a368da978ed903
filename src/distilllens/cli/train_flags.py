"""Flags and recipes of a training job -> the values of its fields, without trl."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from distilllens.cli import OneLineParser, is_flag
from distilllens.workflows.field_table import KINDS, Field
from distilllens.workflows.recipe_fields import (
    UnknownField,
    check_recipe,
    located,
    mappings_of,
    meant_field,
)
from distilllens.workflows.recipe_file import Recipe, parse_list, parse_mapping

_OF_A_NAME = ("dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split")
# A flag -> the fields of a recipe that it replaces.
_INSTEAD = {
    "dataset_name": ("train_file", "eval_file", "datasets", "test_split_size"),
    "datasets": ("train_file", *_OF_A_NAME),
    "train_file": ("datasets", "test_split_size", *_OF_A_NAME),
    "model_name_or_path": ("student_config", "student_blocks"),
    "student_config": ("model_name_or_path", "model_revision", "student_blocks"),
    "student_blocks": ("model_name_or_path", "model_revision", "student_config"),
}
# Mappings that may also be the name of a file that holds one.
_FILES = ("accelerator_config", "deepspeed", "fsdp_config")


def _bool(text):
    if text.lower() in ("yes", "true", "t", "y", "1"):
        return True
    if text.lower() in ("no", "false", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"must be true or false, got {text!r}")


_TYPES = {"int": int, "float": float, "bool": _bool, "str": str}


def _type_of(field):
    """The type of a flag's values, under its name."""
    others = {"none": None, "null": None} if {"none", "str"} & {*field.kinds} == {"none"} else {}
    if "bool" in field.kinds and field.type == "str":
        others = {"true": True, "false": False}

    def read(text):
        return others[text.lower()] if text.lower() in others else _TYPES[field.type](text)

    def read_item(text):
        with suppress(ValueError):  # "0,3" and "uniform" are texts of such fields
            return _TYPES[field.items](text)
        return read(text)

    read.__name__ = read_item.__name__ = field.type
    return read if field.items in ("str", "dict") else read_item


def flag_parser(command: str, description: str, fields: Iterable[Field]) -> OneLineParser:
    """A parser of these fields, whose actions have ``kinds``: the types that a recipe may give."""
    parser = OneLineParser(prog=f"distilllens {command}", description=description)
    parser.add_argument("--config", metavar="YAML", help="recipe: the flags below as YAML")
    for field in fields:
        settings = {"nargs": field.nargs, "choices": field.choices, "default": field.default}
        if field.nargs == "?" or field.type == "bool":
            settings |= {"nargs": "?", "const": True}
        settings |= {"type": _type_of(field), "help": field.help}
        action = parser.add_argument(f"--{field.name}", **settings)
        action.kinds, action.items = {KINDS[kind] for kind in field.kinds}, KINDS[field.items]
        if field.type == "bool" and field.default is True:
            parser.add_argument(f"--no_{field.name}", dest=field.name, action="store_false")
    return parser


def fields_of(parser: OneLineParser) -> dict[str, argparse.Action]:
    """Field -> the action of its own flag; "--no_..." is another of the same name."""
    return {action.dest: action for action in reversed(parser._actions) if hasattr(action, "kinds")}


def read_fields(parser: OneLineParser, recipe: Recipe, flags: list[str]) -> dict[str, Any]:
    """Field -> value of the fields that a recipe and flags set.

    Raises:
        UnknownField: a field or flag that the parser does not have.
        ValueError: a value that its field does not take; no output_dir.
    """
    values = check_recipe(recipe, fields_of(parser))
    try:
        return merged(parser, values, flags)
    except UnknownField:
        raise
    except ValueError as error:
        raise located(error, recipe, flags) from error


def merged(parser: OneLineParser, recipe: Mapping[str, Any], flags: list[str]) -> dict[str, Any]:
    """The values of a recipe and those of flags, which override the recipe.

    Raises:
        UnknownField, ValueError: as ``read_fields``.
    """
    given = _read_flags(parser, flags)
    overridden = {n for flag in given.keys() & _INSTEAD.keys() for n in _INSTEAD[flag]}
    values = {name: value for name, value in recipe.items() if name not in overridden} | given
    if values.get("output_dir") is None:
        raise ValueError("output_dir is missing: the folder for checkpoints and the final model")
    actions = fields_of(parser)
    for name, value in values.items():
        what, kinds = f"--{name}" if name in given else name, actions[name].kinds
        if isinstance(value, str) and dict in kinds:
            values[name] = parse_mapping(value, what, may_be_text=name in _FILES)
        elif actions[name].items is dict and isinstance(value, list):
            values[name] = [each for text in value for each in _mappings(text, what, name)]
        elif isinstance(value, str) and list in kinds and value.startswith("["):
            values[name] = parse_list(value, what)
    return values


def _mappings(value, what, name):
    """The mappings that a value of a field of mappings, or a text of one or of several, holds."""
    if not isinstance(value, str):
        return [value]
    if value.lstrip()[:1] not in ("[", "{"):
        raise ValueError(f"{what} must be a list of {mappings_of(name)}, got {value!r}")
    is_list = value.startswith("[")
    return parse_list(value, what) if is_list else [parse_mapping(value, what)]


def split_flags(words: Iterable[str]) -> list[list[str]]:
    """The words of a command line, each flag with its values; what is before the first is alone."""
    groups: list[list[str]] = []
    for word in words:
        if is_flag(word) or not groups:
            groups.append([word])
        else:
            groups[-1].append(word)
    return groups


def flag_name(group: list[str]) -> str:
    """The name of the flag of a group, with underscores: "--max-steps=3" is max_steps."""
    return group[0].partition("=")[0].lstrip("-").replace("-", "_")


def take_config(argv: list[str], command: str) -> tuple[str | None, list[str]]:
    """The path of the recipe, or None, and the other words.

    Raises:
        ValueError: ``--config`` without a path, or twice.
    """
    path, flags = None, []
    for group in split_flags(argv):
        flag, equals, value = group[0].partition("=")
        values = [value, *group[1:]] if equals else group[1:]
        if flag != "--config":
            flags += group
        elif path is not None:
            raise ValueError("--config is given twice; a run has one recipe, and flags override it")
        elif not values or not values[0]:
            raise ValueError("--config needs the path of a recipe")
        elif len(values) > 1:
            raise ValueError(f"unknown argument {values[1]} (see distilllens {command} --help)")
        else:
            path = values[0]
    return path, flags


def _read_flags(parser, flags):
    """Field -> value of the flags, each of the type of its field."""
    spelt, plain = {}, []
    for group in split_flags(flags):
        name, values = _checked(parser, group)
        action = parser._option_string_actions[f"--{name}"]
        if action.dest in spelt:
            raise ValueError(_twice(action, spelt[action.dest], name))
        spelt[action.dest] = name
        alone = len(values) == 1 and action.nargs in (None, "?")
        plain += [f"--{name}={values[0]}"] if alone else [f"--{name}", *values]
    found = parser.parse_args(plain)
    given = {name: getattr(found, name) for name in spelt}
    for name, value in given.items():
        # A field may take one text, or one number, or several.
        if isinstance(value, list) and len(value) == 1:
            alone = type(value[0]) in fields_of(parser)[name].kinds
            given[name] = value[0] if alone else value
    return given


def _checked(parser, group):
    """The field and the values of a flag; "no_..." for those that set it to false."""
    flag, equals, value = group[0].partition("=")
    values = [value, *group[1:]] if equals else group[1:]
    name = flag_name(group)
    action = parser._option_string_actions.get(f"--{name}")
    if action is None or not flag.startswith("--"):
        text = f"{_unknown(parser, flag, name)} (see {parser.prog} --help)"
        raise UnknownField(text, flag if action else name)
    if "" in values:
        raise ValueError(f"--{name} is empty; give it a value, or leave it out")
    if action.nargs == 0 and values:
        raise ValueError(f"--{name} takes no value, got {' '.join(values)}")
    if action.nargs in (None, "?") and len(values) > 1:
        raise ValueError(_too_many(name, values, action))
    return name, values


def _unknown(parser, flag, name):
    if not is_flag(flag):
        hint = f"; did you mean --config {flag}?" if flag.endswith((".yaml", ".yml")) else ""
        return f"unknown argument {flag}{hint}"
    names = {option[2:] for option in parser._option_string_actions if option.startswith("--")}
    close = name if name in names else meant_field(name, names)
    return f"unknown argument {flag}" + (f"; did you mean --{close}?" if close else "")


def _too_many(name, values, action):
    words, hint = " ".join(values), ""
    if name == "lens_layers":
        hint = f"; write --{name} {re.sub(r'[, ]+', ',', words)}"
    elif dict in action.kinds:
        hint = f"; put the mapping in quotes: --{name} '{words}'"
    return f"--{name} takes one value, got {len(values)}: {words}{hint}"


def _twice(action, first, second):
    if first != second:
        return f"--{first} and --{second} set the same field; give one of them"
    how = f", a list as --{first} A B" if action.nargs == "+" else ""
    return f"--{first} is given twice; give it once{how}"
