"""Scale and soft cap are measured on known head outputs, independent of the real logits."""

import lens_families as families
import pytest
import torch

from distilllens import LogitLens


@pytest.mark.parametrize(
    ("name", "settings", "scale", "softcap"),
    [
        ("llama", {}, 1.0, None),
        ("gemma2", {"final_logit_softcapping": 30.0}, 1.0, 30.0),
        ("gemma2", {"final_logit_softcapping": 200.0}, 1.0, 200.0),
        ("gemma2", {"final_logit_softcapping": None}, 1.0, None),
        ("granite", {"logits_scaling": 16.0}, 1 / 16, None),
        ("granite", {"logits_scaling": 1.0}, 1.0, None),
        ("hyperclovax", {"logits_scaling": 3.0}, 3.0, None),
        ("cohere", {"logit_scale": 0.0625}, 0.0625, None),
        ("falcon_h1", {"lm_head_multiplier": 0.0078125}, 0.0078125, None),
        ("minicpm3", {}, 12 / 32, None),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finds_the_configs_own_numbers(name, settings, scale, softcap, dtype):
    """The very number of the config, in bf16 too, where a measured one would be off by 4e-3."""
    head = LogitLens(families.build(name, **settings).to(dtype)).head
    assert head.scale == scale
    assert head.softcap == softcap


def test_a_cap_is_seen_behind_small_logits():
    """With logits of 1e-3 a cap of 30 changes nothing that a fit could see."""
    model = families.build("gemma2", final_logit_softcapping=30.0)
    with torch.no_grad():
        model.lm_head.weight.mul_(1e-3)
    assert LogitLens(model).head.softcap == 30.0


@pytest.mark.parametrize(("dtype", "mode"), [(torch.float32, "closed"), (torch.bfloat16, "head")])
def test_a_number_that_no_config_names_is_measured(dtype, mode):
    """A scale written into the code is found in float32; bf16 cannot resolve it."""
    model = families.build("llama").to(dtype)
    forward = model.forward

    def scaled(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = out.logits * 0.7371
        return out

    model.forward = scaled
    lens = LogitLens(model)
    assert lens.mode == mode
    if mode == "closed":
        assert lens.head.scale == pytest.approx(0.7371, rel=1e-6)
    states, logits = families.streams("llama", model)
    assert torch.equal(lens.logits(states[-1]), logits)


def test_another_operation_is_not_taken_for_a_scale():
    """Logits that are squared are read by the model's own forward, never by weight and scale."""
    model = families.build("llama")
    forward = model.forward

    def squared(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = out.logits.square()
        return out

    model.forward = squared
    lens = LogitLens(model)
    assert lens.mode == "head"
    states, logits = families.streams("llama", model)
    assert families.error(lens.logits(states[-1]), logits) <= 1e-5
    with pytest.raises(ValueError, match="its logits are neither a scale nor a soft cap of"):
        lens.check_trainable()


def test_a_padded_vocabulary_is_cut():
    """A model that drops padding rows from its logits has a head without them."""
    model = families.build("llama")
    forward = model.forward

    def cut(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = out.logits[..., :101]
        return out

    model.forward = cut
    lens = LogitLens(model)
    lens.check_trainable()
    assert lens.head.weight.shape == (101, 32)
    assert lens.head.weight.data_ptr() == model.lm_head.weight.data_ptr()
