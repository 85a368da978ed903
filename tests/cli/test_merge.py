"""``distilllens merge``: typed by a user; bad input is one line."""

import json

import pytest
import toys
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from distilllens.cli import main


def adapt():
    """An adapter in ``lora`` on the model in ``student``."""
    base = AutoModelForCausalLM.from_pretrained("student")
    get_peft_model(base, toys.lora()).save_pretrained("lora")


def test_a_folder_of_plain_transformers(workshop, capsys):
    """One line says where it is; a recipe can start from it."""
    adapt()
    assert main(["merge", "lora", "--output", "made"]) == 0
    out, err = capsys.readouterr()
    assert out == "" and "wrote made: " in err
    AutoModelForCausalLM.from_pretrained("made")


BAD = {
    "no run": (["--output", "made"], "the following arguments are required: RUN"),
    "no output": (["lora"], "--output is missing"),
    "no folder": (["none", "--output", "made"], "none does not exist; name the folder"),
    "a file": (["train.jsonl", "--output", "made"], "train.jsonl is a file"),
    "a whole model": (["student", "--output", "made"], "student is a whole model"),
    "an empty folder": (["empty", "--output", "made"], "empty has no adapter_config.json"),
    "a full output": (["lora", "--output", "teacher"], "--output teacher exists and is not empty"),
    "an output under a file": (["lora", "--output", "train.jsonl/x"], "train.jsonl is a file"),
    "a link": (["lora", "--output", "link"], "--output link is a symbolic link, which the folder"),
    "a link to nothing": (["lora", "--output", "dead"], "dead is a symbolic link to nothing"),
    "a dtype": (["lora", "--output", "made", "--dtype", "int8"], "invalid choice: 'int8'"),
    "two runs": (["lora", "lora", "--output", "made"], "unrecognized arguments: lora"),
    "no base": (["orphan", "--output", "made"], "gone"),
    "damaged": (["damaged", "--output", "made"], "adapter_config.json"),
    "no weights": (["weightless", "--output", "made"], "weightless"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(workshop, capsys, case):
    """What, which value, what would be right; and nothing is written."""
    adapt()
    config = json.loads((workshop / "lora/adapter_config.json").read_text())
    for name in ("empty", "orphan", "damaged", "weightless"):
        (workshop / name).mkdir()
    (workshop / "link").symlink_to(workshop / "empty")
    (workshop / "dead").symlink_to(workshop / "nowhere")
    orphan = {**config, "base_model_name_or_path": "./gone"}
    (workshop / "orphan/adapter_config.json").write_text(json.dumps(orphan))
    (workshop / "damaged/adapter_config.json").write_text('{"peft_type": ')
    (workshop / "weightless/adapter_config.json").write_text(json.dumps(config))
    before = sorted(path.name for path in workshop.iterdir())
    argv, words = BAD[case]
    capsys.readouterr()
    assert main(["merge", *argv]) == 2
    err = capsys.readouterr().err
    (line,) = [line for line in err.splitlines() if "error" in line]
    assert words in line
    assert sorted(path.name for path in workshop.iterdir()) == before
