"""The memory of a training step with one teacher or several."""

from __future__ import annotations

from dataclasses import replace

from distilllens.workflows import estimate_step
from distilllens.workflows.estimate_step import PARTS, Step


def measure(step: Step) -> dict[str, int]:
    """As ``estimate_step.measure``, with the teachers of ``step.beside`` too.

    Each teacher adds its weights and states, and to the loss what it adds to that of a step
    without a teacher; all else is that of the largest step with one of them.

    Raises:
        Exception: as ``estimate_step.measure``.
    """
    if not step.beside:
        return estimate_step.measure(step)
    found = [estimate_step.measure(each) for each in (replace(step, beside=()), *step.beside)]
    parts = {part: max(each[part] for each in found) for part in PARTS}
    for part in ("teacher", "cache"):
        parts[part] = sum(each[part] for each in found)
    without = estimate_step.measure(replace(step, teacher=None, beside=()))["loss"]
    added = sum(max(0, each["loss"] - without) for each in found)
    parts["loss"] = max(parts["loss"], without + added)
    return parts
