"""Two recipes are one if values and contents agree, however they are spelled."""

import json

import pytest
import toys
from transformers import SchedulerType

from distilllens.cli import main
from distilllens.train.recipe_difference import first_difference
from distilllens.train.run_folder import recipe_identity

MODELS = {"student": {"config": "a", "weights": "b"}, "tokenizer": "t"}
FIELDS = {"train_file": ["train.jsonl"], "model_name_or_path": "student", "seed": 1, "bf16": False}


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    """Two data files and a folder of a student."""
    for name in ("train", "more"):
        (tmp_path / f"{name}.jsonl").write_text(name)
        (tmp_path / f"copy-of-{name}.jsonl").write_text(name)
    (tmp_path / "student").mkdir()
    (tmp_path / "moved").mkdir()
    monkeypatch.chdir(tmp_path)


def identity(files=("train.jsonl",), models=MODELS, **changes):
    """What a run of these fields notes; a field that is None is not set."""
    given = {k: v for k, v in (FIELDS | changes).items() if v is not None}
    return recipe_identity(given, list(files), models, 1)


def data(*names):
    return {"train_file": list(names), "files": names}


SAME = {
    "a dot before the data": data("./train.jsonl"),
    "data elsewhere": data("copy-of-train.jsonl"),
    "evaluation data added": {"eval_file": ["more.jsonl"], "files": ("train.jsonl", "more.jsonl")},
    "a default written out": {
        "temperature": 1.0,
        "lens_layers": "auto",
        "lr_scheduler_type": "linear",
    },
    "a default of the data": {"dataset_train_split": "train"},
    "a default that follows from the machine": {"bf16": None, "activation_checkpointing": False},
    "the student's folder with a dot": {"model_name_or_path": "./student/"},
    "the student's folder moved": {"model_name_or_path": "moved"},
    "saving and logging": {"save_steps": 7, "logging_steps": 3, "eval_steps": 2},
    "a whole number as a decimal": {"seed": 1.0},
}


@pytest.mark.parametrize("name", SAME)
def test_spellings_are_no_difference(name):
    """In either direction: what is written out may be left out again."""
    other = identity(**SAME[name])
    assert first_difference(identity(), other) is None
    assert first_difference(other, identity()) is None


OTHER = {
    "a field": ({"seed": 2}, "seed was 1 and is now 2"),
    "a field that was not set": ({"temperature": 2.0}, "temperature was not set and is now 2.0"),
    "other data": (data("more.jsonl"), "file 1 of train_file was 'train.jsonl' and is now 'more"),
    "more data": (data("train.jsonl", "more.jsonl"), "file 2 of train_file was not set and is now"),
    "the data of an evaluation that decides": (
        {
            "load_best_model_at_end": True,
            "eval_file": ["more.jsonl"],
            "files": ("train.jsonl", "more.jsonl"),
        },
        "load_best_model_at_end was not set and is now True",
    ),
    "other weights": (
        {"models": MODELS | {"student": {"config": "a", "weights": "c"}}},
        "the student model was {'config': 'a', 'weights': 'b'} and is now",
    ),
    "another student": (
        {"model_name_or_path": "moved", "models": MODELS | {"student": {"config": "x"}}},
        "model_name_or_path was 'student' and is now 'moved'",
    ),
    "a hub id without a commit": (
        {"model_name_or_path": "org/student"},
        "model_name_or_path was 'student' and is now 'org/student'",
    ),
    "another tokenizer": ({"models": MODELS | {"tokenizer": "u"}}, "the tokenizer was 't'"),
    "a teacher": ({"models": MODELS | {"teacher": {}}}, "the teacher model was not set"),
}


@pytest.mark.parametrize("name", OTHER)
def test_the_first_true_difference_is_named(name):
    """With what it was and what it is now."""
    changes, message = OTHER[name]
    assert message in first_difference(identity(), identity(**changes))


def test_a_cache_may_lie_elsewhere():
    """Its teacher is compared with the models; but a live teacher is no cache."""
    here, there, live = (identity(teacher_cache=name) for name in ("here", "there", None))
    assert first_difference(here, there) is None
    assert "teacher_cache was not set and is now 'here'" in first_difference(live, here)


def test_evaluation_data_count_if_they_decide_which_weights_are_final():
    """Of a run that keeps its best checkpoint."""
    best = {"load_best_model_at_end": True, "eval_file": ["more.jsonl"]}
    before = identity(files=("train.jsonl", "more.jsonl"), **best)
    copied = best | {"eval_file": ["copy-of-more.jsonl"]}
    assert (
        first_difference(before, identity(("train.jsonl", "copy-of-more.jsonl"), **copied)) is None
    )
    other = best | {"eval_file": ["copy-of-train.jsonl"]}
    difference = first_difference(before, identity(("train.jsonl", "copy-of-train.jsonl"), **other))
    assert difference.startswith("file 1 of eval_file was 'more.jsonl' and is now 'copy-of-train")


def test_rows_of_a_data_set_by_name_count():
    """Those that are trained on; version 0.1.0 did not note them."""
    given = {"dataset_name": "org/rows"}
    before, now, old = (
        recipe_identity(given, [], MODELS, 1, rows)
        for rows in ({"train": "a", "eval": "b"}, {"train": "a", "eval": "c"}, None)
    )
    assert first_difference(before, now) is None
    assert first_difference(old, before) is None
    other = recipe_identity(given, [], MODELS, 1, {"train": "c"})
    assert first_difference(before, other) == ("the train rows were 'a' and are now 'c'")


def test_a_run_of_an_older_version_notes_no_tokenizer():
    """It resumes, but under the same path: nobody knows whether another folder is the same."""
    before = identity(models={"student": MODELS["student"]})
    assert first_difference(before, identity()) is None
    assert "model_name_or_path was" in first_difference(
        before, identity(model_name_or_path="moved")
    )


def test_a_run_resumes_under_other_spellings(workshop, capsys):
    """Paths, defaults, evaluation data and save_steps: the finished run is recognised."""
    toys.recipe(workshop, max_steps=2)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    flags = ["--train_file", str(workshop / "train.jsonl"), "--model_name_or_path", "./student"]
    flags += ["--temperature", "1", "--eval_file", "train.jsonl", "--eval_strategy", "steps"]
    assert main(["train", "--config", "recipe.yaml", *flags, "--save_steps", "1"]) == 0
    assert "finished run of this recipe" in capsys.readouterr().err
    tokenizer = workshop / "student" / "tokenizer_config.json"
    settings = json.loads(tokenizer.read_text())
    tokenizer.write_text(json.dumps(settings | {"chat_template": "{{ messages }}"}))
    assert main(["train", "--config", "recipe.yaml"]) == 2
    assert "another recipe: the tokenizer was" in capsys.readouterr().err


@pytest.mark.parametrize("scheduler", ["reduce_lr_on_plateau", "greedy"])
def test_evaluations_count_if_the_learning_rate_follows_them(scheduler):
    """Another interval, or other data, would end at other weights."""
    fields = {"eval_steps": 10, "eval_file": ["more.jsonl"], "files": ("train.jsonl", "more.jsonl")}
    scheduler = SchedulerType(scheduler)  # as the configuration has it
    before = identity(**fields, lr_scheduler_type=scheduler)
    assert "eval_steps" in first_difference(
        before, identity(**fields | {"eval_steps": 500}, lr_scheduler_type=scheduler)
    )
    other = fields | {"eval_file": ["train.jsonl"], "files": ("train.jsonl",)}
    assert first_difference(before, identity(**other, lr_scheduler_type=scheduler))
    assert first_difference(identity(**fields), identity(**fields | {"eval_steps": 500})) is None
