"""Examples as tokens, with the position of the first target, as SFTTrainer encodes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from distilllens.data.whole_json import DECODER, TwiceNamed
from distilllens.errors import first_line

# Fields of a conversation that its chat template reads.
TEMPLATE_FIELDS = ("tools", "chat_template_kwargs")
# Of longer texts only the beginning is tokenised, where no more is wanted; in characters.
_LONG = 2**18


class Encoding(NamedTuple):
    """The tokens of a training example.

    Attributes:
        ids: its token ids.
        first: the index of its first target.
        lost: the tokens at the end of the prompt alone that are not in ``ids``: its text would
            begin an answer after other tokens than those before the first target.
        wrote_bos: whether the text begins with the token that the tokenizer puts in front.
    """

    ids: list[int]
    first: int
    lost: list[int]
    wrote_bos: bool


def encode_example(example: Mapping, tokenizer, limit: int | None = None) -> tuple[list[int], int]:
    """``(ids, first)``: the tokens of a training example, and the index of its first target.

    The tokens that a trainer reads. Text and completions end in an end-of-sequence token, messages
    do not. The target of a prompt with a completion begins where the tokens of both differ from
    those of the prompt alone; the target of any other example begins at 0.

    Args:
        example: one of ``to_training_examples``.
        limit: how many tokens are wanted; the first ones.

    Raises:
        ValueError: the example has messages, and the tokenizer has no chat template or one that
            refuses them.
    """
    ids, first, *_ = encode(example, tokenizer, limit)
    return ids, first


def encode_examples(
    examples: Iterable[Mapping], tokenizer, names: Sequence[str], limit: int | None = None
) -> list[tuple[list[int], int]]:
    """``encode_example`` of each, with the example's name in an error.

    Raises:
        ValueError: as ``encode_example``.
    """
    found = []
    for name, example in zip(names, examples, strict=True):
        try:
            found.append(encode_example(example, tokenizer, limit))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return found


def encode(example: Mapping, tokenizer, limit: int | None = None, **settings) -> Encoding:
    """``encode_example``, with what was noticed on the way.

    Args:
        settings: further arguments of ``apply_chat_template``, for messages.

    Raises:
        ValueError: as ``encode_example``.
    """
    if "messages" in example:
        ids = encode_messages(example["messages"], tokenizer, example, limit, **settings)
        return Encoding(ids, 0, [], False)
    if "text" in example:
        text = end_text(example["text"], tokenizer)
        return Encoding(encode_text(text, tokenizer, limit), 0, [], _writes_bos(text, tokenizer))
    prompt, completion = example["prompt"], example["completion"]
    if isinstance(prompt, str):
        text = prompt + end_text(completion, tokenizer)
        alone, whole = (encode_text(each, tokenizer, limit) for each in (prompt, text))
        wrote_bos = _writes_bos(text, tokenizer)
    else:
        begun = {"add_generation_prompt": True, **settings}
        alone = encode_messages(prompt, tokenizer, example, limit, **begun)
        whole = encode_messages([*prompt, *completion], tokenizer, example, limit, **settings)
        wrote_bos = False
    # A token that spans the boundary is a target.
    first = _num_shared(alone, whole)
    lost = alone[first:]
    # Some tokenizers append special tokens to a text, which follow the answer in training.
    if lost and isinstance(prompt, str) and {*lost} <= {*tokenizer.all_special_ids}:
        lost = []
    return Encoding(whole, first, lost, wrote_bos)


def encode_text(text: str, tokenizer, limit: int | None = None) -> list[int]:
    """Token ids of a text, with the special tokens that the tokenizer adds.

    A beginning-of-sequence token that the text itself begins with, as text written by a chat
    template does, is not added a second time.

    Args:
        limit: how many tokens are wanted; the first ones.
    """
    more = None if limit is None else limit + 1
    ids = _beginning(text, more, lambda part: tokenizer(part, verbose=False)["input_ids"])
    return with_one_bos(ids, tokenizer)[:limit]


def with_one_bos(ids: list[int], tokenizer) -> list[int]:
    """Token ids of a text without the first of two beginning-of-sequence tokens.

    Only a tokenizer that adds one loses it: two that a text writes to another tokenizer stay.
    """
    bos = tokenizer.bos_token_id
    doubled = bos is not None and ids[:2] == [bos, bos] and _adds_bos(tokenizer)
    return ids[1:] if doubled else ids


def encode_messages(
    messages: list[dict], tokenizer, record: Mapping, limit: int | None = None, **settings
) -> list[int]:
    """Token ids of messages, written by the tokenizer's chat template.

    Args:
        record: the record of the messages; its ``template_settings`` go to the template.
        limit: how many tokens are wanted; the first ones.
        settings: further arguments of ``apply_chat_template``.

    Raises:
        ValueError: there is no chat template, or it refuses the messages.
    """
    text = write_messages(messages, tokenizer, record, tokenize=False, **settings)
    return _beginning(
        text,
        limit,
        lambda part: tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"],
    )


def write_messages(
    messages: list[dict], tokenizer, record: Mapping, *, write: Callable | None = None, **settings
):
    """What ``apply_chat_template`` makes of messages, with the ``template_settings`` of a record.

    Args:
        write: takes its place, with its arguments.

    Raises:
        ValueError: there is no chat template, or it refuses the messages.
    """
    settings |= template_settings(record)
    ways_out = "set chat_template_path in training, or write the record as prompt and completion"
    if tokenizer.chat_template is None and settings.get("chat_template") is None:
        raise ValueError(
            f"the tokenizer cannot write these messages: it has no chat template; {ways_out} texts"
        )
    try:
        return (write or tokenizer.apply_chat_template)(messages, **settings)
    except Exception as error:  # an error that a template raises itself, or any of jinja's
        raise ValueError(
            "the tokenizer cannot write these messages: its chat template says "
            f"{first_line(error)!r}; mend them, {ways_out} texts"
        ) from error


def end_text(text: str, tokenizer) -> str:
    """A text with the end-of-sequence token of a tokenizer behind it, once."""
    end = tokenizer.eos_token or ""
    return text if text.endswith(end) else text + end


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
        ValueError: ``tools`` is neither a list of objects nor the JSON text of one.
    """
    given = tools = record.get("tools")
    if isinstance(given, str):
        try:
            tools = DECODER.decode(given)
        except TwiceNamed:
            raise
        except ValueError:
            tools = given
    if tools is None or (isinstance(tools, list) and all(isinstance(t, dict) for t in tools)):
        return tools
    what, wrong = "'tools'", given
    if isinstance(tools, list):
        at, wrong = next((i, tool) for i, tool in enumerate(tools) if not isinstance(tool, dict))
        what = f"'tools'[{at}]"
    raise ValueError(
        f"{what} is {repr(wrong)[:40]}; it must be a list of tools or the JSON text of one, and a "
        'tool is an object such as {"type": "function", "function": {...}}'
    )


def _adds_bos(tokenizer):
    return tokenizer("", verbose=False)["input_ids"][:1] == [tokenizer.bos_token_id]


def _writes_bos(text, tokenizer):
    bos = tokenizer.bos_token
    return bool(bos) and text.startswith(bos) and _adds_bos(tokenizer)


def _num_shared(ids, others):
    """The number of tokens that two sequences begin with in common."""
    pairs = enumerate(zip(ids, others, strict=False))
    return next((at for at, (ours, theirs) in pairs if ours != theirs), min(len(ids), len(others)))


def _beginning(text: str, count: int | None, ids_of: Callable[[str], list[int]]) -> list[int]:
    """``ids_of(text)[:count]``, for a long text from its beginning.

    How far a tokenizer looks ahead has no bound in general. So a beginning counts only if one more
    than twice as long has the same tokens, up to half its length at least; else it grows.
    """
    size = 16 * count if count is not None else len(text)
    size = max(size, _LONG // 4)
    while 4 * size <= len(text):
        short, long = ids_of(text[:size]), ids_of(text[: 2 * size + 1])
        if _num_shared(short, long) >= max(count, len(short) // 2):
            return long[:count]
        size *= 4
    return ids_of(text)[:count]
