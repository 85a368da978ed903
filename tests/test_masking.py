"""Tokens, keys and passwords are masked at any depth, and nothing else is."""

import json

import pytest
import toys

from distilllens.cli import main
from distilllens.masking import masked, masked_variable

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


@pytest.mark.parametrize(
    "value, shown",
    [
        ("http://proxy:3128", "http://proxy:3128"),
        ("http://user:s3cret@proxy:3128", "http://***@proxy:3128"),
        ("http://user:s@cret@proxy:3128/x@y", "http://***@proxy:3128/x@y"),
        ("user:s3cret@proxy:3128", "***@proxy:3128"),
    ],
)
def test_logins_of_addresses_are_masked(value, shown):
    """With a scheme or without; a password may hold an @."""
    assert masked_variable("HTTPS_PROXY", value) == masked_variable("https_proxy", value) == shown


def test_what_is_no_address_is_shown_as_it_is():
    assert masked_variable("USER", "me@home") == "me@home"
    assert masked_variable("X", "tcp://a:b@host") == "tcp://***@host"


@pytest.mark.slow
@pytest.mark.parametrize("several", [False, True], ids=["a teacher", "teachers"])
def test_no_file_of_a_run_holds_a_token(workshop, monkeypatch, several):
    """Neither run.json nor what transformers pickles, of checkpoints and of the final model."""
    kwargs = {"token": SECRET, "local_files_only": True}
    entry = {"model": "teacher", "weight": 1.0, "model_init_kwargs": kwargs}
    teacher = {"teacher_model_init_kwargs": kwargs}
    if several:
        teacher = {"teacher_model_name_or_path": None, "teachers": [entry]}
    toys.recipe(workshop, hub_token=SECRET, **teacher)
    monkeypatch.setattr("sys.argv", ["distilllens", "train", "--hub_token", SECRET])
    assert main(["train", "--config", "recipe.yaml"]) == 0
    files = [path for path in (workshop / "out").rglob("*") if path.is_file()]
    assert any(path.name == "training_args.bin" for path in files)
    assert [str(path) for path in files if SECRET.encode() in path.read_bytes()] == []
    assert "***" in json.dumps(json.loads((workshop / "out" / "run.json").read_text()))
    assert main(["train", "--config", "recipe.yaml"]) == 0  # the same recipe
