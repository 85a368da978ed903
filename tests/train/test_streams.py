"""Streams: the rows of a run depend neither on workers nor on processes nor on an interruption."""

import logging
import math
from itertools import cycle, islice

import pytest
import torch
import toys
from data import tool_records
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader
from train.test_distributed import on_two_processes

from distilllens.data import to_dataset
from distilllens.train.collation import Collation
from distilllens.train.streams import StreamRows

SAVED = {"save_strategy": "steps", "save_steps": 3, "max_steps": 8, "optim": "adamw_torch"}
SAVED |= {"per_device_train_batch_size": 2}


def numbers(shards=3, count=11):
    """A stream of the numbers below a count, as rows of one token that is also the target."""

    def read(first):
        for start in first:
            for n in range(start, count, shards):
                yield {"input_ids": [n], "labels": [n]}

    return IterableDataset.from_generator(read, gen_kwargs={"first": [*range(shards)]})


def read(rows, num, workers=0):
    """The first tokens that a data loader yields, by batch of two."""
    loader = DataLoader(rows, batch_size=2, num_workers=workers, collate_fn=list)
    return [[row["input_ids"][0] for row in batch] for batch in islice(loader, num)]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_change_nothing(workers):
    """Batches in the order of the stream, over its end, whatever reads them."""
    order = cycle([0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8])
    expected = [[next(order), next(order)] for _ in range(5)]
    assert read(StreamRows(numbers(), 2, 1), 5, workers) == expected
    shuffled = numbers().shuffle(seed=3, buffer_size=4)
    twice = read(StreamRows(shuffled, 2, 1), 11, workers)
    flat = [n for batch in twice for n in batch]
    assert sorted(flat[:11]) == sorted(flat[11:]) == [*range(11)]
    assert flat[:11] != flat[11:]  # each pass in another order
    assert twice == read(StreamRows(shuffled, 2, 1), 11)


def test_an_evaluation_is_filled_up_without_targets():
    """Once, then rows without a target to whole batches of all processes."""
    rows = list(StreamRows(numbers(count=5), 2, 4, passes=1))
    assert [row["input_ids"] for row in rows] == [[0], [3], [1], [4], [2], [0], [0], [0]]
    assert [row["labels"] for row in rows[5:]] == [[-100]] * 3
    assert len(list(StreamRows(numbers(count=5), 2, 1, passes=1))) == 5


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_accumulation_steps": 3},
        {"dataloader_num_workers": 2},
        {"packing": True, "max_length": 16},
        {"dataloader_num_workers": 1, "gradient_accumulation_steps": 2},
    ],
    ids=str,
)
def test_a_resumed_stream_ends_at_the_same_weights(tmp_path, settings):
    """Bitwise: the stream of 11 rows ends within the run, and is shuffled anew for each pass."""

    def trainer(name, **more):
        data = toys.stream(11).shuffle(seed=5, buffer_size=4)
        return toys.trainer(tmp_path / name, data=data, **SAVED, **settings, **more)

    whole = trainer("whole")
    whole.train()
    resumed = trainer("resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    assert toys.drift(toys.weights(whole.model), toys.weights(resumed.model)) == 0
    alone = toys.trainer(
        tmp_path / "alone",
        data=toys.stream(11).shuffle(seed=5, buffer_size=4),
        **SAVED | settings | {"dataloader_num_workers": 0},
    )
    alone.train()
    assert toys.drift(toys.weights(whole.model), toys.weights(alone.model)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_step_like_one_on_a_stream(tmp_path, kind):
    """Batch 2 on each of two processes, training and evaluation streamed, is batch 4 on one."""
    found, _ = on_two_processes(tmp_path, kind, "--stream")
    alone = toys.trainer(
        tmp_path / "alone", data=toys.stream(7), eval_dataset=toys.stream(7, seed=3)
    )
    whole = toys.trainer(
        tmp_path / "whole", data=toys.stream(7), eval_dataset=toys.dataset(7, seed=3)
    )
    before = whole.evaluate()
    if kind == "ddp":
        for metrics in (found["before"], alone.evaluate()):
            for key in ("eval_loss", "eval_output_loss", "eval_lens_loss", "eval_cross_entropy"):
                assert math.isclose(metrics[key], before[key], rel_tol=1e-6), key
    alone.train()
    for name, value in found["weights"].items():
        expected = alone.model.state_dict()[name.removeprefix("module.")]
        assert torch.allclose(value, expected, atol=1e-6, rtol=0), name


ALPACA = [
    {"instruction": e["prompt"], "output": e["completion"], "input": ["", "red"][n % 2]}
    for n, e in enumerate(toys.examples(5))
]
CHATS = [{"chat_template_kwargs": {}, **row} for row in tool_records.messages()]
KINDS = {
    "instruction": ALPACA,
    "prompt": toys.examples(5),
    "messages": CHATS,
    "prompt of messages": [{"chat_template_kwargs": {}, **r} for r in tool_records.conversations()],
    "text": [{"text": e["prompt"]} for e in toys.examples(5)],
    "tokens": [{"input_ids": [n, 3, 4], "labels": [-100, 3, 4]} for n in range(5)],
    "conversations": [
        {"conversations": [{"from": "user", "value": "the cat"}, {"from": "gpt", "value": "ran"}]}
    ],
}


@pytest.mark.filterwarnings("ignore:The `'keep_end'` truncation mode")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [{}, {"max_length": 6, "truncation_mode": "keep_end"}])
def test_every_kind_of_row_is_streamed(tmp_path, kind, settings):
    """The tokens and labels of the same rows loaded whole."""
    rows = KINDS[kind]
    whole = Dataset.from_list(rows) if kind in ("tokens", "conversations") else to_dataset(rows)
    stream = IterableDataset.from_generator(lambda: iter(rows))
    args = toys.config(tmp_path, **settings)
    made = tool_records.tokenizer()
    found, expected = (
        [
            (row["input_ids"], row["labels"])
            for row in Collation.prepared(args, made, data).train_dataset
        ]
        for data in (stream, whole)
    )
    assert found == expected and found


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_row_ends_the_run_after_a_checkpoint(tmp_path, workers):
    """One line with the row and where the steps before it are."""
    rows = [*toys.examples(9), {"question": "the"}, *toys.examples(9)]
    data = IterableDataset.from_generator(lambda: iter(rows))
    trainer = toys.trainer(
        tmp_path, data=data, dataloader_num_workers=workers, **SAVED | {"save_steps": 100}
    )
    with pytest.raises(
        ValueError, match=r"^training example 9 \(counted from 0\): it has the fie"
    ) as e:
        trainer.train()
    step = trainer.state.global_step
    assert "\n" not in str(e.value) and 3 <= step <= 4
    assert str(e.value).endswith(f"with resume_from_checkpoint {tmp_path}/checkpoint-{step}")
    assert (tmp_path / f"checkpoint-{step}" / "complete.json").exists()


def test_rows_without_a_target_are_counted(tmp_path, caplog):
    """At the first, the tenth, the hundredth; a stream of none is refused."""
    long = {"prompt": "the cat " * 40, "completion": " ran"}
    rows = [long, *toys.examples(2), *[long] * 9]
    data = IterableDataset.from_generator(lambda: iter(rows))
    with caplog.at_level(logging.WARNING):
        trainer = toys.trainer(tmp_path, data=data, max_steps=1)
        assert len(list(trainer.train_dataset)) == 2
    assert [m for m in caplog.messages if "no response token" in m] == [
        f"{num} streamed training examples have no response token; they are left out"
        for num in ("1 of the first 1", "10 of the first 12")
    ]
    data = IterableDataset.from_generator(lambda: iter([long]))
    with pytest.raises(ValueError, match="the streamed data hold no row with a response token"):
        toys.trainer(tmp_path / "none", data=data, max_steps=1).train()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_steps": -1}, "streamed training data need max_steps"),
        ({"teacher_cache": "states"}, "teacher_cache cannot be used with streamed training data"),
        ({"train_sampling_strategy": "group_by_length"}, "group_by_length needs the lengths"),
        ({"save_strategy": "epoch"}, "save_strategy epoch has no end in streamed training data"),
        ({"lens_readout": "tuned"}, "lens_readout tuned is fitted to rows drawn"),
    ],
)
def test_what_needs_a_length_is_refused(tmp_path, settings, message):
    """One line, before the student is loaded."""
    with pytest.raises(ValueError, match=message):
        toys.trainer(tmp_path, student="nowhere", data=toys.stream(), **settings)
