"""Rows as tokens and labels: SFTTrainer's own, and what is left out is counted."""

import logging

import pytest
import toys
from data import tool_records
from datasets import Dataset, IterableDataset, load_from_disk
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer
from trl import SFTTrainer

from distilllens.train import preparation
from distilllens.train.collation import Collation

GENERATION = (
    "{% for m in messages %}{{ m['role'] }} {% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }} <eos> {% endgeneration %}"
    "{% else %}{{ m['content'] }} {% endif %}{% endfor %}"
)
LONG = {"prompt": "the cat " * 20, "completion": " ran"}
CHATS = [{"chat_template_kwargs": {}, **row} for row in tool_records.messages()]
PAIRS = [{"chat_template_kwargs": {}, **row} for row in tool_records.conversations()]
CONVERSATIONS = [
    {"conversations": [{"from": m["role"], "value": m["content"]} for m in row["messages"]]}
    for row in CHATS
]
TEXTS = [{"story": e["prompt"] + e["completion"]} for e in toys.examples(7)]


def tokenizer(template=None, bos=False):
    """The toys' tokenizer that writes messages; with ``bos``, one that puts <s> in front."""
    made = tool_records.tokenizer()
    made.chat_template = template or made.chat_template
    if bos:
        made.add_special_tokens({"bos_token": "<s>"})
        made.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", made.bos_token_id)]
        )
    return made


def prepared(tmp_path, rows, made=None, evaluation=None, **settings):
    """The training and evaluation rows of a run of ours."""
    data = [as_written(r) if isinstance(r, list) else r for r in (rows, evaluation)]
    args = toys.config(tmp_path, **settings)
    collation = Collation.prepared(args, made or tokenizer(), data[0], data[1])
    return collation.train_dataset, collation.eval_dataset


def as_written(rows):
    """Rows as a data set that keeps them as they are."""
    return Dataset.from_list(rows, on_mixed_types="use_json")


def of_trl(tmp_path, rows, made=None, **settings):
    """What plain SFTTrainer makes of the same rows."""
    return SFTTrainer(
        toys.llama(vocab=40),
        args=toys.config(tmp_path, **settings),
        train_dataset=as_written(rows),
        processing_class=made or tokenizer(),
    ).train_dataset


EQUAL = {
    "prompts": (toys.examples(7), {}),
    "prompts with every token a target": (toys.examples(7), {"completion_only_loss": False}),
    "texts of another field": (TEXTS, {"dataset_text_field": "story"}),
    "messages": (CHATS, {}),
    "from and value": (CONVERSATIONS, {}),
    "conversations": (PAIRS, {}),
    "only the assistant": ([{"messages": row["messages"]} for row in CHATS], "generation"),
    "only the assistant's completion": (
        [{k: row[k] for k in ("prompt", "completion")} for row in PAIRS],
        "generation",
    ),
    "long rows": (toys.examples(7), {"max_length": 7}),
    "the ends of long rows": (toys.examples(7), {"max_length": 7, "truncation_mode": "keep_end"}),
    "shuffled": (toys.examples(7), {"shuffle_dataset": True}),
    "packed": (toys.examples(9), {"packing": True, "max_length": 24}),
    "packed and shuffled": (
        toys.examples(9),
        {"packing": True, "max_length": 24, "shuffle_dataset": True},
    ),
    "packed to the end": (
        toys.examples(9),
        {"packing": True, "max_length": 24, "truncation_mode": "keep_end"},
    ),
    "packed in parts": (
        toys.examples(9),
        {"packing": True, "packing_strategy": "bfd_split", "max_length": 9},
    ),
    "wrapped": (toys.examples(9), {"packing": True, "packing_strategy": "wrapped"}),
}


@pytest.mark.filterwarnings("ignore:The `'keep_end'` truncation mode:FutureWarning")
@pytest.mark.parametrize("name", EQUAL)
def test_rows_are_those_of_the_host(tmp_path, name):
    """Tokens, labels and packs, in SFTTrainer's order, where it leaves nothing wrong."""
    rows, settings = EQUAL[name]
    template = None
    if settings == "generation":
        template, settings = GENERATION, {"assistant_only_loss": True}
    ours, _ = prepared(tmp_path, rows, tokenizer(template), **settings)
    theirs = of_trl(tmp_path, rows, tokenizer(template), **settings)
    columns = [c for c in ("input_ids", "labels", "seq_lengths") if c in theirs.column_names]
    assert len(ours) == len(theirs) > 1
    for column in columns:
        assert list(ours[column]) == list(theirs[column])


@pytest.mark.parametrize(
    ("settings", "num_rows"),
    [
        ({}, 3),
        ({"packing": True}, 2),
        ({"packing": True, "packing_strategy": "bfd_split"}, 2),
        ({"packing": True, "packing_strategy": "wrapped"}, 3),
    ],
)
def test_what_has_no_target_is_left_out_and_counted(tmp_path, caplog, settings, num_rows):
    """In every kind of batch, in training and evaluation: no row and no pack without a target."""
    short = {"prompt": "the", "completion": " cat"}
    rows = [short, LONG, short, short]
    with caplog.at_level(logging.WARNING):
        found = prepared(tmp_path, rows, evaluation=rows, max_length=8, **settings)
    for kind, dataset in zip(("training", "evaluation"), found, strict=True):
        assert len(dataset) == num_rows
        assert all(any(label != -100 for label in row["labels"]) for row in dataset)
        if settings.get("packing_strategy") is None:
            assert f"1 of 4 {kind} examples have no response token within max_length 8" in (
                caplog.text
            )
        else:
            assert f"packs of {kind} examples have no response token" in caplog.text


def test_a_pack_of_answers_cut_off_takes_no_step(tmp_path):
    """Nothing but such rows is an error, packed too."""
    with pytest.raises(ValueError, match="none of the 3 training examples has a response token"):
        prepared(tmp_path, [LONG] * 3, max_length=8, packing=True)


def test_a_bos_that_is_written_is_not_doubled(tmp_path, caplog):
    """<s> of the text counts as the tokenizer's: the tokens of the same text without it."""
    made = tokenizer(bos=True)
    plain, written = toys.examples(6), toys.examples(6)
    for row in written[:2]:
        row["prompt"] = "<s>" + row["prompt"]
    with caplog.at_level(logging.WARNING):
        found, _ = prepared(tmp_path, written, made)
    assert list(found["input_ids"]) == list(of_trl(tmp_path, plain, made)["input_ids"])
    assert list(found["labels"]) == list(of_trl(tmp_path, plain, made)["labels"])
    assert "2 of 6 training examples begin with '<s>' themselves" in caplog.text


def test_prompts_that_are_no_beginning_are_counted(tmp_path, caplog, shared):
    """GPT-2 joins newlines with what follows: how many, the first, and what becomes of them."""
    gpt2 = AutoTokenizer.from_pretrained(shared / "tokenizers" / "gpt2")
    rows = [{"prompt": f"a{end}", "completion": "b"} for end in ("\n", "\n\n", "\n\n")]
    with caplog.at_level(logging.WARNING):
        found, _ = prepared(tmp_path, rows, gpt2)
    assert "in 2 of 3 training examples" in caplog.text
    assert r"first in example 1, counted from 0, whose prompt alone ends in '\n\n'" in caplog.text
    assert caplog.text.count("tokens of the prompt alone") == 1
    theirs = of_trl_labels(gpt2, rows)
    assert list(found["labels"]) == theirs


def of_trl_labels(made, rows):
    """Targets from where the prompt's own tokens end to agree."""
    found = []
    for row in rows:
        alone = made(row["prompt"])["input_ids"]
        whole = made(row["prompt"] + row["completion"] + made.eos_token)["input_ids"]
        first = 0
        while alone[first : first + 1] == whole[first : first + 1] != []:
            first += 1
        found.append([-100] * first + whole[first:])
    return found


def test_rows_of_older_code_are_not_taken_from_a_cache(tmp_path, monkeypatch):
    """A data set on the disk caches what was made of it; another version makes it again."""
    Dataset.from_list(toys.examples(3)).save_to_disk(tmp_path / "data")
    first, _ = prepared(tmp_path, load_from_disk(tmp_path / "data"))
    inner = preparation.encode

    def changed(*args, **kwargs):
        return inner(*args, **kwargs)._replace(ids=[5, 6, 7], first=1)

    monkeypatch.setattr(preparation, "encode", changed)
    monkeypatch.setattr(preparation, "sha256", lambda path: "another")
    second, _ = prepared(tmp_path, load_from_disk(tmp_path / "data"))
    assert len(first) == 3 and list(second["input_ids"]) == [[5, 6, 7]] * 3


ALTERNATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('no system role') }}{% endif %}{{ m['content'] }} {% endfor %}"
)


def test_a_template_that_refuses_names_the_row(tmp_path):
    """What it said, and the ways out, on one line."""
    made = tokenizer(ALTERNATE)
    rows = [{"messages": [{"role": "user", "content": word}]} for word in ("the", "dog", "a")]
    rows[1]["messages"].insert(0, {"role": "system", "content": "cat"})
    with pytest.raises(ValueError) as caught:
        prepared(tmp_path, rows, made)
    text = str(caught.value)
    assert (
        text.startswith("training example 1 (counted from 0, begins 'dog'): ")
        and "'no system role'" in text
    )
    assert "chat_template_path" in text and "completion texts" in text and "\n" not in text


def test_a_missing_template_is_said(tmp_path):
    """The ways out, and no sentence of the host's."""
    with pytest.raises(
        ValueError, match=r"evaluation example 0 \(.*\): .* no chat template; set chat"
    ):
        prepared(tmp_path, toys.examples(3), toys.tokenizer(), evaluation=CHATS)


def test_marks_of_a_missing_template_are_said(tmp_path):
    """assistant_only_loss reads them from a chat template."""
    with pytest.raises(ValueError, match="assistant_only_loss needs a chat template"):
        prepared(tmp_path, CHATS, toys.tokenizer(), assistant_only_loss=True)


def test_answers_that_a_template_does_not_mark_are_said(tmp_path):
    """Of the row that has none: its assistant says nothing."""
    made = tokenizer(GENERATION)
    rows = [{"messages": [{"role": "user", "content": "the"}]}]
    with pytest.raises(ValueError, match=r"example 0 .* the assistant's: no message is"):
        prepared(tmp_path, rows, made, assistant_only_loss=True)


def test_streams_are_prepared_as_well(tmp_path, caplog):
    """The same rows without those that lost their answer; what is noticed is said at the first."""
    rows, made = [LONG, *toys.examples(5)], tokenizer(bos=True)
    for row in rows[2:4]:
        row["prompt"] = "<s>" + row["prompt"]
    whole, _ = prepared(tmp_path, rows, made, max_length=16)
    stream = IterableDataset.from_generator(lambda: iter(rows))
    found, _ = prepared(tmp_path, stream, made, max_length=16)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert [row["input_ids"] for row in found] == list(whole["input_ids"])
    assert caplog.messages == [
        "1 of the first 1 streamed training examples have no response token; they are left out",
        "some training examples begin with '<s>' themselves; it is not added a second time",
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"question": "the"}],
            r"training example 0 \(counted from 0\): it has the fields \['question'\]; it needs",
        ),
        ([], "the training data hold no example"),
    ],
)
def test_data_that_are_none(tmp_path, rows, message):
    """One line."""
    with pytest.raises(ValueError, match=message):
        prepared(tmp_path, rows)
