"""A teacher whose weights are elsewhere between its forwards (``device_map``)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from accelerate.hooks import remove_hook_from_module
from accelerate.utils import align_module_device
from torch import nn

from distilllens.head import Head


def keep_ends(model: nn.Module):
    """Load the offloaded weights around a model's blocks for good: embeddings, final norm, head.

    The lens reads them at every step, outside of the forwards that fetch them. Blocks stay
    offloaded: accelerate's hooks fetch each for its forward. A model without offloaded weights is
    left as it is.
    """
    for module in _outside_of_blocks(model):
        hook = getattr(module, "_hf_hook", None)
        if hook is None or not any(p.is_meta for p in module.parameters(recurse=False)):
            continue
        with align_module_device(module, hook.execution_device):
            whole = {
                name: nn.Parameter(parameter.detach().clone(), requires_grad=False)
                for name, parameter in module.named_parameters(recurse=False)
            }
        remove_hook_from_module(module)
        for name, parameter in whole.items():
            setattr(module, name, parameter)


def whole_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The names and tensors of ``model.state_dict()``, offloaded ones fetched one at a time."""
    for name, tensor in model.state_dict().items():
        if tensor.is_meta:
            place, _, own = name.rpartition(".")
            tensor = model.get_submodule(place)._hf_hook.weights_map[own]
        yield name, tensor


def is_placed(model: nn.Module) -> bool:
    """Whether a model was loaded with a ``device_map``, and must not be moved."""
    return getattr(model, "hf_device_map", None) is not None


def moved(found, device):
    """A tuple of tensors, or the tensors among the values of a mapping, on a device."""
    if isinstance(found, dict):
        return {
            name: value.to(device) if isinstance(value, torch.Tensor) else value
            for name, value in found.items()
        }
    return tuple(value.to(device) for value in found)


def head_on(head: Head, device) -> Head:
    """A frozen head on a device; itself if it is there."""
    if head.weight.device == torch.device(device):
        return head
    bias = None if head.bias is None else head.bias.to(device)
    return Head(head.weight.to(device), bias, head.scale, head.softcap)


def _outside_of_blocks(module):
    """A module and what is in it, without the members of its lists of modules."""
    yield module
    for child in module.children():
        if not isinstance(child, nn.ModuleList):
            yield from _outside_of_blocks(child)
