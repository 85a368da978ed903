"""The logit lens: a model's layers read as distributions over its vocabulary."""

from distilllens.lens.capture import LayerStates, capture, read_states
from distilllens.lens.logit_lens import LogitLens
from distilllens.lens.reading import Inspection, Passage, inspect_models
from distilllens.lens.trajectory import (
    DepthDivergence,
    Trajectory,
    divergence_by_depth,
    trajectory,
)

__all__ = [
    "DepthDivergence",
    "Inspection",
    "LayerStates",
    "LogitLens",
    "Passage",
    "Trajectory",
    "capture",
    "divergence_by_depth",
    "inspect_models",
    "read_states",
    "trajectory",
]
