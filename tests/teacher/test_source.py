"""Training does not depend on the side on which rows are padded."""

import pytest
import torch
import toys

TOLERANCE = 1e-6  # float32 rounding: the rows of a product lie elsewhere


def left_padded(batch):
    """A right-padded batch with its padding moved to the left."""
    counts = (batch["attention_mask"] == 0).sum(-1).tolist()
    return {
        name: torch.stack([row.roll(n) for row, n in zip(rows, counts, strict=True)])
        for name, rows in batch.items()
    }


def trained(folder, side, student, teacher, **kwargs):
    trainer = toys.trainer(folder, student=student, teacher=teacher, **kwargs)
    collate = trainer.data_collator
    seen = []

    def on_the_left(rows):
        batch = left_padded(collate(rows))
        seen.append(bool((batch["attention_mask"][:, 0] == 0).any()))
        return batch

    if side == "left":
        trainer.data_collator = on_the_left
    trainer.train()
    assert side == "right" or any(seen)
    return toys.weights(trainer.model)


@pytest.mark.parametrize("source", ["live", "cached"])
@pytest.mark.parametrize("kinds", [("gpt2", "llama"), ("llama", "gpt2"), ("gpt2", "gpt2")])
def test_padding_on_the_left_trains_the_same(tmp_path, kinds, source):
    """Student and live teacher read the same positions; a cache is found by the same tokens."""
    build = {"gpt2": toys.gpt2, "llama": toys.llama}
    models = [lambda: build[kinds[0]](2, 16), lambda: build[kinds[1]](4, 24, seed=1)]
    settings = {"teacher_cache": str(tmp_path / "cache")} if source == "cached" else {}
    right, left = (
        trained(tmp_path / "out", side, *(model() for model in models), **settings)
        for side in ("right", "left")
    )
    assert toys.drift(right, left) < TOLERANCE
