"""The fields of a training job as its dataclasses declare them: ours and those of TRL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from trl import ModelConfig, TrlParser

from distilllens.cli import OneLineParser
from distilllens.cli.train_flags import flag_parser, merged
from distilllens.errors import one_line
from distilllens.train.config import DistillLensConfig
from distilllens.train.config_checks import check_finite, items_of, kinds_of
from distilllens.workflows.field_table import KINDS, Field
from distilllens.workflows.train_inputs import JobArguments

_PARTS = (JobArguments, ModelConfig, DistillLensConfig)


class Arguments(NamedTuple):
    """Three dataclasses, and name -> value of the fields that were set."""

    job: JobArguments
    model: ModelConfig
    training: DistillLensConfig
    given: dict


def declared_fields() -> list[Field]:
    """The fields of the libraries that are installed, read from the parser that TRL makes."""
    names = {kind: name for name, kind in KINDS.items()}
    kinds = {name: found for part in _PARTS for name, found in kinds_of(part).items()}
    items = {name: found for part in _PARTS for name, found in items_of(part).items()}
    found = {}
    for action in TrlParser(_PARTS)._actions:
        if action.dest not in kinds or action.dest in found:
            continue  # "help", and "--no_..." of the same name
        known = {names[kind] for kind in kinds[action.dest] if kind in names}
        choices = [getattr(choice, "value", choice) for choice in action.choices or ()]
        # By name, as TRL wraps the types of fields that may be None.
        kind = getattr(action.type, "__name__", "").replace("string_to_bool", "bool")
        found[action.dest] = Field(
            name=action.dest,
            type=kind if kind in ("int", "float", "bool") and "str" not in known else "str",
            kinds=sorted(known | {"bool"} if action.const is True else known),
            default=getattr(action.default, "value", action.default),
            items={int: "int", float: "float"}.get(items.get(action.dest), "str"),
            nargs="+" if "list" in known else action.nargs,
            choices=choices or None,
            help=action.help or "",
        )
    return list(found.values())


def make_parser(command: str, description: str) -> OneLineParser:
    """A parser of these fields; ``--config`` is removed before it parses the flags."""
    return flag_parser(command, description, declared_fields())


def parse(parser: OneLineParser, recipe: Mapping[str, Any], flags: list[str]) -> Arguments:
    """The arguments in a recipe and in flags; flags override the recipe.

    Raises:
        ValueError: an unknown flag, or a value that its field does not take.
    """
    return build(merged(parser, recipe, flags))


def build(values: Mapping[str, Any]) -> Arguments:
    """The arguments of the fields that are set.

    Raises:
        ValueError: a value that its field does not take, or fields that contradict each other.
    """
    job, model, training = (_built(part, values) for part in _PARTS)
    given = {
        field.name: getattr(part, field.name)
        for part in (job, model, training)
        for field in fields(part)
        if field.name in values
    }
    check_finite(given)
    return Arguments(job, model, training, given)


def _built(part, values):
    """A dataclass of its values; an error names the field, also where the library does not."""
    names = {field.name for field in fields(part) if field.init}
    values = {name: value for name, value in values.items() if name in names}
    try:
        return part(**values)
    except Exception as error:  # libraries raise errors of any kind
        text = one_line(error)
        if not isinstance(error, ValueError):
            text = f"{type(error).__name__}: {text}"
        if isinstance(error, ValueError) and {*re.findall(r"\w+", text)} & names:
            raise
        check_finite(values)
        blamed = _blamed(part, values)
        where = f"{blamed} {values[blamed]!r}" if blamed else "the fields"
        raise ValueError(f"{where} cannot be used: {text}") from error


def _blamed(part, values):
    """The first of the fields that were set without which the rest is accepted, or None."""
    for field in fields(part):
        if field.name not in values:
            continue
        plain = {name: value for name, value in values.items() if name != field.name}
        try:
            part(**plain)
        except Exception:  # as above
            continue
        return field.name
    return None
