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
from distilllens.lens.translator_fit import tuned_lens
from distilllens.lens.translators import Translators, load_translators

__all__ = [
    "DepthDivergence",
    "Inspection",
    "LayerStates",
    "LogitLens",
    "Passage",
    "Trajectory",
    "Translators",
    "capture",
    "divergence_by_depth",
    "inspect_models",
    "load_translators",
    "read_states",
    "trajectory",
    "tuned_lens",
]
