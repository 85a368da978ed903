"""The four kinds of records, and the errors about anything else."""

from __future__ import annotations

from distilllens.data.encode import tools_of

# A record is of the first kind of which it has a field. The order matters: published Alpaca files
# also have the finished prompt as "text", beside instruction and output.
KINDS = {
    "instruction": ("instruction", "output"),
    "prompt": ("prompt", "completion"),
    "messages": ("messages",),
    "text": ("text",),
}


def kind_of(record: dict) -> str | None:
    """``"instruction"``, ``"prompt"``, ``"messages"``, ``"text"``, or None for anything else."""
    return next((kind for kind, fields in KINDS.items() if any(f in record for f in fields)), None)


def references(record: dict) -> list[str]:
    """The reference answers of an instruction record; training uses the first."""
    output = record["output"]
    return [output] if isinstance(output, str) else list(output)


def check_record(record: object, where: str) -> str:
    """The kind of a valid record.

    Raises:
        ValueError: the record is not an object or of no known kind, or one of its fields is
            missing, empty or of the wrong type; the message starts with ``where``.
    """
    if not isinstance(record, dict):
        raise ValueError(f"{where}: {_shown(record)} is not a JSON object ({{...}})")
    kind = kind_of(record)
    if kind is None:
        raise ValueError(
            f"{where}: the record has the fields {sorted(record)}; it needs instruction and "
            "output, prompt and completion, messages, or text"
        )
    for field in KINDS[kind]:
        if field not in record:
            raise ValueError(f"{where}: the record has no {field!r}, only {sorted(record)}")
    _CHECKS[kind](record, where)
    return kind


def _check_instruction(record, where):
    _check_text(record["instruction"], "'instruction'", where)
    _check_text(record.get("input", ""), "'input'", where, may_be_empty=True)
    output = record["output"]
    if not isinstance(output, list):
        _check_text(output, "'output'", where, wanted="a text or a list of texts")
        return
    if not output:
        raise ValueError(f"{where}: 'output' is an empty list; it needs at least one reference")
    for number, reference in enumerate(output):
        _check_text(reference, f"'output'[{number}]", where)


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
        # Content may also be a list of parts, or missing beside tool calls: the template decides.
        if isinstance(message.get("content"), str):
            _check_text(message["content"], f"{place}['content']", where, may_be_empty=True)
        elif "content" not in message and "tool_calls" not in message:
            raise ValueError(f"{where}: {place} has no 'content', only {sorted(message)}")


def _check_text_record(record, where):
    _check_text(record["text"], "'text'", where)


def _check_text(value, name, where, *, may_be_empty=False, wanted="a text"):
    if not isinstance(value, str):
        raise ValueError(f"{where}: {name} is {_shown(value)}; it must be {wanted}")
    if not may_be_empty and not value.strip():
        raise ValueError(f"{where}: {name} is empty ({_shown(value)}); it must be {wanted}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:  # JSON's "\ud800" parses, but no tokenizer accepts it
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
