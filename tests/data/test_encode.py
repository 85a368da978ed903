"""Tokens and targets of an example equal those of training."""

import pytest
import toys
from data import tool_records
from datasets import Dataset
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from distilllens import DistillLensTrainer
from distilllens.data import drop_long_prompts, to_dataset, to_training_examples
from distilllens.data.encode import encode_example, encode_examples, encode_text
from distilllens.generate.prompts import encode_prompts

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
    """One line that says so, with the ways out."""
    with pytest.raises(ValueError, match=r"no chat template; set chat_template_path .* texts$"):
        encode_example(EXAMPLES["messages"][0], toys.tokenizer())


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "says 'Roles must alternate'; mend them"),
        ("{{ messages[0].content.rstrip(3) }}", "its chat template says .*; mend them, set chat"),
        ("{% if %}", "its chat template says .*; mend them, set chat_template_path"),
    ],
)
def test_what_a_template_says_is_said(template, message):
    """Of a refusal, an error inside, or a template that is none; with the example's name."""
    made = tokenizer()
    made.chat_template = template
    with pytest.raises(ValueError, match=f"^row 7: .*{message}"):
        encode_examples(EXAMPLES["messages"], made, ["row 7"])


def test_a_prompt_that_a_template_refuses_is_named_where_prompts_are_counted():
    """By the number of its record, from 1."""
    made = tokenizer()
    made.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    )
    records = [EXAMPLES["chat"][0], EXAMPLES["chat"][0] | {"prompt": [{"role": "system"}]}]
    with pytest.raises(ValueError, match=r"^record 2: .*says 'no'"):
        drop_long_prompts(records, made, 8)


def with_bos(template="<s> $A"):
    """The toys' tokenizer with a beginning-of-sequence token, put where the template says."""
    made = toys.tokenizer()
    made.add_special_tokens({"bos_token": "<s>"})
    if template:
        made.backend_tokenizer.post_processor = TemplateProcessing(
            single=template, special_tokens=[("<s>", made.bos_token_id), ("<eos>", 0)]
        )
    return made


@pytest.mark.parametrize(
    ("template", "text", "begins"),
    [
        ("<s> $A", "the cat", [22, 2, 3]),
        ("<s> $A", "<s>the cat", [22, 2, 3]),
        ("<s> $A <eos>", "<s> the cat", [22, 2, 3]),
        ("<s> $A", "<s><s>the cat", [22, 22, 2, 3]),  # the user wrote two
        ("<s> $A", "the <s> cat", [22, 2, 22, 3]),
        (None, "<s>the cat", [22, 2, 3]),
        (None, "<s><s>the cat", [22, 22, 2, 3]),  # nothing was added
    ],
)
def test_there_is_one_bos(template, text, begins):
    """A text that writes it gets no second one, whatever the example's kind."""
    made = with_bos(template)
    ids, first = encode_example({"text": text}, made)
    assert ids[: len(begins)] == begins and first == 0
    assert ids[len(begins) :] == [0] * (2 if "eos" in (template or "") else 1)
    ids, first = encode_example({"prompt": text, "completion": " sat"}, made)
    assert ids[: len(begins) + 1] == [*begins, 5] and first == len(begins)
    assert encode_prompts(made, [text]) == [begins]


class Spy:
    """A tokenizer that notes the longest text that it was given."""

    def __init__(self, inner):
        self.inner, self.longest = inner, 0

    def __call__(self, text, **settings):
        self.longest = max(self.longest, len(text))
        return self.inner(text, **settings)

    def __getattr__(self, name):
        return getattr(self.inner, name)


@pytest.mark.parametrize("name", ["tokenizers/gpt2", "tokenizers/llama2-32k", "models/stories260K"])
@pytest.mark.parametrize("kind", ["prose", "one word", "no words", "spaces"])
def test_only_the_beginning_of_a_long_text_is_tokenised(shared, name, kind):
    """Its tokens are those of the whole text, of which the tokenizer sees a part."""
    real = Spy(AutoTokenizer.from_pretrained(shared / name))
    text = {
        "prose": (shared / "data" / "dolly_dev.jsonl").read_text(),
        "one word": "ab" * 300_000,
        "no words": "".join(chr(33 + n * n % 90) for n in range(600_000)),
        "spaces": " " * 600_000,
    }[kind][:600_000]
    whole = real.inner(text, verbose=False)["input_ids"]
    assert encode_text(text, real, 96) == whole[:96]
    assert real.longest < 600_000 / 4
    rows = {
        "prompt": {"prompt": text, "completion": "b"},
        "completion": {"prompt": "a", "completion": text},
    }
    for row in rows.values():
        ids, first = encode_example(row, real, 96)
        everything, begins = encode_example(row, real)
        assert (ids, first) == (everything[:96], min(begins, 96))


def test_a_tokenizer_that_looks_to_the_end_reads_the_whole_text():
    """Where the beginning depends on the length, no part of the text will do."""

    class Odd:
        bos_token_id = None

        def __call__(self, text, **settings):
            return {"input_ids": [len(text) % 1009, *([1] * (len(text) // 4))]}

    text = "a" * 1_000_003
    assert encode_text(text, Odd(), 8) == [1_000_003 % 1009, *([1] * 7)]


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
