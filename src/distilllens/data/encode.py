"""Examples become tokens with a mark where the target begins, as SFTTrainer makes them."""

from __future__ import annotations

from distilllens.errors import first_line


def encode_example(example: dict, tokenizer) -> tuple[list[int], int]:
    """``(ids, first)``: a training example's tokens, and the place of the first that is a target.

    What a trainer reads, for those who read a few examples without one: an end-of-sequence token
    behind text and completion, none behind messages; the target of a prompt with a completion
    begins where its tokens leave those of the prompt alone, and any other begins at 0.

    Args:
        example: of ``to_training_examples``.

    Raises:
        ValueError: messages, and a tokenizer without a chat template or with one that refuses them.
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
    # Where a token spans the boundary, it is a target.
    same = (ours == theirs for ours, theirs in zip(alone, whole, strict=False))
    first = next((at for at, equal in enumerate(same) if not equal), min(len(alone), len(whole)))
    return whole, first


def encode_messages(messages: list[dict], tokenizer, example: dict, **settings) -> list[int]:
    """Tokens of messages by the tokenizer's chat template, with what else the example gives it.

    Raises:
        ValueError: no chat template, or one that refuses them.
    """
    settings |= {"tools": example.get("tools"), **(example.get("chat_template_kwargs") or {})}
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, **settings)
    except Exception as error:  # no template, or whatever a template raises of its own
        raise ValueError(
            f"the tokenizer cannot write these messages: {first_line(error)}"
        ) from error
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _ended(text, tokenizer):
    end = tokenizer.eos_token or ""
    return text if text.endswith(end) else text + end


def _ids(text, tokenizer):
    return tokenizer(text, verbose=False)["input_ids"]
