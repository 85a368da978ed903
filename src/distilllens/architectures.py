"""Which class of transformers a configuration names, and what such a model does."""

from __future__ import annotations

import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
)

# What loads models other than causal LMs, and which ones.
_KINDS = (
    (AutoModelForImageTextToText, transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING),
    (AutoModelForSeq2SeqLM, transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING),
    (AutoModelForMaskedLM, transformers.MODEL_FOR_MASKED_LM_MAPPING),
)


def check_writes_text(model) -> None:
    """Refuse what predicts no next token, and so is not trained here.

    Args:
        model: of transformers, or the name of its class; an unknown name passes.

    Raises:
        ValueError: a masked LM, a classifier or a bare backbone.
    """
    name = model if isinstance(model, str) else type(model).__name__
    kind = getattr(transformers, model, None) if isinstance(model, str) else model
    if not getattr(kind, "can_generate", lambda: True)():
        raise ValueError(
            f"{name} cannot be trained through the lens: it does not write text, token after "
            "token, as a causal language model does"
        )


def input_of(config) -> str:
    """What the class that a configuration names reads: "input_ids", "pixel_values" and so on."""
    names = config.architectures or [""]
    kind = getattr(transformers, names[0], None)
    read = getattr(kind, "main_input_name", "input_ids")
    # Models of images and text can be read on text alone.
    reads_text = read == "pixel_values" and kind.can_generate() and not config.is_encoder_decoder
    return "input_ids" if reads_text else read


def class_of(config, every_kind: bool):
    """The automatic class of transformers that loads what a configuration names.

    Args:
        every_kind: also encoder-decoders and masked LMs; else causal and vision-language models.
    """
    for kind, mapping in _KINDS if every_kind else _KINDS[:1]:
        known = type(config) in mapping and mapping[type(config)].__name__
        if known and known in (config.architectures or ()):
            return kind
    return AutoModelForCausalLM
