"""A trainer from a recipe's arguments."""

import pytest
import toys
from trl import ModelConfig

from distilllens.train.build import build_trainer


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
@pytest.mark.parametrize(
    ("targets", "trained"),
    [
        (["c_attn"], {"attn.c_attn"}),
        ("c_attn", {"attn.c_attn"}),
        (["attn.c_proj"], {"attn.c_proj"}),
        (["transformer.h.0.attn.c_attn"], {"attn.c_attn"}),
        (["c_attn", "c_fc"], {"attn.c_attn", "mlp.c_fc"}),
        ([r".*attn\.c_\w+"], {"attn.c_attn", "attn.c_proj"}),
        (["all-linear"], {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}),
    ],
    ids=lambda value: None if isinstance(value, set) else str(value),  # sets have no fixed order
)
def test_lora_targets_mean_what_peft_says(tmp_path, targets, trained):
    """A name is the end of a module's name, alone or in a list; a pattern is one of the whole."""
    model = ModelConfig(use_peft=True, lora_target_modules=targets)
    args = toys.config(tmp_path, cross_entropy_weight=1.0)
    records = {"train": toys.examples(4)}
    trainer = build_trainer(toys.gpt2(1), model, args, toys.tokenizer(), records)
    names = [name.split(".lora_")[0] for name in toys.weights(trainer.model)]
    assert {".".join(name.split(".")[-2:]) for name in names} == trained
