"""A teacher reads either side of padding alike, and leaves nothing behind."""

import pytest
import torch
import toys

from distilllens.lens import LogitLens, read_states
from distilllens.targets import Targets
from distilllens.teacher import LiveTeacher

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


def test_a_teacher_under_autocast_leaves_no_cast_weights_behind():
    """The states of a plain forward, bit for bit; its weights are cast where they are used."""
    lens, seen = LogitLens(toys.llama(4, 24, seed=1)), []
    ids = torch.arange(12).view(2, 6)
    given = {"targets": Targets.of(ids), "input_ids": ids}
    cached = torch.is_autocast_cache_enabled
    lens.blocks[0].register_forward_hook(
        lambda *_: seen.append((torch.is_autocast_enabled("cpu"), cached()))
    )
    with torch.autocast("cpu", torch.bfloat16):
        states, _ = LiveTeacher(lens).read([2], normalize=True, **given)
        assert seen.pop() == (True, False)
        assert cached()  # as the student needs it
        plain = read_states(lens, [2], input_ids=ids)
        assert seen.pop() == (True, True)
    for found, right in ((states[2], plain[2]), (states.final, plain.final)):
        assert torch.equal(found, given["targets"].rows(right))
    LiveTeacher(lens).read([2], normalize=True, **given)
    assert seen.pop() == (False, True)
