"""What a model predicts, and at which places: found by its inputs and by what its logits see."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from distilllens.lens.probe import (
    input_name,
    inputs_around,
    logits_of,
    probe_ids,
    undisturbed,
    without_cache,
)
from distilllens.lens.structure import worst

Kind = Literal["causal", "bidirectional", "encoder-decoder", "images"]
WHY_NOT_TRAINED = {
    "bidirectional": "its logits at a position depend on later tokens, as those of a masked LM do, "
    "and training compares predictions of the next token",
    "encoder-decoder": "its decoder reads an encoder, and a batch of training has one sequence of "
    "tokens",
    "images": "it reads images, and a batch of training has tokens",
}
# Relative to the largest logit; rounding in a mixture of experts, which sees other batches.
_ROUNDING, _ROUNDING_IN_HALF = 1e-5, 2e-2


def check_kind(model: nn.Module) -> None:
    """Refuse what has no logits to read.

    Raises:
        ValueError: not a model of transformers, or one without an output embedding that is no image
            classifier either.
    """
    if getattr(model, "config", None) is None or not hasattr(model, "get_output_embeddings"):
        raise ValueError("it is not a transformers model with a language-model head")
    if input_name(model) == "pixel_values" and getattr(model.config, "num_labels", 0):
        return
    if model.get_output_embeddings() is None:
        raise ValueError("it has no output embedding, so no logits over a vocabulary")


def kind_of(model: nn.Module) -> Kind:
    """Which predictions a model's logits are.

    Returns:
        - "causal": of the next token, at each position.
        - "bidirectional": of the token at the position itself, as by a masked LM: its logits depend
          on later tokens.
        - "encoder-decoder": of the next token, at each position of ``decoder_input_ids``.
        - "images": of the class of each of ``pixel_values``.
    """
    name = input_name(model)
    if name != "input_ids":
        return "images" if name == "pixel_values" else "encoder-decoder"
    ids = probe_ids(model)
    other = ids.clone()
    other[:, 1:] = ids[:, 1:].flip(0)
    with undisturbed(model):
        first, second = (
            logits_of(model(**without_cache(model, inputs_around(model, each))))[:, 0]
            for each in (ids, other)
        )
    is_half = first.dtype in (torch.bfloat16, torch.float16)
    rounding = _ROUNDING_IN_HALF if is_half else _ROUNDING
    return "causal" if worst(first, second) <= rounding else "bidirectional"


def check_same_kind(*lenses) -> None:
    """Refuse models whose predictions are of different things, so that no comparison is right.

    Raises:
        ValueError: with both kinds.
    """
    first = lenses[0]
    for lens in lenses[1:]:
        if lens.kind != first.kind:
            names = [f"{type(each.model).__name__} ({each.kind})" for each in (first, lens)]
            raise ValueError(f"{names[0]} and {names[1]} predict different things")
