"""Weights are those that training noted beside them."""

import json
import shutil

import pytest
import toys
from safetensors.torch import load_file, save_file

from distilllens.cli import main
from distilllens.files import write_json
from distilllens.loading import load_model
from distilllens.marks import MARK, RUN_FILE, check_noted_weights, described
from distilllens.train.checkpoint import mark_whole

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path):
    """A model and its tokenizer."""
    toys.llama().save_pretrained(tmp_path / "model")
    toys.tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def note_run(folder):
    """run.json of a finished run."""
    write_json(folder / RUN_FILE, {"recipe": {}, "weights": described(folder, [WEIGHTS])})


def note_sizes(folder):
    """complete.json of version 0.1.0."""
    write_json(folder / MARK, {"files": {WEIGHTS: (folder / WEIGHTS).stat().st_size}})


def flip(folder):
    """Change one number."""
    weights = load_file(folder / WEIGHTS)
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def cut(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])


CHANGED, SHORT = "the contents of model.safetensors have changed", "bytes instead of"
CASES = {
    "run": (note_run, flip, f"{CHANGED}, as run.json beside it tells"),
    "checkpoint": (mark_whole, flip, f"{CHANGED}, as complete.json beside it tells"),
    "size of a run": (note_run, cut, SHORT),
    "size of a checkpoint": (mark_whole, cut, SHORT),
    "old checkpoint": (note_sizes, cut, SHORT),
}


@pytest.mark.parametrize("case", CASES)
def test_damaged_weights_are_not_loaded(folder, case):
    """The role, the folder, the file, the note and what to do, on one line."""
    note, damage, message = CASES[case]
    note(folder)
    load_model("teacher", str(folder))
    damage(folder)
    with pytest.raises(ValueError) as refused:
        load_model("teacher", str(folder))
    said = str(refused.value)
    assert said.startswith(f"cannot load the teacher '{folder}': ") and message in said
    assert "; restore the file, or train again" in said and "\n" not in said


def test_the_base_of_an_adapter_is_compared_too(folder, tmp_path):
    """PEFT loads it by itself."""
    note_run(folder)
    flip(folder)
    (tmp_path / "adapter").mkdir()
    config = {"base_model_name_or_path": str(folder)}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"the base model '{folder}' of the model.*{CHANGED}"):
        load_model("model", str(tmp_path / "adapter"))


@pytest.mark.parametrize(
    "note",
    [
        {"files": {"optimizer.pt": 1, "tokenizer.json": 2, "gone/model.safetensors": 3}},
        {"files": {"data.csv": "text"}},
        {"shards": {}},
        [],
        "{",
    ],
)
def test_a_note_on_other_files_says_nothing(folder, note):
    """Files that no model is loaded from, notes of others, and a model without its optimizer."""
    for name in (MARK, RUN_FILE):
        (folder / name).write_text(note if isinstance(note, str) else json.dumps(note))
    check_noted_weights("the model", folder)


@pytest.mark.parametrize(
    "command",
    [
        "evaluate --model student --model copy --benchmark train.jsonl --output out",
        "evaluate --model student --teacher copy --benchmark train.jsonl --output out",
        "inspect --teacher teacher --student copy --prompt cat --output out",
        "train --config recipe.yaml --teacher_model_name_or_path copy --output_dir out",
        "train --config recipe.yaml --model_name_or_path copy --output_dir out",
    ],
)
def test_no_command_uses_them(workshop, capsys, command):
    """One line and status 2, before anything is written."""
    recipe = {
        "model_name_or_path": "student",
        "teacher_model_name_or_path": "teacher",
        "train_file": "train.jsonl",
        "max_steps": 1,
        "use_cpu": True,
        "report": False,
    }
    (workshop / "recipe.yaml").write_text(json.dumps(recipe))
    shutil.copytree(workshop / "teacher", workshop / "copy")
    note_run(workshop / "copy")
    flip(workshop / "copy")
    assert main(command.split()) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("distilllens: error: cannot load the ") and CHANGED in error
    assert not (workshop / "out").exists()
