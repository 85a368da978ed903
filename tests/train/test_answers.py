"""Answers scored during training, and the best checkpoint by them."""

import pytest
import toys

from distilllens import DistillLensConfig

EVALUATED = {
    "max_steps": 3,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
    "eval_generate": True,
}


class Judge:
    """Scores by the step: best at ``best``; remembers the weights it saw and its share."""

    def __init__(self, best):
        self.best, self.seen, self.shares = best, [], []

    def __call__(self, model, tokenizer, share):
        self.seen.append(toys.weights(model))
        self.shares.append(share)
        step = len(self.seen)
        return {"rouge_l": (-20.0 * abs(step - self.best) + 80.0, 4), "exact_match": (1.0, 4)}


def trained(folder, judge, **changes):
    """A trainer that has trained with those scores."""
    trainer = toys.trainer(
        folder, eval_dataset=toys.dataset(4), score_answers=judge, **(EVALUATED | changes)
    )
    trainer.train()
    return trainer


def test_the_best_checkpoint_by_answers_is_the_final_model(tmp_path):
    """Scores are logged as means, and the weights of the best evaluation come back."""
    judge = Judge(best=2)
    trainer = trained(tmp_path, judge)
    logged = [entry["eval_rouge_l"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert logged == [15.0, 20.0, 15.0]  # sums 60, 80, 60 over 4
    assert judge.shares == [(0, 1)] * 3
    assert trainer.state.best_metric == 20.0
    assert toys.drift(judge.seen[1], toys.weights(trainer.model)) == 0
    assert toys.drift(judge.seen[2], toys.weights(trainer.model)) > 0


def warnings_in(caplog):
    """What this package warned of."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelname == "WARNING" and record.name.startswith("distilllens")
    ]


def test_of_equal_checkpoints_the_last_is_kept(tmp_path, caplog):
    """transformers would keep the first; a metric that is the same throughout is named once."""
    judge = Judge(best=2)
    trainer = trained(tmp_path / "some", judge, max_steps=4, metric_for_best_model="exact_match")
    assert trainer.state.best_global_step == 4
    assert toys.drift(judge.seen[3], toys.weights(trainer.model)) == 0
    (said,) = warnings_in(caplog)
    assert said.startswith("eval_exact_match is 0.25 at all 4 evaluations, so it does not tell")
    caplog.clear()
    peak = Judge(best=2.5)  # steps 2 and 3 are equally good
    trainer = trained(tmp_path / "peak", peak, max_steps=4)
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-3")
    assert toys.drift(peak.seen[2], toys.weights(trainer.model)) == 0
    assert warnings_in(caplog) == []


def test_a_resumed_run_keeps_the_best(tmp_path):
    """The best of before the stop stays the best, though it lies two checkpoints back."""
    judge = Judge(best=1)
    trained(tmp_path, judge, save_total_limit=2)
    assert {p.name for p in tmp_path.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-3"}
    again = toys.trainer(
        tmp_path,
        eval_dataset=toys.dataset(4),
        score_answers=lambda *_: {"rouge_l": (0.0, 4), "exact_match": (0.0, 4)},
        **(EVALUATED | {"save_total_limit": 2, "max_steps": 4}),
    )
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert again.state.best_metric == 20.0
    assert toys.drift(judge.seen[0], toys.weights(again.model)) == 0


def test_the_choice_may_be_another_metric(tmp_path):
    """metric_for_best_model decides where it is set."""
    judge = Judge(best=1)
    trainer = trained(tmp_path, judge, metric_for_best_model="loss", learning_rate=1e-3)
    losses = [e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e]
    assert trainer.state.best_metric == min(losses) == losses[2]


def test_training_is_the_same_with_answers(tmp_path):
    """Answering moves no weight and no random state."""
    plain = {"eval_generate": False, "load_best_model_at_end": False}
    judge = Judge(best=3)
    with_answers = trained(tmp_path / "a", judge)
    without = trained(tmp_path / "b", None, **plain)
    assert toys.drift(toys.weights(with_answers.model), toys.weights(without.model)) == 0


def test_what_answers_need(tmp_path):
    """An evaluation, data for it, and something that scores; each is said."""
    with pytest.raises(ValueError, match="eval_generate needs evaluations: set eval_strategy"):
        DistillLensConfig(output_dir=str(tmp_path), eval_generate=True)
    with pytest.raises(ValueError, match="eval_generate must be true or false, got 'yes'"):
        toys.config(tmp_path, **(EVALUATED | {"eval_generate": "yes"}))
    for missing in ({"score_answers": None}, {"eval_dataset": None}):
        parts = {"eval_dataset": toys.dataset(4), "score_answers": Judge(1)} | missing
        with pytest.raises(ValueError, match="eval_generate needs an eval_dataset and score_answ"):
            toys.trainer(tmp_path, **parts, **EVALUATED)


@pytest.mark.parametrize(
    ("metric", "higher"),
    [("rouge_l", True), ("loss", False), ("cross_entropy", False), ("eval_lens_loss/1:2", False)],
)
def test_less_is_better_of_what_is_a_loss(tmp_path, metric, higher):
    """Whatever the name ends in."""
    args = toys.config(tmp_path, metric_for_best_model=metric)
    assert args.greater_is_better is higher
    assert toys.config(
        tmp_path, metric_for_best_model=metric, greater_is_better=True
    ).greater_is_better


def test_what_is_evaluated_is_saved(tmp_path):
    """Else the best evaluation might have no checkpoint; a missing interval follows the other."""
    with pytest.raises(ValueError, match=r"so eval_steps \(1\) and save_steps \(2\) must be equal"):
        toys.config(tmp_path, **(EVALUATED | {"save_steps": 2}))
    followed = {k: v for k, v in EVALUATED.items() if k != "eval_steps"}
    assert toys.config(tmp_path, **(followed | {"save_steps": 7})).eval_steps == 7
