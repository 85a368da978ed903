"""Tokens and targets of an example equal those of training."""

import pytest
import toys
from data import tool_records
from datasets import Dataset
from transformers import AutoTokenizer

from distilllens import DistillLensTrainer
from distilllens.data import to_dataset, to_training_examples
from distilllens.data.encode import encode_example

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} <eos> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
EXAMPLES = {
    "instruction": to_training_examples(
        [{"instruction": "the cat", "input": "sat on", "output": ["a mat", "it"]}]
    ),
    "prompt": [{"prompt": "the cat", "completion": " sat on a mat"}],
    "empty prompt": [{"prompt": "", "completion": "the cat"}],
    "ended": [{"prompt": "the", "completion": " cat <eos>"}],
    "text": [{"text": "the old cat sat"}],
    "messages": [
        {
            "messages": [
                {"role": "user", "content": "the cat"},
                {"role": "assistant", "content": "sat on a mat"},
            ]
        }
    ],
    "chat": [
        {
            "prompt": [{"role": "user", "content": "the cat"}],
            "completion": [{"role": "assistant", "content": "sat on a mat"}],
        }
    ],
}


def tokenizer():
    """The toys' tokenizer, that knows the roles and writes messages."""
    made = toys.tokenizer([*toys.WORDS, "user", "assistant"])
    made.chat_template = TEMPLATE
    return made


@pytest.mark.parametrize("kind", EXAMPLES)
def test_tokens_and_targets_are_those_of_the_trainer(tmp_path, kind):
    """What SFTTrainer makes of the same example: its tokens, and where its labels begin."""
    made = tokenizer()
    trainer = DistillLensTrainer(
        toys.llama(vocab=32),
        toys.llama(4, 24, vocab=32),
        args=toys.config(tmp_path),
        train_dataset=Dataset.from_list(EXAMPLES[kind]),
        processing_class=made,
    )
    row = trainer.train_dataset[0]
    ids, first = encode_example(EXAMPLES[kind][0], made)
    assert ids == list(row["input_ids"])
    labels = list(row.get("labels") or row["input_ids"])
    assert first == next((at for at, label in enumerate(labels) if label != -100), len(ids))


def test_a_token_across_the_boundary_is_a_target(shared):
    """GPT-2 splits newlines by what follows: the prompt alone ends in another token."""
    gpt2 = AutoTokenizer.from_pretrained(shared / "tokenizers" / "gpt2")
    example = {"prompt": "a\n\n", "completion": "b"}
    assert len(gpt2("a\n\n")["input_ids"]) == 2
    ids, first = encode_example(example, gpt2)
    assert ids == [*gpt2("a\n\nb")["input_ids"], gpt2.eos_token_id]
    assert first == 1


def test_messages_need_a_template():
    """One line that says so."""
    with pytest.raises(ValueError, match="the tokenizer cannot write these messages"):
        encode_example(EXAMPLES["messages"][0], toys.tokenizer())


@pytest.mark.parametrize("kind", ["messages", "conversations"])
def test_tools_and_template_settings_are_those_of_the_trainer(tmp_path, kind):
    """One file with tools as a list, as JSON text, settings alone or nothing: TRL's tokens."""
    made, records = tool_records.tokenizer(), getattr(tool_records, kind)()
    trainer = DistillLensTrainer(
        toys.llama(),
        toys.llama(4, 24, seed=1),
        args=toys.config(tmp_path),
        train_dataset=to_dataset(records),
        processing_class=made,
    )
    for row, record, written in zip(
        trainer.train_dataset, records, tool_records.WRITTEN, strict=True
    ):
        assert made.decode(row["input_ids"]).startswith(f"{written} user".strip())
        assert encode_example(record, made)[0] == list(row["input_ids"])


def test_tools_that_are_no_json_are_named():
    """The error shows the text."""
    record = tool_records.messages()[0] | {"tools": "hammer"}
    with pytest.raises(ValueError, match=r"'tools' is 'hammer'.*JSON"):
        encode_example(record, tool_records.tokenizer())
