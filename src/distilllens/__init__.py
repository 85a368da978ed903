"""DistillLens: distil a causal language model through the logit lens.

The names below are the public API. The trainer, its configuration and ``show`` load on first use,
so that importing the package loads neither trl nor datasets nor plotting.
"""

from distilllens.divergence import divergence
from distilllens.head import Head
from distilllens.kernel_caches import bound_kernel_caches
from distilllens.layer_map import LayerMap
from distilllens.lens import LayerStates, LogitLens, capture, read_states
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
    "read_states",
    "show",
]

bound_kernel_caches()


def __getattr__(name):
    if name in ("DistillLensConfig", "DistillLensTrainer"):
        import distilllens.train as home
    elif name == "show":
        import distilllens.workflows.notebook as home
    else:
        raise AttributeError(f"module 'distilllens' has no attribute {name!r}")
    return getattr(home, name)


def __dir__():
    return sorted({*globals(), *__all__})
