"""Texts for models that do not read one text from left to right, and models that read none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from distilllens.architectures import input_of
from distilllens.data.encode import encode_text
from distilllens.lens import LogitLens
from distilllens.lens.reading import Passage
from distilllens.loading import positions_of

_DECODED = (
    " The texts shown are the decoder's: a response, or what the first model answers to the prompt."
)
# What the first model writes to a prompt, at most.
_ANSWER_TOKENS = 64
_OWN = (
    " Each position predicts the token in its own place, which these models see; write the mask "
    "token where they are to guess."
)


def check_kinds(models: Sequence[tuple[str, str]], configs: Sequence) -> bool:
    """Whether the models are encoder-decoders; each must read text, and all alike.

    Args:
        models: role and name of each.

    Raises:
        ValueError: with the model that differs, and how.
    """
    for (role, name), config in zip(models, configs, strict=True):
        if (read := input_of(config)) != "input_ids":
            raise ValueError(
                f"the {role} {name!r} reads {read}, and inspect has only text; "
                "distilllens.lens.trajectory reads such a model in Python"
            )
    kinds = [bool(config.is_encoder_decoder) for config in configs]
    if len(set(kinds)) > 1:
        other = kinds.index(not kinds[0])
        words = {True: "is an encoder-decoder", False: "is none"}
        raise ValueError(
            f"{models[0][1]!r} {words[kinds[0]]}, and {models[other][1]!r} {words[kinds[other]]}: "
            "their predictions cannot be compared"
        )
    return kinds[0]


def encode_pairs(examples, tokenizer, names: Sequence[str], length: int) -> list[tuple]:
    """``(source, answer)``, token ids of each example: for the encoder, and for the decoder.

    Raises:
        ValueError: an example that is no prompt with a completion, as texts.
    """
    found = []
    for name, example in zip(names, examples, strict=True):
        prompt, completion = example.get("prompt"), example.get("completion")
        if not isinstance(prompt, str) or not isinstance(completion, str):
            raise ValueError(f"{name} is no prompt with a response, which an encoder-decoder reads")
        answer = tokenizer(text_target=completion.strip(), verbose=False)["input_ids"]
        pair = encode_text(prompt.strip(), tokenizer, length), answer[:length]
        found.append(tuple(torch.tensor(ids, dtype=torch.long) for ids in pair))
    return found


def tokens_of(passage: Passage) -> list[int]:
    """All token ids of a passage, those for an encoder first."""
    source = [] if passage.source is None else passage.source.tolist()
    return source + passage.ids.tolist()


def as_read(lens: LogitLens, passages: Sequence[Passage]) -> list[Passage]:
    """Passages as a model of this kind reads them, with the same tokens as targets."""
    if lens.kind == "encoder-decoder":
        return [_decoded(lens.model, passage) for passage in passages]
    if lens.kind == "bidirectional":
        return [_in_place(passage) for passage in passages]
    return list(passages)


def _in_place(passage):
    """Every token, or those that were targets: a position predicts the token there."""
    num = len(passage.positions)
    return passage if num == len(passage.ids) else replace(passage, positions=passage.positions + 1)


@torch.no_grad()
def _decoded(model, passage):
    """Every token of an answer, behind the one that starts the decoder.

    Of a passage without a source, its text is the source, and the model writes the answer itself,
    the likeliest token each time.
    """
    source = passage.source
    if source is None:
        source, inputs = passage.ids, passage.ids[None].to(model.device)
        ids = model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=min(_ANSWER_TOKENS, (positions_of(model.config) or math.inf) - 1),
            do_sample=False,
            num_beams=1,
            use_cache=False,  # transformers makes T5's for as many blocks as its encoder has
        )[0].cpu()
    else:
        labels = passage.ids[None].to(model.device)
        start = model.prepare_decoder_input_ids_from_labels(labels)[0, :1].cpu()
        ids = torch.cat([start, passage.ids])
    return Passage(ids, torch.arange(len(ids) - 1), source)


def note_of(lens: LogitLens) -> str:
    """What a reader of the page must know of this kind; a sentence, or nothing."""
    return {"bidirectional": _OWN, "encoder-decoder": _DECODED}.get(lens.kind, "")
