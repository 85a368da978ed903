"""Capture a model's hidden states at chosen depths in one forward pass."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from distilllens.lens.anatomy import Anatomy, locate
from distilllens.lens.kind import WHY_NOT_TRAINED
from distilllens.lens.logit_lens import LogitLens
from distilllens.lens.positions import with_positions
from distilllens.lens.probe import accepts, input_name, unwrap, without_cache
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
    padding, unless ``position_ids`` are given. An encoder-decoder gives the stream of its decoder;
    if no ``decoder_input_ids`` are given, they are made from the labels as the model does it.

    Args:
        model: a model of transformers (optionally wrapped by PEFT) or its LogitLens. The blocks of
            a bare model are located once, by a tiny forward.
        depths: integers from 0 (embeddings) to L (before the final norm), in any order.
        inputs: ``input_ids [B, T]``, ``attention_mask`` and so on, passed on to the model.

    Raises:
        ValueError: a depth outside 0..L, a model whose blocks cannot be found, or rows padded on
            the left for a model that cannot read them, or an encoder-decoder without a text for its
            decoder.
    """
    if isinstance(model, LogitLens):
        model, anatomy = model.model, model.anatomy
    else:
        model, anatomy = _located(model)
    depths = check_depths(depths, anatomy.num_layers)
    labels = inputs.pop("labels", None)
    if input_name(model) == "decoder_input_ids":
        inputs = with_decoder_inputs(model, labels, inputs)
    module, inputs = _without_logits(model, anatomy, inputs)
    inputs = without_cache(module, inputs)
    if input_name(model) == "input_ids":
        inputs = with_positions(model, module, inputs)
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
        ValueError: no LogitLens; a depth outside 0..L; a mode that is not "closed"; an
            encoder-decoder; ``normalize=False`` of a tuned lens, or where the stream's width is not
            the head's; rows padded on the left as for ``capture``.

    Source: arXiv 2602.13567.
    """
    if not isinstance(lens, LogitLens):
        kind = type(lens).__name__
        raise ValueError(f"read_states takes a LogitLens, got {kind}; make one: LogitLens(model)")
    if (name := input_name(lens.model)) != "input_ids":
        why = WHY_NOT_TRAINED["images" if name == "pixel_values" else "encoder-decoder"]
        raise ValueError(
            f"read_states does not read {type(lens.model).__name__}: {why}; use capture and "
            "lens.logits"
        )
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


def with_decoder_inputs(model, labels, inputs: dict) -> dict:
    """``inputs`` of an encoder-decoder with ``decoder_input_ids``, made from labels if missing.

    Raises:
        ValueError: neither is given. Some models would take the encoder's text instead.
    """
    if any(inputs.get(name) is not None for name in ("decoder_input_ids", "decoder_inputs_embeds")):
        return inputs
    if labels is None:
        raise ValueError(
            f"{type(model).__name__} is an encoder-decoder: pass decoder_input_ids, the text whose "
            "predictions are to be read, or labels"
        )
    if not hasattr(model, "prepare_decoder_input_ids_from_labels"):
        raise ValueError(
            f"{type(model).__name__} makes no decoder_input_ids from labels: pass decoder_input_ids"
        )
    return inputs | {"decoder_input_ids": model.prepare_decoder_input_ids_from_labels(labels)}


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
    keeps = accepts(model, "logits_to_keep", by_name=True)
    if keeps or not _backbone_reads(input_name(model), anatomy.backbone):
        device = next(model.parameters()).device
        nothing = torch.zeros(0, dtype=torch.long, device=device)
        if accepts(model, "logits_to_keep"):
            inputs = {**inputs, "logits_to_keep": nothing}
        return model, inputs
    return anatomy.backbone, inputs


def _backbone_reads(name, backbone):
    """Whether there is a backbone, and it reads what the model does; T5's is only its decoder."""
    if backbone is None or name != "decoder_input_ids":
        return backbone is not None
    return accepts(backbone, name, by_name=True)
