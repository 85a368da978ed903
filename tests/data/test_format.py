"""Records become prompts and responses that tokenize apart."""

import json
import os
from pathlib import Path

import pytest
from data import tool_records

from distilllens.data import (
    drop_long_prompts,
    format_instruction,
    format_prompt,
    instruction_messages,
    load_records,
    to_dataset,
    to_training_examples,
)
from distilllens.data.synthetic_tokenizer import synthetic_tokenizer

SHARED = os.environ.get("DISTILLLENS_SHARED")
# Typed from Stanford Alpaca's published prompts, not taken from the code.
PLAIN = """Below is an instruction that describes a task. \
Write a response that appropriately completes the request.

### Instruction:
Name {one} colour.

### Response:
"""
WITH_INPUT = """Below is an instruction that describes a task, paired with an input that provides \
further context. Write a response that appropriately completes the request.

### Instruction:
Name {one} colour.

### Input:
The sky {input}.

### Response:
"""


def test_prompts_equal_alpacas_text():
    """Both templates are Alpaca's to the letter, and braces in a record are only text."""
    record = {"instruction": "Name {one} colour.", "output": "Blue"}
    assert format_prompt(record) == format_prompt({**record, "input": ""}) == PLAIN
    assert format_prompt({**record, "input": "The sky {input}."}) == WITH_INPUT


SYSTEM = """Answer like a pirate.

### Instruction:
Who?

### Response:
Me.

### Instruction:
Name {one} colour.

### Response:
"""


def test_system_and_history_are_in_the_prompt():
    """The system text stands for Alpaca's first sentences; earlier turns have the same form."""
    record = {"instruction": "Name {one} colour.", "output": "Blue"}
    turns = {"system": "Answer like a pirate.", "history": [["Who?", "Me."]]}
    assert format_instruction({**record, **turns}) == {"prompt": SYSTEM, "completion": "Blue"}
    alone = PLAIN.split("###")[0] + SYSTEM.removeprefix("Answer like a pirate.\n\n")
    assert format_prompt({**record, "history": turns["history"]}) == alone
    assert format_prompt({**record, "system": "", "history": []}) == PLAIN
    one = {**record, "system": "Go.", "input": "The sky {input}."}
    assert format_prompt(one) == "Go.\n\n### Instruction:" + WITH_INPUT.split("### Instruction:")[1]


def test_a_chat_template_gets_the_same_turns():
    """System, history and instruction are messages of their own."""
    record = {"instruction": "a", "input": "b", "output": "c"}
    turns = {"system": "s", "history": [["q", "r"]]}
    asked = {"role": "user", "content": "a\n\nb"}
    assert instruction_messages(record) == [asked]
    assert instruction_messages({**record, **turns}) == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "r"},
        asked,
    ]


def test_records_need_not_come_from_a_file():
    """Spellings of other tools are read wherever records are given."""
    spoken = {"conversations": [{"from": "human", "value": "a"}], "system": "s"}
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]
    assert to_training_examples([spoken]) == [{"messages": messages}]
    assert list(to_dataset([spoken])) == [{"messages": messages}]


def test_a_table_holds_any_json():
    """Values that a parser of the table would change or refuse come back equal."""
    values = [0.94, 1e-300, 10**30, -0.0, "1", "", "\u2028", [], {}, None, True]
    record = {"messages": [{"role": "user", "content": "a", "more": values}]}
    assert repr(list(to_dataset([record]))) == repr([record])
    with pytest.raises(ValueError, match=r"at a time, .* completion, prompt and text$"):
        to_dataset([{"text": "a"}, {"prompt": "a", "completion": "b"}])
    talk = {"prompt": [{"role": "user", "content": "a"}], "completion": record["messages"]}
    with pytest.raises(ValueError, match=r"either text or messages; .* completion, prompt$"):
        to_dataset([talk, {"prompt": "a", "completion": "b"}])


def test_a_record_without_a_reference_is_refused():
    """A row of somebody's own data set has not been checked by load_records."""
    with pytest.raises(ValueError, match="'output' is None; it must be a text or a list of texts"):
        format_instruction({"instruction": "a", "output": None})


def test_the_first_reference_is_the_completion():
    """Training uses the first reference; leading white space is removed."""
    record = {"instruction": "Name {one} colour.", "output": "\n\n Blue \n"}
    assert format_instruction(record) == {"prompt": PLAIN, "completion": "Blue \n"}
    many = {**record, "output": ["Red", "Blue"]}
    assert format_instruction(many) == {"prompt": PLAIN, "completion": "Red"}


@pytest.mark.parametrize(
    "example",
    [
        {"prompt": "a", "completion": " b"},
        {"messages": [{"role": "user", "content": "a"}], "tools": []},
        {"text": "a"},
    ],
)
def test_other_kinds_pass_as_they_are(example):
    """What SFTTrainer reads is passed on; fields it does not read are left out."""
    assert to_training_examples([{**example, "source": "x"}]) == [example]


def test_a_dataset_holds_the_training_examples():
    """The table's rows are the examples, in order."""
    records = [{"instruction": "a", "output": "b"}, {"instruction": "c", "output": ["d", "e"]}]
    assert list(to_dataset(records)) == to_training_examples(records)


def test_unknown_kinds_are_refused():
    """A record of no known kind is an error."""
    with pytest.raises(ValueError, match=r"fields .'question'. is of no known kind"):
        to_training_examples([{"question": "a"}])


def test_long_prompts_are_dropped_and_counted():
    """A prompt of exactly the limit stays; examples without a prompt always do."""
    tokenizer = synthetic_tokenizer()
    examples = [{"prompt": "x" * n, "completion": "y" * 99} for n in (3, 5, 4)]
    plain = {"text": "z" * 99}
    assert drop_long_prompts(examples, tokenizer, 4) == ([examples[0], examples[2]], 1)
    assert drop_long_prompts([plain], tokenizer, 4) == ([plain], 0)
    assert drop_long_prompts([], tokenizer, 4) == ([], 0)
    with pytest.raises(
        ValueError, match=r"all 3 prompts .* max_prompt_length = 2 .*shortest has 3"
    ):
        drop_long_prompts(examples, tokenizer, 2)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        drop_long_prompts(examples, tokenizer, 0)


def test_conversational_prompts_are_counted_through_the_chat_template():
    """A prompt of messages is as long as the template renders it, generation prompt included."""
    tokenizer = synthetic_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}>>"
        "{% endif %}"
    )
    prompt = [{"role": "user", "content": "xyz"}]
    example = {"prompt": prompt, "completion": [{"role": "assistant", "content": "b"}]}
    assert drop_long_prompts([example], tokenizer, 5) == ([example], 0)
    with pytest.raises(ValueError, match="the shortest has 5"):
        drop_long_prompts([example], tokenizer, 4)


@pytest.mark.parametrize("number", range(4))
def test_long_prompts_are_counted_with_their_tools(number):
    """Tools, as a list or JSON text, and template settings count towards the length."""
    tokenizer, record = tool_records.tokenizer(), tool_records.conversations()[number]
    # "user", three words, <eos> and "assistant" are six tokens.
    length = len(tool_records.WRITTEN[number].split()) + 6
    assert drop_long_prompts([record], tokenizer, length) == ([record], 0)
    with pytest.raises(ValueError, match=f"the shortest has {length}"):
        drop_long_prompts([record], tokenizer, length - 1)


def test_a_table_keeps_every_record_as_it_is():
    """Keys of one record's tools or settings do not appear in another record as None."""
    rows = list(to_dataset(tool_records.messages()))
    for row, record in zip(rows, tool_records.messages(), strict=True):
        tools = record.get("tools")
        assert row["tools"] == (json.loads(tools) if isinstance(tools, str) else tools)
        assert row["chat_template_kwargs"] == record.get("chat_template_kwargs", {})
        assert row["messages"] == record["messages"]


def test_plain_text_has_no_template_to_hand_tools_to():
    """A field named tools in a text record is left out like any other."""
    example = {"prompt": "a", "completion": "b"}
    assert to_training_examples([{**example, "tools": "hammer"}]) == [example]


@pytest.mark.skipif(not SHARED, reason="DISTILLLENS_SHARED is unset")
def test_prompts_are_token_prefixes_on_dolly():
    """GPT-2's ids of every Dolly prompt begin its ids of prompt + completion."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(Path(SHARED, "tokenizers", "gpt2"))
    examples = to_training_examples(load_records(Path(SHARED, "data", "dolly_train.jsonl")))
    prompts = tokenizer([e["prompt"] for e in examples])["input_ids"]
    both = [e["prompt"] + e["completion"] + tokenizer.eos_token for e in examples]
    for prompt, whole in zip(prompts, tokenizer(both, verbose=False)["input_ids"], strict=True):
        assert whole[: len(prompt)] == prompt
        assert whole[-1] == tokenizer.eos_token_id
    # MiniLLM's split leaves out prompts of more than 256 tokens. That its longest has exactly 256
    # says that this template and tokenizer are theirs.
    longest = max(range(len(prompts)), key=lambda row: len(prompts[row]))
    assert len(prompts[longest]) == 256
    some = [*examples[:9], examples[longest]]
    assert drop_long_prompts(some, tokenizer, 256) == (some, 0)
    assert drop_long_prompts(some, tokenizer, 255) == (examples[:9], 1)


@pytest.mark.skipif(not SHARED, reason="DISTILLLENS_SHARED is unset")
@pytest.mark.parametrize("name", ["gpt2", "llama2-32k"])
def test_leading_newlines_of_an_answer_do_not_merge_with_the_prompt(name):
    """An answer that begins with white space still leaves the prompt's tokens alone."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(Path(SHARED, "tokenizers", name))
    for answer in ("\n\n\n  Blue", "  Blue", "\tBlue", "\n\n1."):
        example = format_instruction({"instruction": "Name a colour.", "output": answer})
        prompt = tokenizer(example["prompt"])["input_ids"]
        whole = tokenizer(example["prompt"] + example["completion"])["input_ids"]
        assert whole[: len(prompt)] == prompt


def test_instructions_as_messages():
    """System, history and input in the prompt; the first reference, as Alpaca's, without leading
    white space; tools and settings of the template stay, and other fields do not."""
    tools = [tool_records.tool("hill", "big")]
    record = {"instruction": "a", "input": "b", "output": ["\n c ", "d"], "system": "s", "topic": 1}
    record |= {"history": [["q", "r"]], "tools": tools, "chat_template_kwargs": {"x": 1}}
    expected = {
        "prompt": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "r"},
            {"role": "user", "content": "a\n\nb"},
        ],
        "completion": [{"role": "assistant", "content": "c "}],
        "tools": tools,
        "chat_template_kwargs": {"x": 1},
    }
    assert to_training_examples([record], chat=True) == [expected]
    assert list(to_dataset([record], chat=True)) == [expected]
    for other in ({"prompt": "a", "completion": "b"}, {"text": "a"}):
        assert to_training_examples([other], chat=True) == [other]


def test_prompts_of_messages_are_measured_as_messages():
    """max_prompt_length counts the tokens that the chat template writes."""
    made = tool_records.tokenizer()
    records = [{"instruction": "the cat", "output": "sat"}, {"instruction": "dog", "output": "ran"}]
    # user dog <eos> assistant
    assert drop_long_prompts(records, made, 4, chat=True) == (records[1:], 1)
