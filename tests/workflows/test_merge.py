"""An adapter merged into its base model: the same predictions, in a folder without PEFT."""

import json

import pytest
import torch
import toys
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from distilllens.workflows.merge import merge

IDS = torch.tensor([[3, 9, 4, 17, 5, 8, 2]])


def adapted(folder, *, dtype=torch.float32):
    """An adapter in ``folder``, whose weights are not zero, on the model in ``student``."""
    base = AutoModelForCausalLM.from_pretrained("student").to(dtype)
    base.save_pretrained("student")
    model = get_peft_model(base, toys.lora())
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(folder)


@torch.no_grad()
def predictions(model):
    """Log probabilities after a few tokens, in float64."""
    return model.eval()(IDS).logits.double().log_softmax(-1)


def test_it_predicts_what_base_and_adapter_predict(workshop):
    """To float32 noise, and the adapter matters; nothing of PEFT is left in the folder."""
    GenerationConfig(temperature=0.3, do_sample=True, eos_token_id=0).save_pretrained("student")
    adapted("lora")
    line = merge("lora", "made")
    base = AutoModelForCausalLM.from_pretrained("student")
    expected = predictions(PeftModel.from_pretrained(base, "lora"))
    found = AutoModelForCausalLM.from_pretrained("made")
    torch.testing.assert_close(predictions(found), expected, atol=1e-5, rtol=0)
    plain = predictions(AutoModelForCausalLM.from_pretrained("student"))
    assert (plain - expected).abs().max() > 0.1
    assert found.generation_config.temperature == 0.3
    assert AutoTokenizer.from_pretrained("made").get_vocab()
    assert line.startswith("wrote made: ")
    assert not [*(workshop / "made").glob("adapter*")]


@pytest.mark.parametrize(
    ("asked", "saved"), [("auto", "bfloat16"), ("float32", "float32"), ("float16", "float16")]
)
def test_the_dtype_is_that_of_the_base_model_unless_asked(workshop, asked, saved):
    """A model in bfloat16 does not double its size; what rounding costs is told."""
    adapted("lora", dtype=torch.bfloat16)
    line = merge("lora", "made", dtype=asked)
    assert json.loads((workshop / "made/config.json").read_text())["dtype"] == saved
    model = AutoModelForCausalLM.from_pretrained("made", dtype="auto")
    assert {str(weight.dtype) for weight in model.parameters()} == {f"torch.{saved}"}
    distance = float(line.partition("merged) is ")[2].split()[0])
    assert {"float32": 0, "float16": 1e-9, "bfloat16": 1e-7}[saved] <= distance
    assert distance < {"float32": 1e-9, "float16": 1e-4, "bfloat16": 1e-2}[saved]


def test_a_merge_that_fails_leaves_nothing(workshop, monkeypatch):
    """A full disk: neither the folder nor a part of it, and one line."""
    adapted("lora")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        merge("lora", "made")
    assert not [*workshop.glob("made*")]
