"""Rows that fill up an epoch on several processes count once, and no other row is touched."""

from collections import Counter
from types import SimpleNamespace

import pytest
import toys
from accelerate.data_loader import prepare_data_loader
from accelerate.state import AcceleratorState, GradientState
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import BatchRebalanceSampler
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from distilllens.train._trl import (
    CountingDocuments,
    mask_repeated_rows,
    mask_repeated_training_rows,
)

PROCESSES = 2
# Tokens of document i are 100 i + 1, 100 i + 2 and so on; the first of each is no target.
LENGTHS = (5, 3, 7, 4, 6, 3, 5, 4, 8, 3)


def rows(count, lengths=LENGTHS):
    return [{"input_ids": [100 * i + t for t in range(1, lengths[i] + 1)]} for i in range(count)]


def packed(count):
    """Rows of two documents, but the last one of one."""
    documents = rows(2 * count - 1)
    pairs = [documents[i : i + 2] for i in range(0, len(documents), 2)]
    return [
        {
            "input_ids": [token for document in pair for token in document["input_ids"]],
            "seq_lengths": [len(document["input_ids"]) for document in pair],
        }
        for pair in pairs
    ]


def bare(examples):
    """A collator that makes neither a mask nor positions."""
    batch = DataCollatorForLanguageModeling(0)(examples)
    return {name: batch[name] for name in ("input_ids", "labels")}


def doubled(examples):
    """A collator that makes two rows of each."""
    return DataCollatorForLanguageModeling(0)([row for row in examples for _ in (0, 1)])


PADDED = DataCollatorForLanguageModeling(0)
FLAT = DataCollatorForLanguageModeling(0, padding_free=True)
FLAT_PADDED = DataCollatorForLanguageModeling(0, padding_free=True, pad_to_multiple_of=32)
# Rows, batch size, collator and settings.
CASES = {
    "padded": (rows(9), 2, PADDED, {}),
    "fewer rows than a batch": (rows(3), 8, PADDED, {}),
    "padding free": (rows(9), 2, FLAT, {}),
    "padding free, padded": (rows(7), 4, FLAT_PADDED, {}),
    "packed": (packed(5), 2, FLAT, {}),
    "packed, padded": (packed(5), 2, FLAT_PADDED, {}),
    "neither mask nor positions": (rows(9), 2, bare, {}),
    "split batches": (rows(7), 4, PADDED, {"split": True}),
    "split batches, padding free": (rows(7), 4, FLAT_PADDED, {"split": True}),
    "drop_last": (rows(10), 2, PADDED, {"drop_last": True}),
    "uneven batches": (rows(10), 2, PADDED, {"even": False}),
    "batch_rebalance": (rows(7), 4, PADDED, {"strategy": "batch_rebalance"}),
    "two rows of each": (rows(8), 2, doubled, {}),
}


def epoch(case, rank, mask):
    """How often a rank trains on each target in an epoch."""
    data, size, collator, settings = CASES[case]
    split, even = settings.get("split", False), settings.get("even", True)
    drop_last, strategy = settings.get("drop_last", False), settings.get("strategy", "random")
    collator = CountingDocuments(collator) if "packed" in case else collator
    how = {"batch_size": size, "drop_last": drop_last}
    if strategy == "batch_rebalance":
        lengths = [len(row["input_ids"]) for row in data]
        sampler = BatchRebalanceSampler(lengths, size * 2, 2, 1, rank=rank, drop_last=False)
        how = {"batch_sampler": sampler}
    loader = DataLoader(data, collate_fn=collator, **how)
    shared = {"num_processes": PROCESSES, "process_index": rank, "put_on_device": False}
    # batch_rebalance is left alone by accelerate, as transformers arranges it.
    shared |= {"num_processes": 1, "process_index": 0} if strategy == "batch_rebalance" else {}
    loader = prepare_data_loader(loader, split_batches=split, even_batches=even, **shared)
    accelerator = SimpleNamespace(
        num_processes=PROCESSES,
        process_index=rank,
        gradient_state=GradientState(),
        even_batches=even,
        split_batches=split,
    )
    args = SimpleNamespace(dataloader_drop_last=drop_last, train_sampling_strategy=strategy)
    trainer = SimpleNamespace(
        accelerator=accelerator, args=args, train_dataset=data, _train_batch_size=size
    )
    found = Counter()
    for batch in loader:
        mask(batch, trainer)
        found.update(batch["labels"][:, 1:].flatten().tolist())
    return found


def in_training(batch, trainer):
    mask_repeated_training_rows(trainer, [batch])
    assert "documents_of_rows" not in batch


def in_evaluation(batch, trainer):
    size = trainer._train_batch_size
    mask_repeated_rows(batch, trainer.accelerator, size, packed=False)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mask", [in_training, in_evaluation])
def test_every_row_of_an_epoch_counts_once(case, mask):
    """The targets of both processes are those of the rows, by accelerate's own batches."""
    if mask is in_evaluation and case in ("packed", "packed, padded", "batch_rebalance"):
        pytest.skip("left as they are, or of training alone")
    AcceleratorState._reset_state(True)
    found = sum((epoch(case, rank, mask) for rank in range(PROCESSES)), Counter())
    del found[-100]
    data = CASES[case][0]
    taken = data[:8] if case == "drop_last" else data
    expected = Counter(token for row in taken for token in row["input_ids"] if token % 100 != 1)
    if case == "two rows of each":
        expected += expected
    assert found == expected


def test_a_process_that_sees_several_gpus_trains_on_one(tmp_path, caplog):
    """TRL would refuse it; the batch is that of one device, and the given arguments stay."""
    args = toys.config(tmp_path)
    args._n_gpu = 4  # as transformers counts them
    trainer = toys.trainer(args)
    assert (args.n_gpu, trainer.args.n_gpu) == (4, 1)
    assert trainer.args.train_batch_size == args.per_device_train_batch_size
    assert "4 GPUs are visible, and this process trains on the first" in caplog.text
