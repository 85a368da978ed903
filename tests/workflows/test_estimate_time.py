"""Seconds of a step by hand, and against torch's count of flops."""

import pytest
from toys import recipe

from distilllens.workflows import estimate
from distilllens.workflows.recipe_file import read_recipe
from distilllens.workflows.run_arguments import build


def flops(folder, **fields):
    recipe(folder, **fields)
    arguments = build(read_recipe("recipe.yaml").values | {"train_file": ["train.jsonl"]})
    return estimate.estimate(*arguments, device="h100")


def test_terms_by_hand(workshop):
    """SFT of a Llama of 3 blocks of width 16 on 24 words: 2 W T + 4 L d T^2 a row, 6 n V d."""
    result = flops(workshop, teacher_model_name_or_path=None, cross_entropy_weight=1.0, bf16=False)
    batch = result["batch"]
    length, targets = round(batch["mean_length"]), round(batch["mean_targets"] / 2)
    # q and o 16 x 16, k and v of one head 16 x 8, three of 16 x 32, two norms; the last norm.
    blocks = 3 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 32 + 2 * 16) + 16
    forward = 2 * (2 * blocks * length + 4 * 3 * 16 * length**2)
    assert result["flops"]["student forward"] == forward
    assert result["flops"]["output"] == 6 * (2 * targets) * 24 * 16
    assert result["flops"]["teacher forward"] == 0 == result["flops"]["lens"]


@pytest.mark.parametrize(
    ("fields", "backward"),
    [
        ({"activation_checkpointing": False}, 2),
        ({"activation_checkpointing": True}, 3),  # the forward once more
        ({"activation_checkpointing": False, "use_peft": True}, 1),  # no gradient of weights
    ],
)
def test_backward_passes(workshop, fields, backward):
    """In units of the forward."""
    found = flops(workshop, **fields)["flops"]
    assert found["student backward"] == backward * found["student forward"]


def test_accumulation_repeats_all_but_the_update(workshop):
    """Four micro-batches."""
    one, four = (flops(workshop, gradient_accumulation_steps=n)["flops"] for n in (1, 4))
    assert four["optimizer"] == one["optimizer"]
    assert all(four[term] == 4 * one[term] for term in one if term != "optimizer")


def test_a_cached_teacher_does_not_run(workshop):
    """Its forward is gone, and nothing else."""
    live, cached = flops(workshop), flops(workshop, teacher_cache="cache")
    assert cached["flops"] == {**live["flops"], "teacher forward": 0}
    assert live["flops"]["teacher forward"] > 0
