"""A row is read alike whatever side it is padded on."""

import lens_families as families
import pytest
import torch
from transformers import cache_utils

from distilllens import LogitLens, capture, divergence
from distilllens.lens import divergence_by_depth, positions, read_states, trajectory

ROWS = (families.IDS[0], families.IDS[1][:4], families.IDS[1][:6])
WIDTH = 11
# They run over padding as over any other token: what they say of left-padded rows is wrong.
RECURRENT = {"rwkv", "rwkv-rescaled", "recurrent_gemma", "xlstm"}
OTHER_AXES = {"gemma3n", "xlnet"}  # a stream that is not [B, T, D]
READ = sorted(families.ALL.keys() - families.REFUSED.keys() - RECURRENT - OTHER_AXES)
TRAINED = sorted(families.CLOSED.keys() - RECURRENT - families.NOT_STACKABLE)
TOLERANCE = 2e-6  # of the largest number; float32 rounding, as other shapes add up in another order


def padded(sides):
    """The rows as a batch, each padded on its side."""
    ids, mask = torch.zeros(3, WIDTH, dtype=torch.long), torch.zeros(3, WIDTH, dtype=torch.long)
    for n, (row, side) in enumerate(zip(ROWS, sides, strict=True)):
        at = slice(len(row)) if side == "right" else slice(WIDTH - len(row), WIDTH)
        ids[n, at], mask[n, at] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def alone(model, read):
    """What ``read`` gives for each row without padding, concatenated."""
    one = torch.ones(1, 1, dtype=torch.long)
    parts = [read(input_ids=row[None], attention_mask=one.expand(1, len(row))) for row in ROWS]
    return torch.cat([part[0] for part in parts])


SIDES = [("left", "left", "left"), ("right", "left", "right"), ("right", "right", "right")]


@pytest.mark.parametrize("name", READ)
@torch.no_grad()
def test_a_row_is_captured_alike_on_any_side(name, family):
    """At the last depth, against each row on its own."""
    model = family(name)
    last = len(families.blocks_of(name, model))

    def read(**inputs):
        return capture(model, [last], **inputs)[last]

    truth = alone(model, read)
    for sides in SIDES:
        inputs = padded(sides)
        found = read(**inputs)[inputs["attention_mask"] == 1]
        assert families.error(found, truth) <= TOLERANCE, sides


@pytest.mark.parametrize("name", TRAINED)
@torch.no_grad()
def test_a_row_is_trained_alike_on_any_side(name, family):
    """Every depth of the training read, as the student and a live teacher use it."""
    lens = LogitLens(family(name))
    depths = range(lens.num_layers + 1)

    def read(**inputs):
        found = read_states(lens, depths, **inputs)
        return torch.stack([*(found[depth] for depth in depths), found.final], -1)

    truth = alone(lens.model, read)
    for sides in SIDES:
        inputs = padded(sides)
        found = read(**inputs)[inputs["attention_mask"] == 1]
        assert families.error(found, truth) <= TOLERANCE, sides


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama", "qwen2"])
@torch.no_grad()
def test_right_padding_changes_no_bit(name, family):
    """Also on padding, where positions of our own would differ."""
    model, inputs = family(name), padded(SIDES[2])
    expected, _ = families.streams(
        name, model, inputs["input_ids"], attention_mask=inputs["attention_mask"]
    )
    states = capture(model, [1, 3], **inputs)
    assert torch.equal(states[1], expected[0]) and torch.equal(states[3], expected[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
@torch.no_grad()
def test_half_precision_is_read_alike(name, dtype):
    """A wrong position is no rounding."""
    model = families.build(name).to(dtype)

    def read(**inputs):
        return capture(model, [3], **inputs)[3]

    inputs = padded(SIDES[0])
    found = read(**inputs)[inputs["attention_mask"] == 1]
    assert families.error(found, alone(model, read)) <= 4 * torch.finfo(dtype).eps


@torch.no_grad()
def test_whoever_reads_through_capture_reads_rightly(family):
    """Trajectories, and the divergence of two models whose positions differ in kind."""
    left, right = padded(SIDES[0]), padded(SIDES[2])
    real = [inputs["attention_mask"] == 1 for inputs in (left, right)]
    a, b = (trajectory(family("gpt2"), **inputs).entropy for inputs in (left, right))
    assert families.error(a[:, real[0]], b[:, real[1]]) <= TOLERANCE
    pairs, measure = [(1, 1), (3, 3)], divergence("jsd")
    a, b = (
        divergence_by_depth(family("gpt2"), family("opt"), pairs, divergence=measure, **inputs)
        for inputs in (left, right)
    )
    assert a.means == pytest.approx(b.means, rel=1e-5)


@pytest.mark.parametrize("name", sorted(RECURRENT))
def test_a_model_that_cannot_read_left_padding_says_so(name, family):
    """One line; padded on the right it is read."""
    capture(family(name), [1], **padded(SIDES[2]))
    with pytest.raises(
        ValueError, match=r"cannot read rows padded on the left: .*; pad on the right"
    ):
        capture(family(name), [1], **padded(SIDES[1]))


@torch.no_grad()
def test_positions_that_are_given_are_taken(family):
    """The caller's, right or wrong."""
    inputs = padded(SIDES[0])
    wrong = torch.arange(WIDTH).expand(3, WIDTH)
    model = family("gpt2")
    ours = capture(model, [3], **inputs)[3]
    given = capture(
        model, [3], **inputs, position_ids=positions.positions_of(inputs["attention_mask"])
    )
    assert torch.equal(ours, given[3])
    assert not torch.equal(ours, capture(model, [3], **inputs, position_ids=wrong)[3])


def test_training_learns_it_before_weights_are_sharded():
    """No further forward runs once ``check_trainable`` has passed."""
    lens = LogitLens(families.build("gpt2"))
    lens.check_trainable()
    calls = []
    lens.backbone.register_forward_hook(lambda *args: calls.append(1))
    read_states(lens, [1], **padded(SIDES[0]))
    assert len(calls) == 1


@pytest.mark.parametrize("name", sorted(families.ALL.keys() - families.REFUSED.keys()))
def test_capture_builds_no_cache(name, family, monkeypatch):
    """Of keys and values, or of the state of a model without attention."""
    model = family(name)
    capture(model, [1], input_ids=families.IDS)  # locates the blocks

    def refuse(*args, **kwargs):
        raise AssertionError("a cache was built")

    monkeypatch.setattr(cache_utils.Cache, "__init__", refuse)
    capture(model, [1], input_ids=families.IDS)
