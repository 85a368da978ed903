"""What a judge reads of a conversation."""

import pytest
from data import tool_records

from distilllens.evaluate.benchmarks import examples_of
from distilllens.evaluate.conversation import question_of

SYSTEM = {"role": "system", "content": "Answer in one word."}
ASKED = {"role": "user", "content": "Which city?"}
REPLIED = {"role": "assistant", "content": "Rome."}
AGAIN = {"role": "user", "content": "And its river?"}
LEAD = "A conversation, turn by turn; an answer continues it.\n\n"
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "Of a city.", "parameters": {}},
}
CALLS = {
    "role": "assistant",
    "tool_calls": [
        {"type": "function", "function": {"name": "weather", "arguments": {"c": "Rom"}}}
    ],
}
PARTS = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}


@pytest.mark.parametrize(
    ("messages", "tools", "question"),
    [
        ([ASKED], None, "Which city?"),
        ([SYSTEM, ASKED], None, f"{LEAD}[system]\nAnswer in one word.\n\n[user]\nWhich city?"),
        (
            [ASKED, REPLIED, AGAIN],
            None,
            f"{LEAD}[user]\nWhich city?\n\n[assistant]\nRome.\n\n[user]\nAnd its river?",
        ),
        ([ASKED], [WEATHER], f"{LEAD}[tools]\nweather: Of a city.\n\n[user]\nWhich city?"),
        (
            [ASKED],
            [{"name": "weather"}, "plain"],
            f"{LEAD}[tools]\nweather\nplain\n\n[user]\nWhich city?",
        ),
        (
            [ASKED, CALLS, {"role": "tool", "name": "weather", "content": "sun"}],
            None,
            f'{LEAD}[user]\nWhich city?\n\n[assistant]\ncalls weather({{"c": "Rom"}})\n\n'
            "[tool weather]\nsun",
        ),
        ([PARTS], None, "(image without text)\nWhat is it?"),
    ],
)
def test_all_turns_are_shown(messages, tools, question):
    """With roles, tools and calls; a single turn is its text alone."""
    assert question_of(messages, tools) == question


TURNS = [SYSTEM, ASKED, REPLIED, AGAIN]
ANSWER = {"role": "assistant", "content": "Tiber."}


@pytest.mark.parametrize(
    ("record", "shown"),
    [
        ({"messages": [*TURNS, ANSWER]}, TURNS),
        ({"prompt": TURNS, "completion": [ANSWER]}, TURNS),
        ({"prompt": TURNS[:2], "completion": [REPLIED, AGAIN, ANSWER]}, TURNS),
        ({"prompt": [ASKED], "completion": [ANSWER], **tool_records.HANDED[0]}, [ASKED]),
        ({"prompt": [ASKED], "completion": [ANSWER], **tool_records.HANDED[1]}, [ASKED]),
    ],
)
def test_every_kind_of_record_shows_all_its_turns(record, shown):
    """Tools may come as a list or as JSON text."""
    (example,) = examples_of([record], "test")
    for turn in shown:
        assert turn["content"] in example.question
    for tool in ("hill", "mat", "dog"):
        assert (f"\n{tool}\n" in example.question) == (tool in str(record.get("tools")))
    assert "Tiber" not in example.question


@pytest.mark.parametrize(
    ("record", "question"),
    [
        ({"instruction": "Say hello.", "input": "to Bo", "output": "Hi"}, "Say hello.\n\nto Bo"),
        ({"prompt": "Say hello.", "completion": "Hi"}, "Say hello."),
        ({"messages": [ASKED, ANSWER]}, "Which city?"),
        ({"prompt": [ASKED], "completion": [ANSWER]}, "Which city?"),
    ],
)
@pytest.mark.parametrize("chat", [False, True])
def test_a_single_turn_is_asked_as_ever(record, question, chat):
    """So that the replies of earlier evaluations are found again."""
    assert examples_of([record], "test", chat)[0].question == question
