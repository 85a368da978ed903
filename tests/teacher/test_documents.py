"""A batch cut into documents: the same keys whatever the padding, packing or order."""

import torch
import toys

from distilllens.targets import Targets, target_positions
from distilllens.teacher import documents

ROWS = [([5, 6, 7, 8], [-100, -100, 7, 8]), ([5, 6], [-100, 6]), ([9, 5, 6], [-100, 5, -100])]


def cut(labels, **inputs):
    """The documents of a batch with labels."""
    return documents.cut(targets=Targets.of(labels), **inputs)


def padded(rows, width, side="right"):
    batch = {"input_ids": [], "labels": [], "attention_mask": []}
    for ids, labels in rows:
        gap = width - len(ids)
        for name, values, filler in (
            ("input_ids", ids, 0),
            ("labels", labels, -100),
            ("attention_mask", [1] * len(ids), 0),
        ):
            parts = values + [filler] * gap if side == "right" else [filler] * gap + values
            batch[name].append(parts)
    return {name: torch.tensor(value) for name, value in batch.items()}


def packed(rows):
    ids = [i for row, _ in rows for i in row]
    labels = [label for _, row in rows for label in [-100, *row[1:]]]
    positions = [i for row, _ in rows for i in range(len(row))]
    columns = {"input_ids": ids, "labels": labels, "position_ids": positions}
    return {name: torch.tensor([value]) for name, value in columns.items()}


def test_padding_and_packing_change_no_key():
    """Padded left or right, further, or packed into one row: the same documents."""
    found = cut(**padded(ROWS, 4))
    assert [d.num_tokens for d in found] == [4, 2, 3]
    assert [d.num_targets for d in found] == [2, 1, 1]
    assert cut(**padded(ROWS, 9)) == found
    assert cut(**padded(ROWS, 6, "left")) == found
    assert cut(**packed(ROWS)) == found
    assert cut(**packed(ROWS[::-1])) == found[::-1]


def test_tokens_and_targets_make_the_key():
    """Another token, another target or another length is another document."""
    rows = [
        ([5, 6, 7], [-100, 6, 7]),
        ([5, 6, 8], [-100, 6, 8]),
        ([5, 6, 7], [-100, -100, 7]),
        ([5, 6], [-100, 6]),
    ]
    assert len({d.key for d in cut(**padded(rows, 3))}) == len(rows)


def test_documents_follow_the_valid_positions():
    """The rows at valid positions are the documents' rows, one after the other."""
    for batch in (padded(ROWS, 5), padded(ROWS, 5, "left"), packed(ROWS)):
        valid = target_positions(batch["labels"])
        assert sum(d.num_targets for d in cut(**batch)) == int(valid.sum())
        ids = batch["input_ids"][valid].tolist()
        assert ids == [6, 7, 5, 9]


def test_a_document_without_a_target_is_left_out():
    """Nothing of it is ever read; an empty batch has none."""
    silent = ([5, 6, 7], [-100, -100, -100])
    assert cut(**padded([silent, ROWS[1]], 3)) == cut(**padded([ROWS[1]], 2))
    assert cut(**padded([silent], 3)) == []
    first_only = ([5, 6], [5, -100])  # a label that no position predicts
    assert cut(**padded([first_only], 2)) == []


def test_the_collators_of_training_agree(tmp_path):
    """What SFTTrainer pads, flattens and packs is cut into the same documents."""
    keys = []
    for layout in ({}, {"padding_free": True, "max_length": None}, {"packing": True}):
        trainer = toys.trainer(tmp_path, **layout)
        rows = list(trainer.train_dataset)
        batches = [[row] for row in rows] if "packing" in layout else [rows[:3], rows[3:]]
        keys.append({d.key for b in batches for d in cut(**trainer.data_collator(b))})
    assert keys[0] == keys[1] == keys[2]
    assert len(keys[0]) == 8
