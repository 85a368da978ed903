"""Loading a configuration, tokenizer or model: found, or one line on why not."""

import io
import json

import pytest
import toys
from transformers import MambaConfig

from distilllens.loading import (
    base_model_name,
    find_tokenizer,
    least_positions,
    load_config,
    load_model,
    load_tokenizer,
    shortest_names,
    unique_names,
)

CODE = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"


@pytest.fixture
def folder(tmp_path):
    """A model and its tokenizer."""
    toys.llama().save_pretrained(tmp_path / "model")
    toys.tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_all_three_are_loaded(folder):
    """By the folder's name."""
    assert load_config("student", str(folder)).num_hidden_layers == 3
    assert load_tokenizer("student", str(folder)).eos_token == "<eos>"
    assert toys.drift(toys.weights(toys.llama()), toys.weights(load_model("m", str(folder)))) == 0


@pytest.mark.parametrize("load", [load_config, load_tokenizer, load_model])
def test_code_beside_a_model_never_runs_unasked(folder, load, monkeypatch, tmp_path):
    """Not even where standard input says yes."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    (folder / "evil.py").write_text(CODE)
    for name, kind in (("config.json", "Config"), ("tokenizer_config.json", "Tokenizer")):
        settings = json.loads((folder / name).read_text())
        names = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
        settings["auto_map"] = {"AutoTokenizer": ["evil.T", None]} if kind == "Tokenizer" else names
        settings["model_type"] = "evil"
        settings.pop("tokenizer_class", None)
        (folder / name).write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="cannot load the"):
        load("student", str(folder))
    assert not list(tmp_path.rglob("ran"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "the folder has no readable config.json"),
        (lambda f: (f / "config.json").write_text("{"), "the folder has no readable config.json"),
        (lambda f: (f / "adapter_config.json").write_text("{}"), "the folder holds an adapter"),
    ],
)
def test_a_configuration_that_is_not_there(folder, spoil, message):
    """The role, the folder and the reason, in one line."""
    spoil(folder)
    with pytest.raises(ValueError, match=message) as refused:
        load_config("teacher", str(folder))
    assert str(refused.value).startswith(f"cannot load the teacher '{folder}'")
    assert "\n" not in str(refused.value)


def test_weights_that_are_missing_are_not_made_up(folder):
    """transformers would draw them at random."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lack model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model("student", str(folder))


def test_a_folder_without_a_tokenizer_has_none(folder):
    """That is no error; a broken tokenizer is one."""
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert find_tokenizer("teacher", str(folder)) is None
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="cannot load the tokenizer of the teacher"):
        find_tokenizer("teacher", str(folder))


def test_an_adapter_names_its_base(tmp_path):
    """None for a whole model, or for a file."""
    assert base_model_name(tmp_path) is None
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "base"}')
    assert base_model_name(tmp_path) == "base"
    assert base_model_name(tmp_path / "adapter_config.json") is None
    (tmp_path / "adapter_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"adapter_config\.json cannot be read"):
        base_model_name(tmp_path)


def test_the_shortest_context_counts():
    """Configurations without a limit have no say."""
    configs = [toys.llama(positions=64).config, toys.gpt2().config]
    assert least_positions(configs) == 64
    assert least_positions([MambaConfig()]) is None


def test_names_are_as_short_as_they_can_be(tmp_path, monkeypatch):
    """One part where it tells paths apart, more where it must; data suffixes go."""
    monkeypatch.chdir(tmp_path)
    assert shortest_names(["runs/a", "runs/b"]) == ["a", "b"]
    assert shortest_names(["x/kd", "y/kd", "z"]) == ["x/kd", "y/kd", "z"]
    assert shortest_names(["student", "deep/student"]) == ["student", "deep/student"]
    assert shortest_names(["same", "same"]) == ["same", "same"]
    assert unique_names(["data/dolly.jsonl", "data/sni.json.gz"]) == ["dolly", "sni"]
    assert unique_names(["a/valid.jsonl", "b/valid.jsonl"]) == ["a_valid", "b_valid"]
    with pytest.raises(ValueError, match="named twice"):
        unique_names(["runs/a", "runs/../runs/a"])
    with pytest.raises(ValueError, match="would both be called a_b"):
        unique_names(["x/a_b", "a/b", "c/b"])
