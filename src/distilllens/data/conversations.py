"""Conversations as published data spell them -> ``messages`` of role and content."""

from __future__ import annotations

from distilllens.data.whole_json import DECODER, TwiceNamed

# ShareGPT's names of speakers, and those that followed it.
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "function_response": "tool",
    "observation": "tool",
}
_CALLS = "function_call"  # an assistant's turn whose value is the JSON text of its calls
# Never a plain text: text in these fields can only be JSON.
_JSON_FIELDS = ("messages", "conversations", "history", "chat_template_kwargs")
_MESSAGES_FIELDS = ("messages", "prompt", "completion")


def spelled_out(record: dict) -> dict:
    """The same record in the one spelling that the rest of the room reads.

    - ``None`` in a field means that the record does not have it.
    - ``conversations``, with ``from`` and ``value`` or role and content, become ``messages``.
    - ``messages``, ``conversations``, ``history`` and ``chat_template_kwargs`` may be JSON text.
    - Content that is a list of text parts becomes their text: templates that do not know parts
      would print the list.

    Whatever is of another shape is left for ``check_record``. A record that needs no change is
    returned as it is.

    Raises:
        ValueError: a turn of ``conversations`` is by an unknown speaker or has no text.
    """
    is_text = not isinstance(record.get("prompt"), list) and record.keys().isdisjoint(_JSON_FIELDS)
    if is_text and None not in record.values():
        return record
    new = {field: value for field, value in record.items() if value is not None}
    for field in _JSON_FIELDS:
        if isinstance(new.get(field), str):
            new[field] = parsed(new[field])
    if "messages" not in new and isinstance(new.get("conversations"), list):
        turns = new.pop("conversations")
        new["messages"] = [_message(turn, number) for number, turn in enumerate(turns)]
    for field in _MESSAGES_FIELDS:
        if isinstance(new.get(field), list):
            new[field] = list(map(_with_text, new[field]))
    return record if new == record else new


def with_system_message(record: dict, field: str) -> dict:
    """The record with the text of ``system`` as the first message of ``field``.

    The record is returned as it is if ``field`` begins with a system message of its own, or is no
    list of messages.
    """
    system, messages = record.get("system"), record.get(field)
    if not isinstance(system, str) or not system.strip():
        return record
    if not isinstance(messages, list) or not messages or not isinstance(messages[0], dict):
        return record
    if messages[0].get("role") == "system":
        return record
    others = {name: value for name, value in record.items() if name != "system"}
    return others | {field: [{"role": "system", "content": system}, *messages]}


def parsed(text: str) -> object:
    """The value of JSON text; other text is returned as it is.

    Raises:
        TwiceNamed: an object in it has two fields of one name.
    """
    try:
        return DECODER.decode(text)
    except TwiceNamed:
        raise
    except (ValueError, RecursionError):
        return text


def is_text_part(part: object) -> bool:
    """Whether a part of a message's content is text."""
    return (
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
    )


def _message(turn, number):
    if not isinstance(turn, dict) or "from" not in turn:
        return turn
    place, speaker, value = f"'conversations'[{number}]", turn["from"], turn.get("value")
    more = {key: item for key, item in turn.items() if key not in ("from", "value")}
    if not isinstance(value, str):
        raise ValueError(f"{place}['value'] is {value!r}; it must be a text")
    if speaker == _CALLS:
        return {"role": "assistant", "content": "", "tool_calls": _calls(value, place)} | more
    if not isinstance(speaker, str) or speaker not in ROLES:
        raise ValueError(f"{place}['from'] is {speaker!r}; known are {', '.join([*ROLES, _CALLS])}")
    return {"role": ROLES[speaker], "content": value} | more


def _calls(value, place):
    calls = parsed(value)
    calls = [calls] if isinstance(calls, dict) else calls
    if not isinstance(calls, list) or not all(isinstance(c, dict) and "name" in c for c in calls):
        raise ValueError(
            f"{place} is a {_CALLS}, so its value must be the JSON text of an object with name and "
            f"arguments, or of a list of these; it is {value[:40]!r}"
        )
    return [{"type": "function", "function": call} for call in calls]


def _with_text(message):
    parts = message.get("content") if isinstance(message, dict) else None
    if not isinstance(parts, list) or not parts or not all(map(is_text_part, parts)):
        return message
    return message | {"content": "".join(part["text"] for part in parts)}
