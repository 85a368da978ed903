"""Models are found and checked before any weights are read."""

import json
import shutil

import pytest
import torch
import toys
from peft import get_peft_model

from distilllens.evaluate.models import find_models
from distilllens.files import sha256


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A folder with a model and its tokenizer, in the working directory."""
    monkeypatch.chdir(tmp_path)
    toys.llama().save_pretrained("base")
    toys.tokenizer().save_pretrained("base")
    return tmp_path / "base"


def test_a_folder_is_a_candidate(base):
    """Label, hashes of its files, tokenizer; the model loads in eval mode and the wanted dtype."""
    (found,) = find_models(["base"])
    assert (found.label, found.name) == ("base", "base")
    assert found.hashes["model.safetensors"] == sha256(base / "model.safetensors")
    assert found.tokenizer.get_vocab() == toys.tokenizer().get_vocab()
    model = found.load("cpu", "bfloat16")
    assert not model.training and model.dtype == torch.bfloat16


def test_an_adapter_has_the_tokenizer_and_the_hashes_of_its_base(base, tmp_path):
    """A file of either that changes makes another model; an adapter's own tokenizer comes first."""
    adapter = get_peft_model(toys.llama(), toys.lora())
    adapter.peft_config["default"].base_model_name_or_path = "base"
    adapter.save_pretrained("adapter")
    (found,) = find_models(["adapter"])
    assert found.hashes["base/model.safetensors"] == sha256(base / "model.safetensors")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    assert found.hashes["adapter_model.safetensors"] == sha256(weights)
    assert found.config.hidden_size == 16 and len(found.tokenizer) == 22
    ids = torch.tensor([[2, 3, 4]])
    with torch.no_grad():
        expected = adapter.eval()(ids).logits
        torch.testing.assert_close(found.load("cpu")(ids).logits, expected)
    toys.tokenizer([*toys.WORDS, "extra"]).save_pretrained("adapter")
    assert len(find_models(["adapter"])[0].tokenizer) == 23


def test_the_base_of_a_run_is_found_from_any_folder(base, tmp_path, monkeypatch):
    """A run notes where it began, and its adapter's path is relative to that folder."""
    adapter = get_peft_model(toys.llama(), toys.lora())
    adapter.peft_config["default"].base_model_name_or_path = "base"
    for name, weight in adapter.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)  # zeros at first
    for folder in ("run", "run/checkpoint-2"):
        adapter.save_pretrained(folder)
        toys.tokenizer().save_pretrained(folder)
    (tmp_path / "run" / "run.json").write_text(json.dumps({"working_directory": str(tmp_path)}))
    ids = torch.tensor([[2, 3, 4]])
    with torch.no_grad():
        expected = adapter.eval()(ids).logits
        plain = toys.llama().eval()(ids).logits
    assert not torch.allclose(expected, plain)
    here = find_models(["run", "run/checkpoint-2"])
    assert [found.base for found in here] == ["base", "base"]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    toys.llama(seed=7).save_pretrained("base")  # another model of that name
    found = find_models(["../run", "../run/checkpoint-2"])
    for one, before in zip(found, here, strict=True):
        assert one.base == str(base) and one.hashes == before.hashes
        with torch.no_grad():
            torch.testing.assert_close(one.load("cpu")(ids).logits, expected)
    weights = tmp_path / "run" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:99])
    with pytest.raises(ValueError, match=r"cannot load the adapter \.\./run of .*base: "):
        find_models(["../run"])[0].load("cpu")
    (tmp_path / "run" / "run.json").unlink()
    shutil.rmtree("base")
    with pytest.raises(ValueError, match=r"the base model 'base' of the adapter \.\./run"):
        find_models(["../run"])


def test_a_checkpoint_is_named_after_its_run(base, monkeypatch):
    """Alone, beside its run, beside another run's, and named from within its run."""
    for folder in ("kd", "kd/checkpoint-20", "lens/checkpoint-20", "kd_checkpoint-20"):
        toys.llama().save_pretrained(folder)
        toys.tokenizer().save_pretrained(folder)
    for names, labels in (
        (["kd/checkpoint-20"], ["kd_checkpoint-20"]),
        (["kd", "kd/checkpoint-20"], ["kd", "kd_checkpoint-20"]),
        (["kd/checkpoint-20", "lens/checkpoint-20"], ["kd_checkpoint-20", "lens_checkpoint-20"]),
        (["kd_checkpoint-20", "kd/checkpoint-20"], ["kd_checkpoint-20", "checkpoint-20"]),
    ):
        assert [found.label for found in find_models(names)] == labels
    monkeypatch.chdir("kd")
    assert [found.label for found in find_models(["checkpoint-20"])] == ["kd_checkpoint-20"]


def test_folders_of_one_name_are_told_apart(base):
    """By the folders above them."""
    for run in ("kd", "lens"):
        toys.llama().save_pretrained(f"{run}/final")
        toys.tokenizer().save_pretrained(f"{run}/final")
    assert [c.label for c in find_models(["kd/final", "lens/final"])] == ["kd_final", "lens_final"]
