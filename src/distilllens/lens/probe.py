"""Record one tiny forward of a model: which module ran inside which, on which tensors."""

from __future__ import annotations

import inspect
import math
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from distilllens.lens.structure import first_float, named_floats, rebuild

# Unequal, and unlike usual widths, so that they identify the axes of a stream.
NUM_ROWS, NUM_TOKENS = 2, 7
_NUM_ENCODED = 5


@dataclass(eq=False)
class Call:
    """One call of a module: copies of its floating-point inputs and of its output."""

    index: int
    started: int
    module: nn.Module
    parent: int | None
    inputs: list[tuple[int | str, Tensor]]
    output: object = None
    live: Tensor | None = None  # the stream itself, to detect in-place writes by later blocks
    ended: int = field(default=-1)

    @property
    def stream(self) -> Tensor | None:
        """The first floating-point tensor of the output."""
        return first_float(self.output)


def unwrap(model) -> nn.Module:
    """The transformers model inside DDP, ``torch.compile`` or PEFT, without importing them.

    Raises:
        ValueError: not a module, or a PEFT method that adds virtual tokens.
    """
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif hasattr(model, "get_base_model"):
            config = getattr(model, "active_peft_config", None)
            if getattr(config, "is_prompt_learning", False):
                raise ValueError(
                    f"{type(model).__name__} adds virtual tokens ({type(config).__name__}), which "
                    f"the model inside does not see; use LoRA or another adapter in the layers"
                )
            model = model.get_base_model()
        else:
            break
    if not isinstance(model, nn.Module):
        raise ValueError(f"the lens needs a transformers model, got {type(model).__name__}")
    return model


@contextmanager
def undisturbed(model: nn.Module):
    """Evaluation mode without gradients; restores each module's mode and the random state."""
    # Not model.eval(): a model may override train(), and modules may be in different modes.
    modes = [(module, module.training) for module in model.modules()]
    cuda = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(cuda)), torch.no_grad():
        try:
            for module, _ in modes:
                module.training = False
            yield
        finally:
            for module, training in modes:
                module.training = training
            # A later training forward in the same autocast region must not reuse weights that were
            # cast here without gradients.
            torch.clear_autocast_cache()


def accepts(module: nn.Module, name: str, *, by_name: bool = False) -> bool:
    """Whether a forward takes this keyword (``by_name``: by its name, not by ``**kwargs``)."""
    parameters = inspect.signature(type(module).forward).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return name in parameters or (anything and not by_name)


def without_cache(module: nn.Module, inputs: dict) -> dict:
    """``inputs`` plus ``use_cache=False`` if the module takes it and no cache was passed.

    A module that passes anything on takes what a module in it takes by name (granitemoe).
    """
    if inputs.get("past_key_values") is not None:
        return inputs
    inner = module.children() if accepts(module, "use_cache") else ()
    takes = any(accepts(m, "use_cache", by_name=True) for m in (module, *inner))
    return {"use_cache": False, **inputs} if takes else inputs


def input_name(model: nn.Module) -> str:
    """What a model predicts at: "input_ids", "decoder_input_ids", or "pixel_values" of a class."""
    if getattr(model.config, "is_encoder_decoder", False):
        return "decoder_input_ids"
    if getattr(model, "main_input_name", "") == "pixel_values":
        # Models of images and text have an output embedding, and can be read on text alone.
        return "pixel_values" if model.get_output_embeddings() is None else "input_ids"
    return "input_ids"


def inputs_around(model: nn.Module, ids: Tensor) -> dict:
    """The inputs of a forward that predicts at ``ids [B, T]``, or of B images.

    An encoder does not run: its output is made up, because only the decoder's blocks read it.
    """
    name = input_name(model)
    if name == "pixel_values":
        return {name: _made_up(model, ids, _image_shape(model.config))}
    if name == "input_ids":
        return {name: ids}
    encoder = getattr(model.config, "encoder", None) or model.config
    return {
        name: ids,
        "encoder_outputs": (_made_up(model, ids, (_NUM_ENCODED, encoder.hidden_size)),),
    }


def _made_up(model, ids, shape):
    """Numbers ``[B, *shape]`` from -1 to 1; rows with equal first tokens are equal."""
    steps = torch.arange(1, math.prod(shape) + 1, device=ids.device)
    waves = torch.cos(steps * (ids[:, :1] + 1.0))
    return waves.view(-1, *shape).to(model.dtype)


def _image_shape(config):
    """(channels, height, width) of the images that a classifier was trained on."""
    config = getattr(config, "vision_config", config)
    size, channels = (getattr(config, name, None) for name in ("image_size", "num_channels"))
    if size is None or channels is None:
        raise ValueError("its configuration does not say how large its images are")
    return channels, *((size, size) if isinstance(size, int) else size)


def probe_ids(model: nn.Module, num_rows=NUM_ROWS, num_tokens=NUM_TOKENS) -> Tensor:
    """Token ids ``[num_rows, num_tokens]``, none of which is a special token of the config."""
    size, device = 64, next(model.parameters()).device
    if input_name(model) != "pixel_values":
        embedding = model.get_input_embeddings()
        size = getattr(embedding, "num_embeddings", None) or min(size, embedding.weight.shape[0])
        device = embedding.weight.device
    special = set(numbers(model.config.to_dict(), "token_id"))
    usable = [i for i in range(3, size) if i not in special][:61] or [0]
    count = num_rows * num_tokens
    ids = [usable[(7 * i + 3) % len(usable)] for i in range(count)]
    return torch.tensor(ids, device=device).view(num_rows, num_tokens)


def numbers(tree, ending: str = "") -> list[float]:
    """The numbers anywhere in a config whose name has this ending."""
    found = []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for name, value in items:
        if isinstance(value, dict | list | tuple):
            found += numbers(value, "" if str(name).endswith(ending) else ending)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found += [value] if str(name).endswith(ending) else []
    return found


def logits_of(output) -> Tensor:
    """The logits in a model's output, an object or a tuple."""
    logits = getattr(output, "logits", None)
    return first_float(output) if logits is None else logits


def watched(model: nn.Module, nesting: int) -> list[nn.Module]:
    """The modules outside of ModuleLists, and the members of lists nested up to ``nesting``."""
    found, seen = [], set()

    def visit(module, depth):
        if id(module) in seen:
            return
        seen.add(id(module))
        found.append(module)
        inner = depth + isinstance(module, nn.ModuleList)
        for child in module.children():
            if inner < nesting or not isinstance(module, nn.ModuleList):
                visit(child, inner)
            elif id(child) not in seen:
                seen.add(id(child))
                found.append(child)

    visit(model, 0)
    return found


def record(model: nn.Module, inputs: dict, nesting: int = 1) -> tuple[list[Call], object]:
    """Run the model once; return the calls of its watched modules by start, and its output."""
    calls, stack, clock = [], [], iter(range(1 << 30))

    def enter(module, args, kwargs):
        taken = [(key, t.detach().clone()) for key, t in named_floats(args, kwargs)]
        parent = stack[-1] if stack else None
        stack.append(len(calls))
        calls.append(Call(len(calls), next(clock), module, parent, taken))

    def leave(module, args, kwargs, output):
        call = calls[stack.pop()]
        call.live = first_float(output)
        call.output = rebuild(output, lambda i, t: t.detach().clone())
        call.ended = next(clock)

    with ExitStack() as hooks:
        for module in watched(model, nesting):
            for handle in (
                module.register_forward_pre_hook(enter, with_kwargs=True),
                module.register_forward_hook(leave, with_kwargs=True),
            ):
                hooks.callback(handle.remove)
        output = model(**without_cache(model, inputs))
    return calls, output
