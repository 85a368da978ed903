"""Attention kernels for batches whose shape changes from step to step."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch.nn.attention import SDPBackend, sdpa_kernel

_OF_ANY_SHAPE = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attention_of_changing_shapes(packing: bool) -> AbstractContextManager:
    """Leave cuDNN's attention out, unless packing gives every batch the same shape.

    cuDNN builds a plan for every shape of a batch, which takes about five steps of GPT-2 (0.16 s on
    an H200), and torch prefers it to its own kernels on these GPUs. Enter it around forward and
    backward together: recomputed activations must come from the same kernel.
    """
    return nullcontext() if packing else sdpa_kernel(_OF_ANY_SHAPE)
