"""A model by name, with the adapter in its folder merged."""

import pytest
import torch
import toys
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from distilllens.train.merging import load_merged


def test_an_adapter_is_merged_into_its_base(tmp_path):
    """W + s B A, as a plain model; a folder of a whole model is loaded as it is."""
    toys.llama(3, 16).save_pretrained(tmp_path / "base")
    base = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    settings = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], init_lora_weights=False)
    adapted = get_peft_model(base, settings).eval()
    adapted.save_pretrained(tmp_path / "lora")
    merged = load_merged("teacher", str(tmp_path / "lora"), dtype="auto")
    assert not any("lora" in name for name, _ in merged.named_modules())
    for ours, theirs in zip(
        merged.model.layers, adapted.get_base_model().model.layers, strict=True
    ):
        module = theirs.self_attn.q_proj
        low = module.lora_B["default"].weight @ module.lora_A["default"].weight
        wanted = module.base_layer.weight + 2.0 * low
        assert torch.allclose(ours.self_attn.q_proj.weight, wanted, atol=1e-6)
        assert torch.equal(ours.mlp.up_proj.weight, theirs.mlp.up_proj.weight)
    plain = load_merged("teacher", str(tmp_path / "base"), dtype="auto")
    module = base.model.layers[0].self_attn.q_proj
    assert torch.equal(plain.model.layers[0].self_attn.q_proj.weight, module.base_layer.weight)


def test_what_is_not_there_is_said(tmp_path):
    """As of any model."""
    with pytest.raises(ValueError, match="cannot load the teacher"):
        load_merged("teacher", str(tmp_path / "none"))


@pytest.mark.filterwarnings("ignore:.*tie:UserWarning", "ignore:Setting `save_emb:UserWarning")
@pytest.mark.parametrize(
    ("targets", "saved"),
    [(["lm_head"], None), (["embed_tokens"], None), (["q_proj"], ["lm_head"]), (["q_proj"], None)],
)
def test_an_adapter_of_a_tied_head_changes_no_embedding(tmp_path, targets, saved):
    """Merged, saved and loaded again it predicts what base and adapter predict."""
    toys.llama(2, 16, tied=True).save_pretrained(tmp_path / "base")
    base = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    settings = LoraConfig(r=2, target_modules=targets, modules_to_save=saved)
    adapted = get_peft_model(base, settings).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.add_(0.3 * torch.randn_like(weight))
    adapted.save_pretrained(tmp_path / "lora")
    ids = torch.tensor([[3, 9, 4, 17, 5]])
    merged = load_merged("teacher", str(tmp_path / "lora"), dtype="auto").eval()
    merged.save_pretrained(tmp_path / "merged")
    again = LlamaForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        wanted = adapted(input_ids=ids).logits
        for model in (merged, again):
            assert torch.allclose(model(input_ids=ids).logits, wanted, atol=1e-4)
    # What other programs go by.
    assert again.config.tie_word_embeddings == (targets == ["q_proj"] and saved is None)
