"""The model's own forward with its blocks or its backbone replaced by stand-ins.

A stand-in returns a given state. This is the definition of the lens: the logits that the model
would compute if its stack ended at that state.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import Tensor, nn

from distilllens.lens.anatomy import Anatomy
from distilllens.lens.probe import inputs_around, logits_of, without_cache
from distilllens.lens.structure import first_float, rebuild, with_first


@contextmanager
def standing_in(model: nn.Module, forwards: dict[nn.Module, object]):
    """Temporarily replace forwards, and switch gradient checkpointing off.

    A checkpointed stand-in would be recomputed in backward, after the real forward is restored.
    """
    before = [(module, "forward", vars(module).get("forward")) for module in forwards]
    before += [
        (module, "gradient_checkpointing", True)
        for module in model.modules()
        if vars(module).get("gradient_checkpointing") is True
    ]
    try:
        for module, forward in forwards.items():
            module.forward = forward
        for module, name, _ in before:
            if name == "gradient_checkpointing":
                module.gradient_checkpointing = False
        yield
    finally:
        for module, name, value in before:
            if value is None:
                vars(module).pop(name, None)
            else:
                setattr(module, name, value)


def stopped(anatomy: Anatomy, hidden: Tensor, *, noise: bool = False) -> dict:
    """Stand-ins for all blocks that return ``hidden``.

    ``noise``: only the last one does; the others, and everything else a block returns, are noise.
    This exposes a model that reads more than the last block's output.
    """

    def stand_in(output, is_last):
        def change(i, old):
            if i == 0:
                return torch.randn_like(hidden) if noise and not is_last else hidden
            return torch.randn_like(old) if noise else old

        return lambda *args, **kwargs: rebuild(output, change)

    last = anatomy.num_layers - 1
    return {
        block: stand_in(output, i == last)
        for i, (block, output) in enumerate(zip(anatomy.blocks, anatomy.block_outputs, strict=True))
    }


def logits_around_blocks(model, anatomy: Anatomy, hidden: Tensor, ids: Tensor, **how) -> Tensor:
    """The model's logits ``[B, T, V]``, of images ``[B, C]``, when blocks return ``hidden``."""
    with standing_in(model, stopped(anatomy, hidden, **how)):
        return logits_of(model(**without_cache(model, inputs_around(model, ids))))


def normed_around_blocks(model, anatomy: Anatomy, hidden: Tensor, ids: Tensor) -> Tensor:
    """The backbone's output ``[B, T, D]`` when every block returns ``hidden``."""
    with standing_in(model, stopped(anatomy, hidden)):
        inputs = without_cache(anatomy.backbone, inputs_around(model, ids))
        return first_float(anatomy.backbone(**inputs))


def logits_around_backbone(model, anatomy: Anatomy, normed: Tensor, ids: Tensor) -> Tensor:
    """The model's logits, as above, when its backbone returns ``normed``."""
    output = with_first(anatomy.backbone_output, normed)
    with standing_in(model, {anatomy.backbone: lambda *args, **kwargs: output}):
        return logits_of(model(**without_cache(model, inputs_around(model, ids))))
