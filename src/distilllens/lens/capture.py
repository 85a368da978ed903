"""Capture a model's hidden states at chosen depths in one forward pass."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from distilllens.lens.anatomy import Anatomy, locate
from distilllens.lens.logit_lens import LogitLens
from distilllens.lens.positions import with_positions
from distilllens.lens.probe import accepts, unwrap, without_cache
from distilllens.lens.streams import check_depths, collected, stacked_read
from distilllens.targets import Targets
from distilllens.vocabularies import EVERY, Compared

_ANATOMIES: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class LayerStates:
    """The states of one model on one batch, by depth.

    Args:
        states: depth -> ``[B, T, D]`` (0 = embeddings, L = after the last block).
        normed: whether the final norm has been applied, so that the head can read them.
        final: the last state, ready for the head, ``[B, T, D]``; None if it was not computed.
        gathered: every state is ``[N, D]`` instead: the rows at the batch's ``Targets``.
        compared: the targets that the rows are at, all by default, and how two vocabularies are
            compared there.
    """

    states: dict[int, Tensor]
    normed: bool
    final: Tensor | None = None
    gathered: bool = False
    compared: Compared = EVERY

    def rows(self, state: Tensor, targets: Targets, kept: Tensor | None = None) -> Tensor:
        """The rows of one of the states at the targets, or at the ``kept`` ones among them."""
        if not self.gathered:
            return targets.rows(state, kept)
        return state if kept is None else state.index_select(0, kept)

    def __getitem__(self, depth: int) -> Tensor:
        return self.states[depth]

    def __contains__(self, depth) -> bool:
        return depth in self.states

    def __iter__(self):
        return iter(self.states)

    def __len__(self):
        return len(self.states)


def capture(model, depths, **inputs) -> LayerStates:
    """The un-normed stream at the requested depths, from one forward in the caller's grad mode.

    Equals hooks on the blocks of ``model(**inputs, use_cache=False)``, but keeps only the requested
    depths and never builds the logits ``[B, T, V]``. ``labels`` are dropped: no state depends on
    them. Rows may be padded on either side: positions are counted from the first token that is no
    padding, unless ``position_ids`` are given.

    Args:
        model: a transformers causal LM (optionally wrapped by PEFT) or its LogitLens. The blocks of
            a bare model are located once, by a tiny forward.
        depths: integers from 0 (embeddings) to L (before the final norm), in any order.
        inputs: ``input_ids [B, T]``, ``attention_mask`` and so on, passed on to the model.

    Raises:
        ValueError: a depth outside 0..L, a model whose blocks cannot be found, or rows padded on
            the left for a model that cannot read them.
    """
    if isinstance(model, LogitLens):
        model, anatomy = model.model, model.anatomy
    else:
        model, anatomy = _located(model)
    depths = check_depths(depths, anatomy.num_layers)
    inputs = {name: value for name, value in inputs.items() if name != "labels"}
    module, inputs = _without_logits(model, anatomy, inputs)
    inputs = with_positions(model, module, without_cache(module, inputs))
    with collected(anatomy, depths) as states:
        module(**inputs)
    return LayerStates({depth: states[depth] for depth in depths}, normed=False)


def read_states(lens: LogitLens, depths, *, normalize: bool = True, **inputs) -> LayerStates:
    """The training path: head-ready states at some depths and at L, from one backbone call.

    Equals ``lens.normalize(lens.translate(d, capture(lens, depths, **inputs)[d]))`` at every depth
    d, and at L for ``final``. The model's own final norm runs only once, over all depths stacked
    along the batch, and the head module never runs. Call it inside the wrapped model's forward
    (DDP, FSDP2, ZeRO-3) and read ``lens.head`` there.

    Args:
        lens: in mode "closed"; ``lens.check_trainable()`` verifies this equality once.
        normalize: False leaves ``states`` un-normed; ``final`` is always normed.

    Raises:
        ValueError: no LogitLens; a depth outside 0..L; a mode that is not "closed";
            ``normalize=False`` of a tuned lens, or where the stream's width is not the head's; rows
            padded on the left as for ``capture``.

    Source: arXiv 2602.13567.
    """
    if not isinstance(lens, LogitLens):
        kind = type(lens).__name__
        raise ValueError(f"read_states takes a LogitLens, got {kind}; make one: LogitLens(model)")
    lens.require_closed("states for training")
    if lens.translators is not None and not normalize:
        raise ValueError("a tuned lens reads translated states through the final norm: normalize")
    depths = check_depths(depths, lens.num_layers)
    states, final = stacked_read(lens, depths, normalize=normalize, inputs=inputs)
    for depth, state in states.items():
        if state.shape[-1] != final.shape[-1]:
            raise ValueError(
                f"the state at depth {depth} is {state.shape[-1]} wide and the head reads "
                f"{final.shape[-1]}: {type(lens.model).__name__} does not support normalize=False"
            )
    return LayerStates(states, normed=normalize, final=final)


def _located(model) -> tuple[torch.nn.Module, Anatomy]:
    model = unwrap(model)
    anatomy = _ANATOMIES.get(model)
    if anatomy is None or not anatomy.still_holds(model):
        try:
            anatomy, _ = locate(model)
        except Exception as error:
            raise ValueError(f"no blocks to read in {type(model).__name__}: {error}") from error
        _ANATOMIES[model] = anatomy
    return model, anatomy


def _without_logits(model, anatomy, inputs):
    """What to run so that no logits are computed: the model if it supports that, or its backbone.

    The model is preferred because sharding and a patched forward (autocast) are attached to it.
    ``logits_to_keep`` is an empty index and not 0, which would mean all positions.
    """
    if accepts(model, "logits_to_keep", by_name=True) or anatomy.backbone is None:
        device = next(model.parameters()).device
        nothing = torch.zeros(0, dtype=torch.long, device=device)
        if accepts(model, "logits_to_keep"):
            inputs = {**inputs, "logits_to_keep": nothing}
        return model, inputs
    return anatomy.backbone, inputs
