"""The lens reads a PEFT-wrapped model as that model is, adapters included."""

import lens_families as families
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from distilllens import LogitLens, capture
from distilllens.lens import read_states

EXACT = 1e-5
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]


def wrapped(name="llama", **settings):
    """A LoRA model whose adapters are not at their initial zero."""
    config = LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False, **settings)
    return get_peft_model(families.build(name), config)


def check_exact(model, lens, name="llama"):
    """The truth of the unwrapped model, at every block."""
    base = model.get_base_model()
    with torch.no_grad():
        states, logits = families.streams(name, base)
        assert families.error(model(input_ids=families.IDS).logits, logits) == 0
        for hidden in states:
            expected = families.truth(name, base, hidden)
            assert families.error(lens.logits(hidden), expected) <= EXACT
        assert families.error(lens.logits(states[-1]), logits) <= EXACT
    return logits


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "opt", "granite"])
def test_lora_is_read_and_trained(name):
    """Adapters in the blocks: exact, trainable, and gradients reach them and only them."""
    model = wrapped(name, target_modules="all-linear").eval()
    lens = LogitLens(model)
    lens.check_trainable()
    logits = check_exact(model, lens, name)
    read = read_states(lens, [1, 2], input_ids=families.IDS)
    assert families.error(lens.head(read.final), logits) <= EXACT
    (read[1].sum() + read[2].sum()).backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached and all("lora" in n for n in reached)
    capture(model, [1], input_ids=families.IDS)


def test_lora_on_the_head_is_never_ignored():
    """``logits`` include the adapter; a bare weight would drop it, so ``head`` raises."""
    model = wrapped(target_modules=["q_proj", "lm_head"])
    lens = LogitLens(model)
    check_exact(model, lens)
    with pytest.raises(ValueError, match=r"is a peft.*Linear, not a plain nn.Linear: its weight"):
        _ = lens.head
    with pytest.raises(ValueError, match=r"cannot be trained through the lens: .* nn.Linear"):
        lens.check_trainable()


def test_saved_modules_are_the_ones_in_use():
    """modules_to_save on head and norm: the trained copies are read, and found by ``head``."""
    model = wrapped(target_modules=["q_proj"], modules_to_save=["lm_head", "norm"])
    base = model.get_base_model()
    with torch.no_grad():
        base.lm_head.modules_to_save["default"].weight.mul_(1.5)
        base.model.norm.modules_to_save["default"].weight.add_(0.3)
    lens = LogitLens(model)
    lens.check_trainable()
    check_exact(model, lens)
    assert lens.head.weight is base.lm_head.modules_to_save["default"].weight
    with model.disable_adapter():
        assert lens.head.weight is base.lm_head.original_module.weight


def test_the_lens_follows_a_disabled_adapter():
    """Inside ``disable_adapter`` the same lens reads the base model."""
    model = wrapped(target_modules="all-linear")
    plain = families.build("llama")
    lens = LogitLens(model)
    with model.disable_adapter(), torch.no_grad():
        states = capture(lens, [2], input_ids=families.IDS)
        expected = capture(plain, [2], input_ids=families.IDS)
        assert torch.equal(states[2], expected[2])
        assert torch.equal(lens.logits(states[2]), LogitLens(plain).logits(expected[2]))
        assert LogitLens(model).num_layers == 3
    assert not torch.equal(capture(lens, [2], input_ids=families.IDS)[2], expected[2])


def test_active_adapter_stays():
    """Two adapters: the chosen one is read and stays chosen."""
    model = wrapped(target_modules=["q_proj"])
    model.add_adapter("other", LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False))
    model.set_adapter("other")
    before = [p.requires_grad for p in model.parameters()]
    check_exact(model, LogitLens(model))
    assert model.active_adapter == "other"
    assert [p.requires_grad for p in model.parameters()] == before


def test_virtual_tokens_are_refused():
    """Prompt tuning changes what the model reads before the lens can see it."""
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = get_peft_model(families.build("llama"), config)
    with pytest.raises(ValueError, match="PeftModelForCausalLM adds virtual tokens"):
        LogitLens(model)
