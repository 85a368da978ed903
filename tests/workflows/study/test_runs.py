"""The order of a study's runs, and which learning rate is chosen."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from distilllens.workflows.study.matrix import Study
from distilllens.workflows.study.runs import (
    ANSWER,
    TRAIN,
    Folders,
    Run,
    Task,
    chosen_rate,
    number_of_tasks,
    tasks,
)

STUDY = Study(
    path="study.yaml",
    base={},
    methods={"kd": {}, "lens": {}},
    seeds={"kd": (1, 2), "lens": (1, 2)},
    baseline="kd",
)
RATES = replace(STUDY, learning_rates=(0.1, 0.2))


def known(study, scores=None, *, has_answers=False):
    """The tasks, each once."""
    found = tasks(study, (scores or {}).get, has_answers=has_answers)
    return list(dict.fromkeys(found))


def test_every_method_has_its_first_seed_before_any_has_its_second():
    """Without learning rates, everything is known at once."""
    runs = [Run("kd", 1), Run("lens", 1), Run("kd", 2), Run("lens", 2)]
    assert known(STUDY) == [Task(run, TRAIN) for run in runs]


def test_answers_follow_each_run():
    """A run is answered after it is trained."""
    found = known(STUDY, has_answers=True)
    assert len(found) == number_of_tasks(STUDY, has_answers=True) == 8
    for run in (Run("kd", 2), Run("lens", 1)):
        assert found.index(Task(run, TRAIN)) < found.index(Task(run, ANSWER))


def test_a_method_with_fewer_seeds_has_fewer_runs():
    """The seeds of each method are its own."""
    found = known(replace(STUDY, seeds={"kd": (1, 2), "lens": (2,)}))
    assert [task.run.name for task in found] == ["kd/seed-1", "lens/seed-2", "kd/seed-2"]


def test_candidates_come_first_and_other_seeds_when_they_are_scored():
    """Of a method with scored candidates, the chosen rate alone goes on."""
    names = [task.run.name for task in known(RATES)]
    assert names == [f"{m}/rate-{r}-seed-1" for m in ("kd", "lens") for r in ("0.1", "0.2")]
    scores = {Run("kd", 1, 0.1): 2.0, Run("kd", 1, 0.2): 1.0}
    names = [task.run.name for task in known(RATES, scores)]
    assert names[4:] == ["kd/rate-0.2-seed-2"]
    scores |= {Run("lens", 1, 0.1): 2.0, Run("lens", 1, 0.2): 3.0}
    found = known(RATES, scores, has_answers=True)
    assert [task.run.name for task in found if task.kind == ANSWER] == [
        "kd/rate-0.2-seed-1",
        "lens/rate-0.1-seed-1",
        "kd/rate-0.2-seed-2",
        "lens/rate-0.1-seed-2",
    ]
    assert len(found) == number_of_tasks(RATES, has_answers=True) == 10


@pytest.mark.parametrize(
    ("scores", "rate"),
    [((2.0, 1.0), 0.2), ((1.0, 1.0), 0.1), ((math.nan, 9.0), 0.2), ((9.0, math.inf), 0.1)],
)
def test_the_lowest_score_wins(scores, rate):
    """Of equal ones the lower rate; a run that diverged never."""
    found = dict(zip([Run("kd", 1, 0.1), Run("kd", 1, 0.2)], scores, strict=True))
    assert chosen_rate(RATES, "kd", found.get) == rate


def test_no_rate_is_chosen_where_all_diverged():
    """The rates are named."""
    found = dict.fromkeys([Run("kd", 1, 0.1), Run("kd", 1, 0.2)], math.inf)
    with pytest.raises(ValueError, match=r"kd diverged with each of learning_rates 0\.1, 0\.2"):
        chosen_rate(RATES, "kd", found.get)


def test_no_rate_is_chosen_before_all_are_scored():
    """And none where the recipe has it."""
    with pytest.raises(LookupError):
        chosen_rate(RATES, "kd", {Run("kd", 1, 0.1): 1.0}.get)
    assert chosen_rate(STUDY, "kd", {}.get) is None


def test_a_task_is_done_when_its_note_is_there(tmp_path):
    """It is written last, one of each kind."""
    folders, run = Folders(Path(tmp_path)), Run("kd", 1, 1e-3)
    train, answer = Task(run, TRAIN), Task(run, ANSWER)
    assert run.name == "kd/rate-0.001-seed-1"
    assert not train.is_done(folders)
    folders.note(train).parent.mkdir(parents=True)
    folders.note(train).write_text("{}")
    assert train.is_done(folders)
    assert not answer.is_done(folders)
    folders.note(answer).write_text("{}")
    assert answer.is_done(folders)


def test_other_rates_have_other_names():
    """Also where six digits do not tell them apart; a usual rate keeps its short name."""
    rates = (5e-4, 0.00012345678, 0.00012345679)
    names = [Run("kd", 1, rate).name for rate in rates]
    assert names[0] == "kd/rate-0.0005-seed-1" and len({*names}) == 3
