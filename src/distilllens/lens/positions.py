"""The positions of left-padded rows, where a model does not find them itself."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn

from distilllens.lens.probe import accepts, logits_of, probe_ids, undisturbed, without_cache
from distilllens.lens.structure import worst

_NUM_PADS = 3
# Relative to the largest number of the output; of rounding, and of what is no rounding any more.
_ROUNDING, _WRONG, _WRONG_IN_HALF = 1e-5, 1e-3, 5e-2
_NOTHING, _NEEDED = ("", False), ("", True)
_FOUND: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def with_positions(model: nn.Module, module: nn.Module, inputs: dict) -> dict:
    """``inputs`` plus ``position_ids`` if rows are padded on the left and the module needs them.

    Without them, GPT-2 counts padding as positions and reads every token at a wrong one; OPT counts
    by the attention mask; rotary embeddings depend on distances alone. Which of these a module
    does is found by running it once (``learn_positions``). Other batches are left as they are.

    Args:
        model: the causal LM.
        module: what is called: the model or its backbone.

    Raises:
        ValueError: rows padded on the left, which this module cannot read rightly.
    """
    mask = inputs.get("attention_mask")
    given = any(inputs.get(name) is not None for name in ("position_ids", "past_key_values"))
    if given or not isinstance(mask, Tensor) or mask.ndim != 2:
        return inputs
    known = _FOUND.get(module)
    if known == _NEEDED:  # for other rows they are the positions that the module counts itself
        return inputs | {"position_ids": positions_of(mask)}
    # Reading the mask waits for its device: not for models that are known to need nothing.
    if known == _NOTHING or not (mask[:, 0] == 0).any():
        return inputs
    wrong, needed = learn_positions(model, module)
    if wrong:
        raise ValueError(f"{type(model).__name__} cannot read rows padded on the left: {wrong}")
    return inputs | ({"position_ids": positions_of(mask)} if needed else {})


def positions_of(mask: Tensor) -> Tensor:
    """Positions ``[B, T]`` that start from 0 at the first token of each row that is no padding."""
    num_pads = (mask.cumsum(-1) == 0).sum(-1, keepdim=True)
    return (torch.arange(mask.shape[-1], device=mask.device) - num_pads).clamp(min=0)


def learn_positions(model: nn.Module, module: nn.Module) -> tuple[str, bool]:
    """Why a module cannot read left-padded rows ("" if it can), and whether it needs positions.

    Runs it on a few tokens, once; later calls know. Before sharding, where no forward of a part of
    the processes can run.
    """
    if module not in _FOUND:
        try:
            with undisturbed(model):
                _FOUND[module] = _learn(model, module)
        except Exception as error:
            _FOUND[module] = f"{type(error).__name__}: {error}", False
    return _FOUND[module]


def _learn(model, module):
    ids = probe_ids(model, 1)
    pad = getattr(model.config, "pad_token_id", None)  # some models count by it
    if not isinstance(pad, int) or not 0 <= pad < model.get_input_embeddings().weight.shape[0]:
        pad = int(ids[0, 0])
    padded = torch.cat([ids.new_full((1, _NUM_PADS), pad), ids], 1)
    mask = torch.ones_like(padded)
    mask[:, :_NUM_PADS] = 0

    def run(**inputs):
        return logits_of(module(**without_cache(module, inputs)))[:, -ids.shape[1] :]

    truth = run(input_ids=ids, attention_mask=torch.ones_like(ids))
    given = {"input_ids": padded, "attention_mask": mask}
    alone = told = worst(run(**given), truth)
    if alone > _ROUNDING and accepts(module, "position_ids", by_name=True):
        told = worst(run(**given, position_ids=positions_of(mask)), truth)
    best = min(alone, told)
    if best > (_WRONG_IN_HALF if _is_half(model, truth.device) else _WRONG):
        return f"padding changes its output by {best:.1e} of the largest; pad on the right", False
    return "", told < alone


def _is_half(model, device):
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return torch.is_autocast_enabled(device.type) or not dtypes <= {torch.float32, torch.float64}
