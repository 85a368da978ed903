"""The four kinds of records, and the errors about anything else."""

from __future__ import annotations

import json
from typing import NamedTuple

from distilllens.data.conversations import is_text_part, spelled_out, with_system_message
from distilllens.data.encode import TEMPLATE_FIELDS, tools_of

# The order matters: published Alpaca files also have the finished prompt as "text".
KINDS = {
    "instruction": ("instruction", "output"),
    "prompt": ("prompt", "completion"),
    "messages": ("messages",),
    "text": ("text",),
}
_FIELDS = {kind: frozenset(fields) for kind, fields in KINDS.items()}
# Every field that is read: (kind, whether it is a conversation) -> fields.
_READ = {(kind, talk): fields for kind, fields in _FIELDS.items() for talk in (True, False)}
_READ["instruction", False] |= {"input", "system", "history"}
_READ["prompt", True] |= {*TEMPLATE_FIELDS}
_READ["messages", True] |= {*TEMPLATE_FIELDS}


class Record(dict):
    """A record that knows its place, such as ``train.jsonl:3``."""

    __slots__ = ("place",)

    def __init__(self, fields: dict, place: str):
        super().__init__(fields)
        self.place = place


def place_of(record: dict, otherwise: str) -> str:
    """The place of a record that was read from a file; of any other, another name."""
    return getattr(record, "place", otherwise)


class ReadRecord(NamedTuple):
    """A row as a record.

    Attributes:
        kind: of ``KINDS``.
        record: in the one spelling that the rest of the package reads; None without a target.
        is_conversation: whether it is written by a chat template.
        unused: the fields that hold something and that nothing reads.
    """

    kind: str
    record: dict | None
    is_conversation: bool
    unused: tuple[str, ...]


def kind_of(record: dict) -> str | None:
    """``"instruction"``, ``"prompt"``, ``"messages"``, ``"text"``, or None for anything else.

    The first kind of which the record has all fields (UltraChat's rows have the text of a prompt
    beside their messages), else the first of which it has any; ``text`` only if it is of no other.
    """
    given = record.keys()
    if None in record.values():
        given = {field for field, value in record.items() if value is not None}
    for kind, fields in _FIELDS.items():
        if given >= fields and kind != "text":
            return kind
    for names in (given, record.keys()):
        for kind, fields in _FIELDS.items():
            if not fields.isdisjoint(names):
                return kind
    return None


def references(record: dict) -> list[str]:
    """The reference answers of an instruction record; training uses the first.

    Raises:
        ValueError: ``output`` is neither a text nor a list.
    """
    output = record["output"]
    if not isinstance(output, str | list | tuple):
        raise ValueError(f"'output' is {_shown(output)}; it must be a text or a list of texts")
    return [output] if isinstance(output, str) else list(output)


def with_answer(record: dict, answer: str) -> dict:
    """The record with this answer: its output, completion, or last turn of the assistant.

    A conversation that ends in another turn goes on with the answer. Fields that hold the former
    answer in another form (Alpaca's files have the finished prompt as ``text``) are left out.

    Args:
        record: as ``canonical`` makes it; it may lack an answer.

    Raises:
        ValueError: a text, which has no prompt.
    """
    kind = kind_of(record)
    if kind == "text":
        raise ValueError("a text has no prompt to answer")
    if kind is None:
        return record
    target = KINDS[kind][-1]
    others = {fields[-1] for fields in KINDS.values()} - {target}
    kept = {field: value for field, value in record.items() if field not in others}
    turn = {"role": "assistant", "content": answer}
    if kind != "messages":
        is_conversation = kind == "prompt" and isinstance(record.get("prompt"), list)
        return kept | {target: [turn] if is_conversation else answer}
    turns = kept.get(target)
    if not isinstance(turns, list) or not turns:
        return kept
    is_answered = isinstance(turns[-1], dict) and turns[-1].get("role") == "assistant"
    return kept | {target: [*(turns[:-1] if is_answered else turns), turn]}


def canonical(record: dict) -> dict:
    """The record with its conversation, if it is one, as messages of role and content.

    Raises:
        ValueError: as ``spelled_out``.
    """
    record = spelled_out(record)
    if "system" not in record:
        return record
    kind = kind_of(record)
    return with_system_message(record, kind) if kind in ("prompt", "messages") else record


def read_record(row: object, where: str, *, skip_empty: bool, chat: bool = False) -> ReadRecord:
    """A row as a record.

    Args:
        where: the place of the row, for messages.
        skip_empty: accept a row without a target: its record is None.
        chat: whether a chat template will write instruction records.

    Raises:
        ValueError: the row is not an object or of no known kind, or one of its fields is
            missing, empty or of the wrong type; the message starts with ``where``.
    """
    if not isinstance(row, dict):
        raise ValueError(f"{where}: {_shown(row)} is not a JSON object ({{...}})")
    try:
        record = canonical(row)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    kind = kind_of(record) or kind_of(row)
    if kind is None and "conversations" in row:
        if row["conversations"] is not None:
            raise ValueError(
                f"{where}: 'conversations' is {_shown(row['conversations'])}; it must be a list of "
                "turns"
            )
        kind = "messages"
    if kind is None:
        raise ValueError(
            f"{where}: the record has the fields {sorted(row)}; it needs instruction and "
            "output, prompt and completion, messages or conversations, or text"
        )
    conversation = kind == "messages" or (kind == "prompt" and isinstance(record.get(kind), list))
    if skip_empty and _has_no_target(kind, row, record):
        return ReadRecord(kind, None, conversation, ())
    for field in KINDS[kind]:
        if field not in record:
            raise ValueError(f"{where}: the record has no {field!r}, only {sorted(record)}")
    _CHECKS[kind](record, where)
    unused = record.keys() - _READ[kind, conversation]
    if chat and kind == "instruction":
        _check_template_fields(record, where)
        unused -= {*TEMPLATE_FIELDS}
    unused = tuple(field for field in unused if record[field] not in ("", [], {}))
    return ReadRecord(kind, Record(record, where), conversation, unused)


def _has_no_target(kind, row, record):
    """Whether the field of the target is there and holds nothing."""
    target = KINDS[kind][-1]
    if target not in record:
        return target in row or (target == "messages" and "conversations" in row)
    held = record[target]
    if isinstance(held, list) and kind != "instruction":
        return not held or _says_nothing(kind, held)  # messages, of which a text is none
    texts = held if isinstance(held, list) else [held]
    return all(isinstance(text, str) and not text.strip() for text in texts)


def _says_nothing(kind, messages):
    """Whether a completion is messages without content and without calls."""
    return kind == "prompt" and all(
        isinstance(message, dict)
        and message.get("content") in ("", None, [])
        and not message.get("tool_calls")
        for message in messages
    )


def _check_instruction(record, where):
    _check_text(record["instruction"], "'instruction'", where)
    _check_text(record.get("input", ""), "'input'", where, may_be_empty=True)
    _check_turns(record, where)
    output = record["output"]
    if not isinstance(output, list):
        _check_text(output, "'output'", where, wanted="a text or a list of texts")
        return
    if not output:
        raise ValueError(f"{where}: 'output' is an empty list; it needs at least one reference")
    for number, reference in enumerate(output):
        _check_text(reference, f"'output'[{number}]", where)


def _check_turns(record, where):
    _check_text(record.get("system", ""), "'system'", where, may_be_empty=True)
    history = record.get("history", [])
    if not isinstance(history, list):
        raise ValueError(f"{where}: 'history' is {_shown(history)}; it must be a list of pairs")
    for number, turn in enumerate(history):
        place = f"'history'[{number}]"
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise ValueError(f"{where}: {place} is {_shown(turn)}; it must be [question, answer]")
        for text in turn:
            _check_text(text, place, where, may_be_empty=True, wanted="two texts")


def _check_prompt(record, where):
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, list) or isinstance(completion, list):
        _check_messages_field(prompt, "'prompt'", where)
        _check_messages_field(completion, "'completion'", where)
        _check_template_fields(record, where)
        return
    _check_text(prompt, "'prompt'", where, may_be_empty=True)
    _check_text(completion, "'completion'", where)


def _check_messages(record, where):
    _check_messages_field(record["messages"], "'messages'", where)
    _check_template_fields(record, where)


def _check_template_fields(record, where):
    settings = record.get("chat_template_kwargs")
    if settings is not None and not isinstance(settings, dict):
        raise ValueError(
            f"{where}: 'chat_template_kwargs' is {_shown(settings)}; it must be an object, such as "
            '{"enable_thinking": false}'
        )
    try:
        tools_of(record)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    for field in TEMPLATE_FIELDS:
        _check_encodable(record.get(field), f"{field!r}", where)


def _check_messages_field(messages, name, where):
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{where}: {name} is {_shown(messages)}; it must be a list of messages")
    for number, message in enumerate(messages):
        place = f"{name}[{number}]"
        if not isinstance(message, dict) or "role" not in message:
            raise ValueError(
                f"{where}: {place} is {_shown(message)}; a message has a role and a content"
            )
        _check_text(message["role"], f"{place}['role']", where)
        _check_content(message, place, where)
        if len(message) > 2:
            _check_encodable(message, place, where)


def _check_content(message, place, where):
    content = message.get("content")
    if content is None:
        # Calls, or a model's own kind of content: the template decides.
        if not message.keys() - {"role", "content", "name"}:
            raise ValueError(f"{where}: {place} has no 'content', only {sorted(message)}")
    elif isinstance(content, list):
        # Text parts alone are a text by now.
        for number, part in enumerate(content):
            if not is_text_part(part):
                kind = part.get("type") if isinstance(part, dict) else None
                raise ValueError(
                    f"{where}: {place}['content'][{number}] is "
                    f"{f'a part of type {kind!r}' if kind else _shown(part)}; only text parts "
                    '({"type": "text", "text": ...}) can be trained on'
                )
        if not content:
            raise ValueError(f"{where}: {place}['content'] is an empty list; it must be a text")
    else:
        _check_text(content, f"{place}['content']", where, may_be_empty=True)


def _check_text_record(record, where):
    _check_text(record["text"], "'text'", where)


def _check_text(value, name, where, *, may_be_empty=False, wanted="a text"):
    if not isinstance(value, str):
        raise ValueError(f"{where}: {name} is {_shown(value)}; it must be {wanted}")
    if not may_be_empty and not value.strip():
        raise ValueError(f"{where}: {name} is empty ({_shown(value)}); it must be {wanted}")
    if not value.isascii():
        _check_encodable(value, name, where)


def _check_encodable(value, name, where):
    """Refuse text, at any depth, that JSON can spell ("\\ud800") but no tokenizer accepts."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: {name} has half a surrogate pair at character {error.start}, "
            "which cannot be encoded as UTF-8"
        ) from error


def _shown(value):
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


_CHECKS = {
    "instruction": _check_instruction,
    "prompt": _check_prompt,
    "messages": _check_messages,
    "text": _check_text_record,
}
