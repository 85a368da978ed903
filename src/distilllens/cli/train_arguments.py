"""The fields of a training job as its dataclasses declare them: ours and those of TRL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_origin

from trl import TrlParser

from distilllens.cli import OneLineParser
from distilllens.cli.train_flags import flag_parser, merged
from distilllens.train.config_checks import items_of, kinds_of
from distilllens.workflows.field_table import KINDS, Field
from distilllens.workflows.run_arguments import PARTS, Arguments, build


def declared_fields() -> list[Field]:
    """The fields of the libraries that are installed, read from the parser that TRL makes."""
    names = {kind: name for name, kind in KINDS.items()}
    kinds = {name: found for part in PARTS for name, found in kinds_of(part).items()}
    items = {name: found for part in PARTS for name, found in items_of(part).items()}
    found = {}
    for action in TrlParser(PARTS)._actions:
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
            items=_name_of(items.get(action.dest)),
            nargs="+" if "list" in known else action.nargs,
            choices=choices or None,
            help=action.help or "",
        )
    return list(found.values())


def _name_of(items):
    return {int: "int", float: "float", dict: "dict"}.get(get_origin(items) or items, "str")


def make_parser(command: str, description: str) -> OneLineParser:
    """A parser of these fields; ``--config`` is removed before it parses the flags."""
    return flag_parser(command, description, declared_fields())


def parse(parser: OneLineParser, recipe: Mapping[str, Any], flags: list[str]) -> Arguments:
    """The arguments in a recipe and in flags; flags override the recipe.

    Raises:
        ValueError: an unknown flag, or a value that its field does not take.
    """
    return build(merged(parser, recipe, flags))
