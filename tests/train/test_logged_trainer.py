"""What is logged where an evaluation and the end of an epoch meet, and what is evaluated."""

import math

import pytest
import toys

EPOCHS = {"num_train_epochs": 2, "max_steps": -1, "per_device_train_batch_size": 2}
EPOCHS |= {"per_device_eval_batch_size": 4, "logging_strategy": "epoch", "save_strategy": "no"}


def rows(trainer):
    """The rows of the log that tell of training."""
    return [row for row in trainer.state.log_history if "loss" in row]


def test_an_evaluation_at_the_end_of_an_epoch_changes_no_log(tmp_path):
    """Each epoch has its own means of all terms, as without evaluations."""
    logs = {}
    for name, more in {"without": {}, "with": {"eval_strategy": "steps", "eval_steps": 4}}.items():
        trainer = toys.trainer(
            toys.config(tmp_path / name, **EPOCHS | more),
            data=toys.dataset(8),
            eval_dataset=toys.dataset(5, seed=3),
        )
        trainer.train()
        logs[name] = rows(trainer)
    assert len(logs["with"]) == len(logs["without"]) == 2
    for plain, evaluated in zip(logs["without"], logs["with"], strict=True):
        assert {"lens_loss", "output_loss", "cross_entropy"} <= plain.keys() == evaluated.keys()
        for name in ("loss", "lens_loss", "output_loss", "cross_entropy", "entropy", "num_tokens"):
            assert math.isclose(plain[name], evaluated[name], rel_tol=1e-6), name


@pytest.mark.parametrize("dropped", [False, True])
def test_all_rows_are_evaluated(tmp_path, dropped):
    """``dataloader_drop_last`` is for training: five rows in batches of four are five rows."""
    args = toys.config(tmp_path, per_device_eval_batch_size=4, dataloader_drop_last=dropped)
    trainer = toys.trainer(args, eval_dataset=toys.dataset(5, seed=3))
    assert sum(len(batch["input_ids"]) for batch in trainer.get_eval_dataloader()) == 5
    assert trainer.args.dataloader_drop_last == dropped
    assert trainer.get_train_dataloader().batch_sampler.drop_last == dropped
