"""A teacher turns a batch into states: a model that runs, or a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from distilllens.head import Head
from distilllens.lens import LayerStates, LogitLens, read_states
from distilllens.targets import Targets


class TeacherSource(Protocol):
    """Turns a batch into the teacher's states at the targets, without a gradient."""

    num_layers: int
    source: TeacherSource  # itself, or the one that it reads through another tokenizer

    def read(
        self, depths: Iterable[int], *, normalize: bool, targets: Targets, **inputs: Tensor
    ) -> tuple[LayerStates, Head]:
        """States ``[N, Dt]`` at ``depths`` and after the last block, and the head that reads them.

        The N rows are the positions of ``targets``, in their order.
        """

    def begin(
        self, depths: Iterable[int], *, normalize: bool, targets: Targets, **inputs: Tensor
    ) -> Callable[[], tuple[LayerStates, Head]]:
        """What ``read`` returns, from a call that ends it; the student can run in between."""


class LiveTeacher:
    """A teacher that runs beside the student, in evaluation mode and without a gradient.

    Args:
        lens: the teacher's lens; its model must be one that training can read.
        run: calls ``method(**inputs)`` inside the forward of the model's wrapper, where the weights
            of a sharded model are gathered; by default calls it directly.
        gather: returns the head with whole weights, where a wrapper shards them.
        fingerprint: identifies the model; taken before it was sharded.

    Raises:
        ValueError: a model whose lens training cannot read.
    """

    def __init__(
        self,
        lens: LogitLens,
        run: Callable = lambda method, **inputs: method(**inputs),
        gather: Callable[[LogitLens], Head] = lambda lens: lens.head,
        fingerprint: str | None = None,
    ):
        lens.check_trainable()
        self.lens = lens
        self.num_layers = lens.num_layers
        self.fingerprint = fingerprint
        self._run = run
        self._gather = gather

    @property
    def source(self) -> LiveTeacher:
        """Itself."""
        return self

    @torch.no_grad()
    def read(self, depths, *, normalize, targets, **inputs):
        """States ``[N, Dt]`` at ``depths`` and after the last block, and the head for them."""
        depths = tuple(depths)
        if self.lens.model.training:
            self.lens.model.eval()

        def method(**inputs):
            states = read_states(self.lens, depths, normalize=normalize, **inputs)
            # A tuple: wrappers search the output of a forward for tensors, and know tuples.
            found = (states.final, *(states[depth] for depth in depths))
            return tuple(targets.rows(state) for state in found)

        with _without_weight_cache(targets.mask.device.type):
            final, *states = self._run(method, **inputs)
        by_depth = dict(zip(depths, states, strict=True))
        states = LayerStates(by_depth, normed=normalize, final=final, gathered=True)
        return states, self._gather(self.lens)

    def begin(self, depths, **inputs):
        """What ``read`` returns; the teacher runs when it is called, after the student."""
        return partial(self.read, depths, **inputs)


def _without_weight_cache(device):
    """Autocast as it is, but for its cache of cast weights.

    A forward needs each weight of a float32 teacher once. The cache would hold a second copy of all
    of them until the step ends, in memory that has to be found anew at every step.
    """
    if not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, torch.get_autocast_dtype(device), cache_enabled=False)
