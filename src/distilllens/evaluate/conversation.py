"""A conversation as the text that a judge reads as the question."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence


def question_of(messages: Sequence[Mapping], tools: Sequence | None = None) -> str:
    """What a conversation asks: the text of a single turn, or every turn with its role.

    A single turn of the user without tools is its text alone. Otherwise the tools are named with
    their descriptions, and calls of tools are shown with their arguments.

    Args:
        messages: those before the answer.
        tools: JSON schemas, or texts.
    """
    if len(messages) == 1 and messages[0]["role"] == "user" and not tools:
        return _content(messages[0])
    turns = ["A conversation, turn by turn; an answer continues it."]
    if tools:
        turns.append("[tools]\n" + "\n".join(map(_tool, tools)))
    return "\n\n".join([*turns, *map(_turn, messages)])


def _turn(message):
    speaker = " ".join(str(message[key]) for key in ("role", "name") if message.get(key))
    calls = message.get("tool_calls") or ()
    return "\n".join([f"[{speaker}]", *filter(None, [_content(message)]), *map(_call, calls)])


def _content(message):
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(map(_part, content))
    return "" if content is None else str(content)


def _part(part):
    if not isinstance(part, Mapping):
        return str(part)
    return str(part["text"]) if "text" in part else f"({part.get('type', 'part')} without text)"


def _call(call):
    function = _function(call)
    if not isinstance(function, Mapping):
        return f"calls {function}"
    arguments = function.get("arguments", "")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return f"calls {function.get('name')}({arguments})"


def _tool(tool):
    function = _function(tool)
    if not isinstance(function, Mapping):
        return str(function)
    about = function.get("description")
    return f"{function.get('name')}: {about}" if about else str(function.get("name"))


def _function(value):
    """The function of a tool or a call, which may be wrapped as OpenAI does."""
    return value.get("function", value) if isinstance(value, Mapping) else value
