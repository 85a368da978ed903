"""push_to_hub, against a stand-in for the hub's HTTP interface."""

import json

import hub_stub
import pytest
from huggingface_hub import constants
from toys import recipe
from transformers import AutoModelForCausalLM

from distilllens.cli import main

# The hub's client gives its HTTP library a file in a way that it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
TRAIN = ["train", "--config", "recipe.yaml"]


@pytest.fixture
def hub(workshop, monkeypatch):
    """The hub, which knows the token of the environment; the test runs in the workshop."""
    with hub_stub.served() as stub:
        monkeypatch.setattr(constants, "ENDPOINT", stub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", hub_stub.TOKEN)
        yield stub


def test_the_final_model_is_uploaded_and_nothing_else_of_the_run(hub, workshop, capsys):
    recipe(workshop, push_to_hub=True, hub_private_repo=True, learning_rate=1e-3)
    assert main(TRAIN) == 0
    said = capsys.readouterr().err
    assert f"the final model is at {hub.url}/someone/out/commit/" in said
    assert "no effect" not in said
    assert hub.private == {"someone/out": "private"} and hub.messages == ["End of training"]
    uploaded = hub.repositories["someone/out"]
    expected = {"README.md", "config.json", "generation_config.json", "model.safetensors"}
    assert uploaded.keys() >= expected | {"tokenizer.json", "tokenizer_config.json"}
    left_out = {"run.json", "trainer_state.json", "training_args.bin", "run.lock"}
    assert not uploaded.keys() & left_out and not any("/" in name for name in uploaded)
    for name, content in uploaded.items():
        assert content == (workshop / "out" / name).read_bytes()
        (workshop / "taken").mkdir(exist_ok=True)
        (workshop / "taken" / name).write_bytes(content)
    AutoModelForCausalLM.from_pretrained(workshop / "taken")


def test_an_upload_that_failed_is_one_line_and_the_same_command_makes_up_for_it(
    hub, workshop, capsys
):
    recipe(workshop, push_to_hub=True, hub_model_id="us/student", hub_revision="next")
    hub.broken = True
    assert main(TRAIN) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the final model is in out, but was not uploaded to us/student" in error
    assert "no room left in this account" in error and "the same command uploads it" in error
    assert json.loads((workshop / "out/run.json").read_text())["finished"]
    weights = (workshop / "out/model.safetensors").stat().st_mtime_ns
    hub.broken = False
    assert main(TRAIN) == 0
    assert "nothing to do" in (err := capsys.readouterr().err) and "us/student/commit/" in err
    assert (workshop / "out/model.safetensors").stat().st_mtime_ns == weights
    assert "model.safetensors" in hub.repositories["us/student"]
    assert hub.branches == ["next", "next"]  # made before the training; the second time it is there


def test_a_run_that_does_not_say_what_its_model_is_is_not_uploaded(hub, workshop, capsys):
    """Of version 0.1.0."""
    recipe(workshop)
    assert main(TRAIN) == 0
    note = json.loads((workshop / "out/run.json").read_text())
    del note["weights"], note["files"]
    (workshop / "out/run.json").write_text(json.dumps(note))
    recipe(workshop, push_to_hub=True)
    assert main(TRAIN) == 2
    assert "out was not uploaded: its run.json does not say" in capsys.readouterr().err
    assert hub.repositories == {"someone/out": {}}


def test_a_token_that_is_not_known_is_told_before_anything_is_loaded(
    hub, workshop, capsys, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    recipe(workshop, push_to_hub=True)
    assert main(TRAIN) == 2
    err = capsys.readouterr().err
    assert f"push_to_hub: {hub.url} gave no repository out: " in err.splitlines()[-1]
    assert "HF_TOKEN" in err and "hf_of_somebody_else" not in err
    assert "loading the tokenizer" not in err and not (workshop / "out").exists()


def test_checkpoints_are_not_uploaded(hub, workshop, capsys):
    recipe(workshop, push_to_hub=True, hub_strategy="checkpoint")
    assert main(TRAIN) == 2
    assert "hub_strategy checkpoint: checkpoints are not uploaded" in capsys.readouterr().err
    assert not hub.repositories
    recipe(workshop, push_to_hub=True, hub_strategy="end")
    assert main(TRAIN) == 0


@pytest.mark.parametrize("field", [{"hub_model_id": "us/x"}, {"hub_private_repo": True}])
def test_a_repository_without_an_upload_is_asked_after(hub, workshop, capsys, field):
    recipe(workshop, **field)
    assert main(TRAIN) == 2
    (name,) = field
    assert (
        f"{name} is set, and nothing is uploaded; set push_to_hub: true" in capsys.readouterr().err
    )


def test_a_hub_that_cannot_be_reached_is_no_matter_of_tokens(hub, workshop, capsys, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    recipe(workshop, push_to_hub=True)
    assert main(TRAIN) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "push_to_hub: http://127.0.0.1:9 gave no repository out: " in error
    assert "HF_TOKEN" not in error and error.count("refused") == 1
