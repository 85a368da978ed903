"""A model by name, with the PEFT adapter in its folder merged into its weights."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel

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
    return load_adapted(role, name, **settings).merge_and_unload(safe_merge=True)


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
