"""Examples as tokens, with the position of the first target, as SFTTrainer encodes them."""

from __future__ import annotations

import json
from collections.abc import Mapping

from distilllens.errors import first_line

# Fields of a conversation that its chat template reads.
TEMPLATE_FIELDS = ("tools", "chat_template_kwargs")


def encode_example(example: Mapping, tokenizer) -> tuple[list[int], int]:
    """``(ids, first)``: the tokens of a training example, and the index of its first target.

    The tokens that a trainer reads, for code that encodes a few examples without one. Text and
    completions end in an end-of-sequence token, messages do not. The target of a prompt with a
    completion begins where the tokens of both differ from those of the prompt alone; the target of
    any other example begins at 0.

    Args:
        example: one of ``to_training_examples``.

    Raises:
        ValueError: the example has messages, and the tokenizer has no chat template or one that
            refuses them.
    """
    if "messages" in example:
        return encode_messages(example["messages"], tokenizer, example), 0
    if "text" in example:
        return _ids(_ended(example["text"], tokenizer), tokenizer), 0
    prompt, completion = example["prompt"], example["completion"]
    if isinstance(prompt, str):
        alone = _ids(prompt, tokenizer)
        whole = _ids(prompt + _ended(completion, tokenizer), tokenizer)
    else:
        alone = encode_messages(prompt, tokenizer, example, add_generation_prompt=True)
        whole = encode_messages([*prompt, *completion], tokenizer, example)
    # A token that spans the boundary is a target.
    same = (ours == theirs for ours, theirs in zip(alone, whole, strict=False))
    first = next((at for at, equal in enumerate(same) if not equal), min(len(alone), len(whole)))
    return whole, first


def encode_messages(messages: list[dict], tokenizer, record: Mapping, **settings) -> list[int]:
    """Token ids of messages, written by the tokenizer's chat template.

    Args:
        record: the record of the messages; its ``template_settings`` go to the template.
        settings: further arguments of ``apply_chat_template``.

    Raises:
        ValueError: there is no chat template, or it refuses the messages.
    """
    settings |= template_settings(record)
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, **settings)
    except Exception as error:  # no template, or an error that a template raises itself
        raise ValueError(
            f"the tokenizer cannot write these messages: {first_line(error)}"
        ) from error
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def template_fields(record: Mapping) -> dict:
    """The fields of a record that its chat template reads, as they are in the record."""
    return {field: record[field] for field in TEMPLATE_FIELDS if field in record}


def template_settings(record: Mapping) -> dict:
    """The arguments of ``apply_chat_template`` that a record sets, as SFTTrainer reads them.

    ``tools_of`` the record, and the variables of the template in its ``chat_template_kwargs``, such
    as ``{"enable_thinking": false}``.

    Raises:
        ValueError: as ``tools_of``.
    """
    return {"tools": tools_of(record), **(record.get("chat_template_kwargs") or {})}


def tools_of(record: Mapping) -> list | None:
    """The tools of a record, JSON schemas; the record may hold them as a list or as JSON text.

    Raises:
        ValueError: ``tools`` is text, but not JSON.
    """
    tools = record.get("tools")
    if not isinstance(tools, str):
        return tools
    try:
        return json.loads(tools)
    except ValueError as error:
        raise ValueError(
            f"'tools' is {tools[:40]!r}; it must be a list of tools or the JSON text of one"
        ) from error


def _ended(text, tokenizer):
    end = tokenizer.eos_token or ""
    return text if text.endswith(end) else text + end


def _ids(text, tokenizer):
    return tokenizer(text, verbose=False)["input_ids"]
