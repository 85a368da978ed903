"""Trials: what they are made of, and what follows from them."""

import json
from dataclasses import replace

import pytest

from distilllens.workflows.study import terms
from distilllens.workflows.study.matrix import Study
from distilllens.workflows.study.runs import Folders

BASE = {"train_file": "train.jsonl", "max_steps": 60, "per_device_train_batch_size": 2}
STUDY = Study(
    "study.yaml",
    BASE,
    {"kd": {"lens_weight": 0.0}, "lens": {}},
    {"kd": (1,), "lens": (1,)},
    "kd",
    equal="seconds",
)
COSTS = {"kd": 1.0, "lens": 1.5}


class Trials:
    """The trials of studies in one folder, without training."""

    def __init__(self, folder):
        self.folder, self.timed = folder, []

    def __call__(self, study, **trial):
        """The terms of a study, and its trials."""
        found = terms.Terms(study, Folders(self.folder / "out"))

        def alone(name, function, recipe, file, made_of):
            method = name.removeprefix("trial-")
            self.timed.append(method)
            file.parent.mkdir(parents=True, exist_ok=True)
            made = {"seconds": COSTS[method], "flops": None, "epoch": 8.0, "made_of": made_of}
            file.write_text(json.dumps(made | trial))

        return found, found.trials(study.recipe, alone)


@pytest.fixture
def trials(tmp_path, monkeypatch):
    """A folder with data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "completion": " b"}\n')
    return Trials(tmp_path)


@pytest.mark.parametrize(
    ("changes", "steps"),
    [({"max_steps": 600}, 600), ({"max_steps": -1, "num_train_epochs": 2.5}, 20)],
)
def test_a_longer_run_has_the_same_steps_and_more_of_them(trials, changes, steps):
    """What was timed holds; how many steps there are says the file."""
    assert trials(STUDY)[1]["kd"].steps == 60
    found, again = trials(replace(STUDY, base=BASE | changes))
    assert trials.timed == ["kd", "lens"]
    assert again["kd"].steps == steps
    assert found.equal_steps(again) == {"kd": steps, "lens": int(steps / 1.5 + 1e-9)}


def test_other_steps_are_timed_again(trials, tmp_path):
    """Of another batch, of other data, of another method with the old name."""
    trials(STUDY)
    trials(replace(STUDY, base=BASE | {"per_device_train_batch_size": 4}))
    assert trials.timed == ["kd", "lens"] * 2
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "completion": " c"}\n')
    trials(replace(STUDY, base=BASE | {"per_device_train_batch_size": 4}))
    assert trials.timed == ["kd", "lens"] * 3
    trials(replace(STUDY, methods={"kd": {"lens_weight": 0.0}, "lens": {"lens_weight": 2.0}}))
    assert trials.timed == [*["kd", "lens"] * 4]


def test_one_method_alone_is_timed_again(trials):
    """The other's trial is as it was."""
    trials(STUDY)
    trials(replace(STUDY, methods={"kd": {"lens_weight": 0.0}, "lens": {"lens_weight": 2.0}}))
    assert trials.timed == ["kd", "lens", "lens"]


def test_costs_that_are_not_known_are_not_made_equal(trials):
    """One line instead of a division by nothing."""
    found, costs = trials(replace(STUDY, equal="flops"))
    with pytest.raises(ValueError, match="the flops of a step of kd are not known; set equal: st"):
        found.equal_steps(costs)


def test_a_trial_evaluates_and_saves_nothing_and_logs_each_step():
    """Whatever the recipe says: ``logging_strategy: no`` would count no tokens."""
    assert terms._SHORT["eval_strategy"] == terms._SHORT["save_strategy"] == "no"
    assert terms._SHORT["logging_strategy"] == "steps" and not terms._SHORT["eval_generate"]
