"""DistillLens: distil a causal language model through the logit lens.

The names below are the public API. They load on first use: a command can refuse bad input, and be
interrupted, before torch is imported, and only what trains loads trl and datasets.
"""

import sys
from types import ModuleType

from distilllens.kernel_caches import bound_kernel_caches

__version__ = "0.2.0.dev0"
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
    "student_from_blocks",
]

bound_kernel_caches()


class _Door(ModuleType):
    """The package, in which a public name stays what it is when the room of that name is loaded."""

    def __setattr__(self, name, value):
        # Importing distilllens.divergence sets that name to the module; the function is meant.
        if name in __all__ and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Door


def __getattr__(name):
    if name in ("DistillLensConfig", "DistillLensTrainer"):
        import distilllens.train as home
    elif name == "Head":
        import distilllens.head as home
    elif name == "LayerMap":
        import distilllens.layer_map as home
    elif name in ("LayerStates", "LogitLens", "capture", "read_states"):
        import distilllens.lens as home
    elif name in ("LossTerms", "Objective"):
        import distilllens.objective as home
    elif name == "divergence":
        from distilllens.divergence import divergence

        return divergence
    elif name in ("linear_cross_entropy", "linear_divergence"):
        from distilllens.linear_divergence import linear_cross_entropy, linear_divergence

        return linear_divergence if name == "linear_divergence" else linear_cross_entropy
    elif name == "student_from_blocks":
        import distilllens.lens.surgery as home
    elif name == "show":
        import distilllens.workflows.notebook as home
    else:
        raise AttributeError(f"module 'distilllens' has no attribute {name!r}")
    return getattr(home, name)


def __dir__():
    return sorted({*globals(), *__all__})
