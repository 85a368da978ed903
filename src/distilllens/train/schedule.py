"""What a step and a pair weigh in the lens term: settings of a recipe -> plain numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from distilllens.layer_map import LayerMap

# How much of a weight is left after a share of its way from 0 to 1; at 1 nothing is.
SCHEDULES = {
    "constant": lambda way: 1.0,
    "linear": lambda way: 1.0 - way,
    "cosine": lambda way: (1.0 + math.cos(math.pi * way)) / 2,
}
PAIR_WEIGHTS = ("uniform", "depth")


def lens_share(schedule: str, until: float, step: int, num_steps: int) -> float:
    """The share of ``lens_weight`` that counts in a step: 1 at first, 0 from ``until`` on.

    It depends on nothing but the number of the step, so neither accumulation, processes nor an
    interruption change it.

    Args:
        schedule: a name of ``SCHEDULES``; "constant" with ``until`` below 1 ends at once.
        until: in (0, 1], of all steps.
        step: from 0.
        num_steps: of the run; 0 outside of training, where the share is 1.
    """
    # step / num_steps is rounded as the decimal number that a recipe gives is; until * num_steps is
    # not, and 0.1 * 30 would be one step later.
    if num_steps < 1 or step / num_steps < until:
        return SCHEDULES[schedule](step / max(num_steps, 1) / until)
    return 0.0


def pair_weights(
    given: str | Sequence[float] | None, layer_map: LayerMap | None
) -> tuple[float, ...] | None:
    """A weight for each pair, 1 on average; None for "uniform" and for a loss without pairs.

    "depth" is proportional to the student's depth.

    Raises:
        ValueError: a list of another length, or weights that are all 0.
    """
    if layer_map is None or given in (None, "uniform"):
        return None
    weights = layer_map.student_depths if given == "depth" else tuple(given)
    if len(weights) != len(layer_map):
        raise ValueError(
            f"lens_pair_weights must be one for each of the {len(layer_map)} pairs {layer_map}, "
            f"got {len(weights)}"
        )
    if not any(weights):
        raise ValueError(f"lens_pair_weights {given!r} are 0 for all pairs {layer_map}")
    mean = math.fsum(weights) / len(weights)
    return tuple(weight / mean for weight in weights)
