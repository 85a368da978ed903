"""DistillLens: distil a causal language model through the logit lens.

The names below are the public API. The trainer and its configuration load on first use, so that
importing the package loads neither trl nor datasets nor plotting.
"""

from distilllens.divergence import divergence
from distilllens.head import Head
from distilllens.layer_map import LayerMap
from distilllens.lens import LayerStates, LogitLens, capture
from distilllens.linear_divergence import linear_cross_entropy, linear_divergence
from distilllens.objective import LossTerms, Objective

__version__ = "0.1.0"
__all__ = [
    "DistillLensConfig",
    "DistillLensTrainer",
    "Head",
    "LayerMap",
    "LayerStates",
    "LogitLens",
    "LossTerms",
    "Objective",
    "capture",
    "divergence",
    "linear_cross_entropy",
    "linear_divergence",
]


def __getattr__(name):
    if name in ("DistillLensConfig", "DistillLensTrainer"):
        import distilllens.train

        return getattr(distilllens.train, name)
    raise AttributeError(f"module 'distilllens' has no attribute {name!r}")
