"""Tokens, keys and passwords are masked at any depth, and nothing else is."""

import json

import pytest
import toys

from distilllens.cli import main
from distilllens.masking import masked

SECRET = "hf_abcdefghijklmnop"


def test_names_at_any_depth_are_masked():
    """Mappings in lists in mappings; flags, other names and other values stay."""
    value = {
        "teacher_model_init_kwargs": {"token": SECRET, "dtype": "bfloat16", "revision": "main"},
        "teachers": [{"model": "a", "token": SECRET}, ("x", {"password": "p"})],
        "hub_token": SECRET,
        "token": True,
        "eos_token": "<eos>",
        "api_key": None,
    }
    assert masked(value) == {
        "teacher_model_init_kwargs": {"token": "***", "dtype": "bfloat16", "revision": "main"},
        "teachers": [{"model": "a", "token": "***"}, ("x", {"password": "***"})],
        "hub_token": "***",
        "token": True,
        "eos_token": "<eos>",
        "api_key": None,
    }


def test_a_hub_token_inside_a_text_is_masked():
    """As it may stand in a command."""
    assert masked(f"--kwargs '{{token: {SECRET}}}'") == "--kwargs '{token: ***}'"
    assert masked("hf_short and self_hf_") == "hf_short and self_hf_"


@pytest.mark.slow
def test_no_file_of_a_run_holds_a_token(workshop, monkeypatch):
    """Neither run.json nor what transformers pickles, of checkpoints and of the final model."""
    kwargs = {"token": SECRET, "local_files_only": True}
    toys.recipe(workshop, teacher_model_init_kwargs=kwargs, hub_token=SECRET)
    monkeypatch.setattr("sys.argv", ["distilllens", "train", "--hub_token", SECRET])
    assert main(["train", "--config", "recipe.yaml"]) == 0
    files = [path for path in (workshop / "out").rglob("*") if path.is_file()]
    assert any(path.name == "training_args.bin" for path in files)
    assert [str(path) for path in files if SECRET.encode() in path.read_bytes()] == []
    assert "***" in json.dumps(json.loads((workshop / "out" / "run.json").read_text()))
    assert main(["train", "--config", "recipe.yaml"]) == 0  # the same recipe
