"""Loading a configuration, tokenizer or model: found, or one line on why not."""

import io
import json
from types import SimpleNamespace

import pytest
import torch
import toys
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import MambaConfig

from distilllens import LogitLens, capture
from distilllens.loading import (
    base_model_name,
    check_architectures,
    find_tokenizer,
    generation_ends,
    least_positions,
    load_adapter,
    load_config,
    load_model,
    load_tokenizer,
    size_in_words,
)
from distilllens.names import shortest_names, unique_names

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
    ],
)
def test_a_configuration_that_is_not_there(folder, spoil, message):
    """The role, the folder and the reason, in one line."""
    spoil(folder)
    with pytest.raises(ValueError, match=message) as refused:
        load_config("teacher", str(folder))
    assert str(refused.value).startswith(f"cannot load the teacher '{folder}'")
    assert "\n" not in str(refused.value)


def test_an_adapter_has_the_configuration_and_tokenizer_of_its_base(folder, tmp_path):
    """Unless it has a tokenizer itself; an adapter that cannot be read is refused by name."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    assert load_config("teacher", str(adapter)).num_hidden_layers == 3
    assert load_tokenizer("teacher", str(adapter)).eos_token == "<eos>"
    assert find_tokenizer("teacher", str(adapter)).eos_token == "<eos>"
    file.write_text("{}")
    with pytest.raises(ValueError, match=r"adapter_config\.json cannot be read"):
        load_config("teacher", str(adapter))


# name: (the file, what is set in it or its text, who cannot load it, what is said)
SPOILT = {
    "an infinite size": ("config.json", {"hidden_size": float("inf")}, "all", "'hidden_size'.*inf"),
    "a size of 1.5": ("config.json", {"vocab_size": 1.5}, "all", "'vocab_size': .* got float"),
    "no heads": (
        "config.json",
        {"num_attention_heads": 0},
        "all",
        "ZeroDivisionError: integer mod",
    ),
    "a number for a name": (
        "config.json",
        {"rope_parameters": {"rope_type": 1.5, "rope_theta": 1.0}},
        [load_model],
        "KeyError: 1.5",
    ),
    "an unknown name": ("config.json", {"hidden_act": "abc"}, [load_model], "KeyError: 'abc'"),
    "a list": ("config.json", "[]", "all", r"the content is \[\]; it must be an object"),
    "a tokenizer's list": ("tokenizer_config.json", "[]", [load_tokenizer], "must be an object"),
    "a torn tokenizer": ("tokenizer.json", "{", [load_tokenizer], "broken JSON"),
    "a list of settings": ("generation_config.json", "[]", [load_model], "must be an object"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_file_of_a_model_is_named(folder, name):
    """With the whole error; another tokenizer is no advice where config.json is spoilt."""
    file, change, loads, message = SPOILT[name]
    settings = json.loads((folder / file).read_text())
    text = change if isinstance(change, str) else json.dumps(settings | change)
    (folder / file).write_text(text)
    for load in [load_config, load_tokenizer, load_model] if loads == "all" else loads:
        advice = {"advice": "set it"} if load is load_tokenizer else {}
        with pytest.raises(ValueError, match=rf"{file}.*{message}") as refused:
            load("student", str(folder), **advice)
        said = str(refused.value)
        assert "\n" not in said and not said.rstrip().endswith(":")
        assert said.endswith("; set it") == (load is load_tokenizer and file != "config.json")


@pytest.mark.parametrize("names", [[], None, [1], "LlamaForCausalLM"])
def test_a_student_names_its_class(folder, names):
    """The trainer reads the first of them, whatever it is."""
    config = load_config("student", str(folder))
    check_architectures(str(folder), config)
    config.architectures = names
    with pytest.raises(ValueError, match=r"in its config\.json, architectures is .*; it must name"):
        check_architectures(str(folder), config)


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


@pytest.fixture
def places(folder, tmp_path, monkeypatch):
    """Folders that lack something, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("runs/kd", "runs/unfinished/checkpoint-4", "runs/bare", "adapter"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("runs/unfinished/checkpoint-4", "runs/bare"):
        (tmp_path / name / "config.json").write_text((folder / "config.json").read_text())


LOCAL = {
    "dot": (load_config, "./nowhere", "no such folder"),
    "slash": (load_config, "/nowhere", "no such folder"),
    "tilde": (load_config, "~/nowhere", "no such folder"),
    "somebody's home": (load_config, "~nobody-at-all/a", "no such folder"),
    "two slashes": (load_config, "a/b/c", "no such folder"),
    "a backslash": (load_config, "C:\\models\\a", "no such folder"),
    "in a folder that exists": (
        load_config,
        "runs/nowhere",
        "no such folder (there is a folder runs here",
    ),
    "misspelt": (load_config, "runs/kdd", "Face); did you mean runs/kd?"),
    "misspelt for its tokenizer": (load_tokenizer, "runs/kdd", "; did you mean runs/kd?"),
    "misspelt for its weights": (load_model, "runs/kdd", "; did you mean runs/kd?"),
    "empty": (load_config, "runs/kd", "the folder has no readable config.json: there is none"),
    "a run that is not finished": (
        load_config,
        "runs/unfinished",
        "did you mean its checkpoint runs/unfinished/checkpoint-4?",
    ),
    "no weights": (load_model, "runs/bare", "the folder holds no weights (model.safetensors)"),
    "no tokenizer": (load_tokenizer, "runs/bare", "the folder holds no tokenizer"),
    "a file": (load_model, "model/config.json", "it is a file; name its folder"),
}


@pytest.mark.parametrize("name", LOCAL)
def test_a_path_is_no_hub_id(places, name):
    """What is missing is said at once, without an address of the hub."""
    load, path, message = LOCAL[name]
    with pytest.raises(ValueError) as refused:
        load("student", path)
    said = str(refused.value)
    assert message in said and repr(path) in said
    assert "huggingface" not in said and "\n" not in said and "hub" not in said


def test_a_hub_id_is_asked_for(places, tmp_path):
    """A name with at most one slash and no folder of that name; a near one is suggested."""
    for name in ("gpt2", "org/model"):
        with pytest.raises(ValueError, match="the hub did not have it"):
            load_config("student", name)
    with pytest.raises(ValueError, match=r"did you mean model\?"):
        load_config("student", "modle")


def test_an_adapter_without_its_base(places):
    """The base is named, and where to say where it is now; broken settings are one line."""
    from pathlib import Path

    settings = Path("adapter/adapter_config.json")
    for base in ("/old/base", "runs/base"):
        settings.write_text(json.dumps({"base_model_name_or_path": base, "peft_type": "LORA"}))
        for load in (lambda: base_model_name(Path("adapter")), lambda: load_model("m", "adapter")):
            with pytest.raises(ValueError, match=f"is an adapter of '{base}', and there is no"):
                load()
    with pytest.raises(
        ValueError, match=r"base model 'bsae' of the adapter adapter.*; set base_mo"
    ):
        load_config("model", "bsae", adapter="adapter")
    for broken in ("[]", "{", "{}", '{"base_model_name_or_path": null}', "\x00", "[" * 10_000):
        settings.write_text(broken)
        with pytest.raises(ValueError, match=r"adapter_config\.json cannot be read: "):
            load_model("model", "adapter")


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


def test_packed_weights_count_as_what_they_are():
    """bitsandbytes stores two 4-bit weights in a byte, and their number beside it."""
    model = torch.nn.Linear(4, 6, bias=False)
    packed = torch.nn.Parameter(torch.zeros(12, 1, dtype=torch.uint8), requires_grad=False)
    packed.quant_state = SimpleNamespace(shape=torch.Size([6, 4]))
    model.packed = packed
    assert size_in_words(model) == "48 parameters (24 trainable), float32 and 4-bit"


def test_generation_ends_where_the_model_says(tmp_path):
    """By its generation_config.json; without one by its configuration."""
    toys.llama().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 7]}))
    assert generation_ends(load_config("student", str(tmp_path))) == [0, 7]
    (tmp_path / "generation_config.json").unlink()
    assert generation_ends(load_config("student", str(tmp_path))) == 0
    assert generation_ends(toys.llama().config) == 0


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("module", ["lm_head", "embed_tokens"])
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_an_adapter_with_a_head_of_its_own_is_read_by_it(tmp_path, monkeypatch, tied, module):
    """modules_to_save: the logits of a folder are those of the model that was saved, and the lens
    reads the trained copy, as a model that is read and as one whose training goes on."""
    monkeypatch.chdir(tmp_path)
    toys.llama(tied=tied).save_pretrained("base")
    settings = {"target_modules": ["q_proj"], "modules_to_save": [module]}
    trained = get_peft_model(load_model("student", "base"), LoraConfig(r=2, **settings))
    generator = torch.Generator().manual_seed(0)
    for weight in trained.parameters():
        if weight.requires_grad:
            weight.data += 0.3 * torch.randn(weight.shape, generator=generator)
    trained.save_pretrained("adapter")
    ids = torch.tensor([[2, 3, 4, 5]])
    with torch.no_grad():
        expected = trained.eval()(input_ids=ids).logits
        assert not torch.allclose(expected, load_model("student", "base")(ids).logits, atol=0.1)
        for model in (
            load_model("teacher", "adapter"),
            load_adapter(PeftModel, load_model("student", "base"), "adapter").eval(),
        ):
            assert torch.equal(model(input_ids=ids).logits, expected)
            lens = LogitLens(model)
            last = capture(lens, [3], input_ids=ids)[3]
            torch.testing.assert_close(lens.logits(last), expected, atol=1e-6, rtol=0)
            lens.check_trainable()
