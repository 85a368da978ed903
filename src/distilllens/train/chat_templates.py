"""What a run asks of a chat template: marks around answers, an end, the teacher's understanding."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

# A public name of a module that transformers does not document: it alone says which characters a
# template marks.
from transformers.utils.chat_template_utils import render_jinja_template
from trl import get_training_chat_template, is_conversational

from distilllens.data.encode import encode, write_messages

_NONE = "assistant_only_loss is set, and the chat template marks no token as the assistant's"
_NO_MARKS = f"{_NONE}: it has no {{% generation %}} around answers"
_OTHER_TEMPLATE = "set chat_template_path to a template that has the marks"
_WAYS_OUT = (
    "write the rows as prompt and completion, both lists of messages, whose loss is on the "
    "completion without it; or as instruction and output, whose loss is on the output, with chat: "
    f"true; or {_OTHER_TEMPLATE}"
)
_SHOWN = 48  # characters of what a template writes


def check_marks(tokenizer, example: Mapping):
    """Refuse ``assistant_only_loss`` where nothing says which tokens are the assistant's.

    TRL puts the marks into the templates of common families itself.

    Args:
        tokenizer: with the chat template of training.
        example: the first of ``to_training_examples``.

    Raises:
        ValueError: an example that is no conversation, or a chat template without marks, into
            which TRL cannot put them either; with the ways out.
    """
    if not is_conversational(example):
        kind = "text, all of which is trained; leave it out"
        if "prompt" in example or "instruction" in example:
            kind = (
                "prompts with completions as text, whose loss is on the completion without it; "
                "leave it out, or set chat: true to write instruction records as messages"
            )
        raise ValueError(f"assistant_only_loss needs conversations, and the data are {kind}")
    if tokenizer.chat_template is None:
        raise ValueError(
            "assistant_only_loss needs a chat template that marks the answers, and the "
            "tokenizer has none; set chat_template_path"
        )
    if _has_marks(tokenizer.chat_template):
        return
    try:
        get_training_chat_template(tokenizer)
    except ValueError as error:
        ways_out = _WAYS_OUT
        if "prompt" in example:
            ways_out = (
                "leave it out, since the loss of these rows is on the completion anyway; or "
                f"{_OTHER_TEMPLATE}"
            )
        raise ValueError(f"{_NO_MARKS}; {ways_out}") from error


def unmarked(messages: list[dict]) -> str:
    """What is wrong with messages of which no token is marked as the assistant's."""
    if any(message.get("role") == "assistant" for message in messages):
        return f"{_NO_MARKS}; {_WAYS_OUT}"
    return f"{_NONE}: no message is; leave the row out"


def assistant_tokens(
    messages: list[dict], tokenizer, record: Mapping, **settings
) -> tuple[list[int], list[bool]]:
    """Token ids of messages, and which of them the chat template marks as the assistant's.

    Marked is every token of which a character lies between the marks. ``apply_chat_template`` looks
    for the tokens of the first and the last character, and where a tokenizer drops one of these
    (a space or line break) it marks all that follows, other speakers included, or nothing more.

    Args:
        record: the record of the messages, as for ``encode_messages``.
        settings: further arguments of ``apply_chat_template``, such as ``chat_template``.

    Raises:
        ValueError: the chat template refuses the messages, or a tokenizer that does not say where
            its tokens lie.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"assistant_only_loss needs a fast tokenizer, and this is a {type(tokenizer).__name__}"
        )

    def write(messages, tools=None, chat_template=None, **settings):
        texts, spans = render_jinja_template(
            [[{k: v for k, v in m.items() if v is not None} for m in messages]],
            tools=tools,
            chat_template=tokenizer.get_chat_template(chat_template, tools),
            return_assistant_tokens_mask=True,
            **{**tokenizer.special_tokens_map, **settings},
        )
        return texts[0], spans[0]

    text, spans = write_messages(messages, tokenizer, record, write=write, **settings)
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return found["input_ids"], [
        any(start < last and first < end for first, last in spans)
        for start, end in found["offset_mapping"]
    ]


def unended_answers(tokenizer, ends: Iterable[int], example: Mapping) -> str | None:
    """What is wrong where no token ends the answer of a conversation, a sentence; else None.

    Args:
        ends: the tokens at which generation ends.
    """
    messages = example.get("messages") or [*example["prompt"], *example["completion"]]
    if messages[-1].get("role") != "assistant":
        return None
    asked = {**example, "prompt": messages[:-1], "completion": messages[-1:]}
    asked.pop("messages", None)
    found = encode(asked, tokenizer)
    answer, ends = found.ids[found.first :], [*ends]
    if not answer or {*ends} & {*answer}:
        return None
    known = " or ".join(repr(tokenizer.decode([end])) for end in ends)
    pieces = [(token, tokenizer.decode([token])) for token in answer]
    last, text = next(((t, piece) for t, piece in reversed(pieces) if piece.strip()), (None, ""))
    if last in tokenizer.get_added_vocab().values():
        return (
            f"the chat template ends answers with {text!r}, and generation ends at {known} only: "
            f"set eos_token: '{text}'"
        )
    return (
        f"the chat template does not end answers with {known}, at which generation ends, so the "
        "student does not learn to stop: set chat_template_path to a template that does"
    )


def other_template(student, teacher, example: Mapping) -> str | None:
    """How the teacher's chat template would write a conversation, if otherwise than the student's.

    Args:
        student, teacher: tokenizers; both models read what the student's writes.

    Returns:
        A sentence; None if both write the same.
    """
    ours = _written(student, example)
    both_read = "both models read what the student's chat template writes"
    if teacher.chat_template is None:
        return f"{both_read}; the teacher has none of its own"
    try:
        theirs = _written(teacher, example)
    except ValueError as error:
        return f"{both_read}; the teacher's own refuses the first example: {error}"
    if ours == theirs:
        return None
    at = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), 0)
    return (
        f"{both_read}, and the teacher's own differs: the first example has {_from(ours, at)} "
        f"where the teacher's would write {_from(theirs, at)}"
    )


def _written(tokenizer, example):
    messages = example.get("messages") or [*example["prompt"], *example["completion"]]
    return write_messages(messages, tokenizer, example, tokenize=False)


def _from(text, at):
    """A text from a place on, shortened."""
    part = text[at : at + _SHOWN]
    return repr(part) + (" ..." if len(text) > at + _SHOWN else "")


def _has_marks(chat_template):
    if isinstance(chat_template, dict):  # named variants
        chat_template = chat_template["default"]
    return re.search(r"\{%-?\s*generation\s*-?%\}", chat_template) is not None
