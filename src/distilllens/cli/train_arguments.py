"""The flags of a training job: our fields, TRL's ModelConfig and DistillLensConfig."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import fields
from typing import NamedTuple

from trl import ModelConfig, TrlParser

from distilllens.cli import OneLineParser
from distilllens.errors import one_line
from distilllens.train.config import DistillLensConfig
from distilllens.train.config_checks import kinds_of
from distilllens.workflows.train_inputs import JobArguments

# A flag -> the fields of a recipe that it replaces.
_INSTEAD = {
    "dataset_name": ("train_file", "eval_file"),
    "train_file": (
        "dataset_name",
        "dataset_config",
        "dataset_train_split",
        "dataset_test_split",
    ),
    "model_name_or_path": ("student_config", "student_blocks"),
    "student_config": ("model_name_or_path", "model_revision", "student_blocks"),
    "student_blocks": ("model_name_or_path", "model_revision", "student_config"),
}


class Arguments(NamedTuple):
    """Three dataclasses, and name -> value of the fields that were set."""

    job: JobArguments
    model: ModelConfig
    training: DistillLensConfig
    given: dict


class _Parser(TrlParser):
    """TrlParser with one-line errors."""

    error = OneLineParser.error


def make_parser(command: str, description: str) -> _Parser:
    """A parser of all three dataclasses; ``--config`` is removed before it parses the flags."""
    parser = _Parser(
        (JobArguments, ModelConfig, DistillLensConfig),
        prog=f"distilllens {command}",
        description=description,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="YAML", help="recipe: the flags below as YAML")
    kinds = {k: v for part in parser.dataclass_types for k, v in kinds_of(part).items()}
    for action in parser._actions:
        action.kinds = kinds.get(action.dest)
    return parser


def parse(parser: _Parser, recipe: dict, flags: list[str]) -> Arguments:
    """The arguments in a recipe and in flags; flags override the recipe.

    Raises:
        ValueError: an unknown flag, or a value that its field does not take.
    """
    options = parser._option_string_actions
    words = [flag.split("=")[0] for flag in flags]
    flagged = {options[word].dest for word in words if word in options}
    overridden = {n for flag in flagged & _INSTEAD.keys() for n in _INSTEAD[flag]} - flagged
    recipe = {name: value for name, value in recipe.items() if name not in overridden}
    names = set(recipe) | flagged
    if "output_dir" not in names or recipe.get("output_dir", "unset") is None:
        raise ValueError("output_dir is missing: the folder for checkpoints and the final model")
    parser.set_defaults_with_config(**recipe)
    values, unknown = parser.parse_known_args(flags)
    if unknown:
        close = difflib.get_close_matches(unknown[0].split("=")[0], options, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"unknown argument {unknown[0]}{hint} (see {parser.prog} --help)")
    job, model, training = (_built(part, vars(values), names) for part in parser.dataclass_types)
    given = {
        field.name: getattr(part, field.name)
        for part in (job, model, training)
        for field in fields(part)
        if field.name in names
    }
    for name, value in given.items():
        _check_number(name, value)
    return Arguments(job, model, training, given)


def _check_number(name, value):
    """Refuse numbers that no field can use, wherever a field has no bounds of its own."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError(f"{name} must be below 2^63, got {str(value)[:20]}...")


def _built(part, values, names):
    """A dataclass of its values; an error names the field, also where the library does not."""
    values = {field.name: values[field.name] for field in fields(part) if field.init}
    try:
        return part(**values)
    except Exception as error:  # libraries raise errors of any kind
        text = one_line(error)
        if not isinstance(error, ValueError):
            text = f"{type(error).__name__}: {text}"
        if isinstance(error, ValueError) and {*re.findall(r"\w+", text)} & {*values}:
            raise
        for name in sorted(names & {*values}):
            _check_number(name, values[name])
        blamed = _blamed(part, values, names)
        where = f"{blamed} {values[blamed]!r}" if blamed else "the fields"
        raise ValueError(f"{where} cannot be used: {text}") from error


def _blamed(part, values, names):
    """The first of the fields that were set without which the rest is accepted, or None."""
    for field in fields(part):
        if field.name not in names or not field.init:
            continue
        plain = {name: value for name, value in values.items() if name != field.name}
        try:
            part(**plain)
        except Exception:  # as above
            continue
        return field.name
    return None
