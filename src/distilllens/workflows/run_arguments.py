"""Values of a recipe's fields -> the three dataclasses that hold a training job."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from distilllens.errors import one_line
from distilllens.train.config import DistillLensConfig, ModelConfig
from distilllens.train.config_checks import check_finite
from distilllens.workflows.train_inputs import JobArguments

PARTS = (JobArguments, ModelConfig, DistillLensConfig)


class Arguments(NamedTuple):
    """Three dataclasses, and name -> value of the fields that were set."""

    job: JobArguments
    model: ModelConfig
    training: DistillLensConfig
    given: dict


def build(values: Mapping[str, Any]) -> Arguments:
    """The arguments of the fields that are set.

    Raises:
        ValueError: a value that its field does not take, or fields that contradict each other.
    """
    job, model, training = (_built(part, values) for part in PARTS)
    given = {
        field.name: getattr(part, field.name)
        for part in (job, model, training)
        for field in fields(part)
        if field.name in values
    }
    check_finite(given)
    return Arguments(job, model, training, given)


def build_unused(values: Mapping[str, Any]) -> tuple[JobArguments, ModelConfig, DistillLensConfig]:
    """The arguments of a recipe that trains nothing: transformers makes the output_dir.

    Raises:
        ValueError: as ``build``.
    """
    with tempfile.TemporaryDirectory() as unused:
        return build({**values, "output_dir": unused})[:3]


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
