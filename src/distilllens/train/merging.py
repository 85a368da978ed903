"""A model by name, with the PEFT adapter in its folder merged into its weights."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel
from torch import nn

from distilllens.loading import base_model_name, is_adapter_folder, load_adapter, load_model


def load_merged(role: str, name: str, **settings):
    """The causal LM ``name``; of the folder of an adapter, its base model with the adapter merged.

    Args:
        role: what messages call it.
        settings: of ``from_pretrained``; those of an adapter are for its base model.

    Raises:
        ValueError: it cannot be loaded, or weights would not be finite once merged.
    """
    if not is_adapter_folder(name):
        return load_model(role, name, **settings)
    return merged(load_adapted(role, name, **settings))


def merged(model: PeftModel):
    """The base model with the adapter's weights added.

    Raises:
        ValueError: weights would not be finite.
    """
    _untie(model.get_base_model())
    plain = model.merge_and_unload(safe_merge=True)
    ends = plain.get_input_embeddings(), plain.get_output_embeddings()
    text = plain.config.get_text_config()
    is_tied = getattr(text, "tie_word_embeddings", False)
    if is_tied and None not in ends and ends[0].weight is not ends[1].weight:
        # An adapter of one of the two: whoever read the old entry would tie them again.
        text.tie_word_embeddings = plain.config.tie_word_embeddings = False
    return plain


def _untie(model):
    """Give a head or embedding with an adapter a weight of its own: PEFT would add it to both."""
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    plain = [getattr(end, "base_layer", end) for end in ends]
    if None in ends or plain[0].weight is not plain[1].weight:
        return
    for end, layer in zip(ends, plain, strict=True):
        if end is not layer:
            layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)


def load_adapted(role: str, name: str, **settings) -> PeftModel:
    """The base model of the adapter in the folder ``name``, with it and not merged.

    Args:
        role, settings: as of ``load_merged``.

    Raises:
        ValueError: it cannot be loaded.
    """
    settings.pop("revision", None)
    base = load_model(role, base_model_name(Path(name)), **settings)
    return load_adapter(PeftModel, base, name)
