"""The trainer keeps what it has: no step past the end, none that is not finite."""

import math

import pytest
import torch
import toys
from safetensors.torch import load_file
from torch import nn

from distilllens.train.finite import check_weights, first_not_finite

SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4, "weight_decay": 0.0}


def test_resuming_at_the_last_step_takes_no_further_step(tmp_path):
    """Killed between the last checkpoint and the end, with a constant rate: the same weights."""
    toys.trainer(tmp_path, **SAVING).train()
    expected = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    again = toys.trainer(tmp_path, **SAVING)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert again.state.global_step == 4
    found = {name: tensor for name, tensor in again.model.state_dict().items() if name in expected}
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_longer_run_goes_on_from_there(tmp_path):
    """Two more steps are two more steps."""
    toys.trainer(tmp_path, **SAVING).train()
    more = toys.trainer(tmp_path, **SAVING | {"max_steps": 6})
    more.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert more.state.global_step == 6


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_not_taken(tmp_path, where):
    """At step 3: the weights stay those of step 2, and so does its checkpoint."""
    trainer = toys.trainer(tmp_path, **SAVING)
    compute = trainer.compute_loss

    def poisoned(model, inputs, *args, **kwargs):
        loss = compute(model, inputs, *args, **kwargs)
        if trainer.state.global_step < 2:
            return loss
        weight = next(p for p in model.parameters() if p.requires_grad)
        if where == "loss":
            return loss * math.nan
        return loss + (weight - weight.detach()).abs().sqrt().sum()  # 0, with an infinite slope

    trainer.compute_loss = poisoned
    match = r"loss is not finite \(nan\) at step 3, in the rows that begin with '"
    match = match if where == "loss" else r"gradient is not finite \(nan\) at step 3; "
    with pytest.raises(ValueError, match=match) as refused:
        trainer.train()
    assert f"{tmp_path}/checkpoint-2 is the last checkpoint" in str(refused.value)
    kept = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    for name, tensor in kept.items():
        assert torch.equal(trainer.model.state_dict()[name], tensor), name
    assert not (tmp_path / "checkpoint-3").exists()


def test_an_absurd_rate_ends_the_run_and_saves_nothing_broken(tmp_path):
    """Its first step makes weights that are not finite, which are refused when they are saved."""
    trainer = toys.trainer(tmp_path, **SAVING, learning_rate=1e38)
    with pytest.raises(ValueError, match=r"not finite"):
        trainer.train()
    for file in tmp_path.rglob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(file).values())


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("who", ["student", "teacher"])
def test_models_that_are_not_finite_are_named_as_that(tmp_path, who, value):
    """Before anything is written, and not as a model whose blocks cannot be found."""
    models = {"student": toys.llama(), "teacher": toys.llama(4, 24, seed=1)}
    with torch.no_grad():
        models[who].model.layers[1].mlp.up_proj.weight[3, 3] = value
    match = rf"weights of the {who} are not finite: model.layers.1.mlp.up_proj.weight holds {value}"
    with pytest.raises(ValueError, match=match):
        toys.trainer(tmp_path / "out", **models)
    assert not (tmp_path / "out" / "run.json").exists()


def test_masks_may_be_infinite_and_weights_may_not():
    """A buffer of -inf is a mask; integers and empty tensors have nothing to check."""
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.full((2, 2), -math.inf))
    model.register_buffer("ids", torch.arange(3))
    model.register_buffer("nothing", torch.empty(0))
    assert first_not_finite(model) is None
    model.mask[0, 0] = math.nan
    with pytest.raises(ValueError, match="mask holds nan"):
        check_weights("student", model)


def test_a_run_without_a_step_is_refused(tmp_path):
    """Eight rows make no batch of nine, and an untrained model is not a distilled one."""
    batch = {"per_device_train_batch_size": 9, "dataloader_drop_last": True}
    with pytest.raises(ValueError, match="8 training rows are fewer than a batch of 9"):
        toys.trainer(tmp_path, **batch)
    toys.trainer(tmp_path, **batch | {"per_device_train_batch_size": 8})


class _Sharded(nn.Parameter):
    """A parameter whose local part is a plain tensor, as that of a DTensor is."""

    def to_local(self):
        return self.detach()


def test_an_infinite_weight_that_is_sharded_is_found():
    """The local part is no ``Parameter``; it is a weight nevertheless."""
    model = nn.Module()
    model.weight = _Sharded(torch.tensor([1.0, math.inf]))
    assert first_not_finite(model) == ("weight", math.inf)


def test_micro_batches_of_one_step_at_most_are_remembered(tmp_path):
    """A loop of the user's own calls ``training_step`` and never asks for the gradient's norm."""
    trainer = toys.trainer(tmp_path, gradient_accumulation_steps=2)
    batch = next(iter(trainer.get_train_dataloader()))
    for _ in range(5):
        trainer.training_step(trainer.model, dict(batch))
    assert len(trainer._micro_batches) == 2


def test_the_newest_checkpoint_outlives_the_best(tmp_path):
    """Until the final model is saved: with a limit of 1 transformers would delete it before."""
    trainer = toys.trainer(
        toys.config(
            tmp_path,
            max_steps=4,
            save_steps=2,
            save_strategy="steps",
            save_total_limit=1,
            eval_strategy="steps",
            eval_steps=2,
            load_best_model_at_end=True,
            metric_for_best_model="loss",
            greater_is_better=True,  # so that the best is the first
        ),
        eval_dataset=toys.dataset(4, seed=3),
    )
    trainer.saves_final_model = True
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    assert (tmp_path / "checkpoint-4" / "complete.json").is_file()
    assert trainer.args.save_total_limit == 1
