"""A run's log goes on after an interruption as if there had been none."""

import json
import math

import pytest
import toys

from distilllens.train.carried import CarriedSums

SETTINGS = {"max_steps": 6, "logging_steps": 4, "save_strategy": "steps", "save_steps": 2}
SETTINGS |= {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
TIMES = ("runtime", "per_second")


def told(trainer):
    """The log without times."""
    return [
        {name: value for name, value in row.items() if not name.endswith(TIMES)}
        for row in trainer.state.log_history
    ]


@pytest.mark.parametrize("step", [2, 4, 6])
@pytest.mark.parametrize("restores", [False, True])
def test_the_log_of_a_resumed_run_is_that_of_one_without_interruption(tmp_path, step, restores):
    """Between two logs, at one, and at the end; train_loss is a mean over all steps."""
    settings = SETTINGS | {"restore_callback_states_from_checkpoint": restores}
    whole = toys.trainer(tmp_path / "a", **settings)
    expected = whole.train()
    again = toys.trainer(tmp_path / "b", **settings)
    found = again.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{step}"))
    for before, after in zip(told(whole), told(again), strict=True):
        assert before.keys() == after.keys()
        for name in before:
            assert math.isclose(before[name], after[name], rel_tol=1e-6), name
    assert math.isclose(found.training_loss, expected.training_loss, rel_tol=1e-6)


def test_train_loss_is_the_mean_of_the_steps(tmp_path):
    """Each step's loss is in the log; with plain SGD on equal counts of rows."""
    trainer = toys.trainer(tmp_path, **SETTINGS | {"logging_steps": 1})
    loss = trainer.train().training_loss
    steps = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(steps) == 6 and math.isclose(loss, sum(steps) / 6, rel_tol=1e-6)


@pytest.mark.parametrize("kind", ["older", "damaged"])
def test_a_checkpoint_without_sums_says_what_train_loss_is(tmp_path, caplog, kind):
    """It is then the mean of the steps since; the next checkpoint is saved all the same."""
    settings = SETTINGS | {"logging_steps": 1}
    toys.trainer(tmp_path, **settings).train()
    file = tmp_path / "checkpoint-4" / "trainer_state.json"
    state = json.loads(file.read_text())
    if kind == "older":
        del state["stateful_callbacks"]["CarriedSums"]
    else:
        state["stateful_callbacks"]["CarriedSums"]["attributes"]["entries"]["loss"] = "much"
    file.write_text(json.dumps(state))
    again = toys.trainer(tmp_path, **settings)
    with caplog.at_level("INFO", "distilllens"):
        loss = again.train(resume_from_checkpoint=str(file.parent)).training_loss
    assert "train_loss will be a mean over the steps after step 4" in caplog.text
    steps = [row["loss"] for row in again.state.log_history if "loss" in row][-2:]
    assert math.isclose(loss, sum(steps) / 2, rel_tol=1e-6)
    assert (tmp_path / "checkpoint-6" / "complete.json").exists()


def test_the_speed_after_a_resume_is_that_of_its_own_steps(tmp_path, monkeypatch):
    """Tokens that were counted before the interruption took no time since; loading is no step."""
    clock = iter(range(0, 10**6, 10))
    monkeypatch.setattr("distilllens.train.logged_trainer.time.perf_counter", lambda: next(clock))
    whole = toys.trainer(tmp_path, **SETTINGS)
    whole.train()
    speed = whole.state.log_history[0]["target_tokens_per_second"]
    again = toys.trainer(tmp_path, **SETTINGS)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    # One tick of ten seconds each for four and for two steps; an epoch is two steps.
    assert math.isclose(again.state.log_history[0]["target_tokens_per_second"], speed / 2)


def test_a_second_training_begins_anew(tmp_path):
    """Without a resume, nothing of the first one is counted."""
    trainer = toys.trainer(tmp_path, **SETTINGS | {"learning_rate": 0.0, "save_strategy": "no"})
    assert math.isclose(trainer.train().training_loss, trainer.train().training_loss, rel_tol=1e-6)


def test_a_run_that_resumes_at_its_last_step_has_the_same_mean():
    """To the last digit of float64."""
    total = 4 * 3.675475001335144
    stored = {"attributes": {"entries": {"since": 0, "loss": total, "terms": {}}}}
    carried = CarriedSums()
    carried.restart(stored, 4, 1, main=True)
    assert carried.mean_loss(4, 1, lambda sums: sums) == total / 4
