"""A module beside the student is trained, clipped, saved and resumed as the student is."""

import pytest
import torch
import toys
from safetensors.torch import load_file
from torch import nn

from distilllens import DistillLensTrainer

ADAM = {"optim": "adamw_torch", "adam_epsilon": 1e-3, "learning_rate": 0.01, "weight_decay": 0.5}


class Accompanied(DistillLensTrainer):
    """Its loss adds the mean square of a linear map of each target's number."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        labels = inputs["labels"][:, 1:]
        numbers = labels[labels != -100].float()[:, None] / 24
        more = self.companions["pointers"](numbers).square().sum()
        return loss + more / torch.as_tensor(num_items_in_batch or len(numbers))


def made(tmp_path, **settings):
    trainer = Accompanied(
        toys.llama(),
        toys.llama(4, 24, seed=1),
        args=toys.config(tmp_path, **settings),
        train_dataset=toys.dataset(),
        eval_dataset=toys.dataset(4, seed=9),
        processing_class=toys.tokenizer(),
    )
    torch.manual_seed(3)
    trainer.add_companion("pointers", nn.Linear(1, 2))
    return trainer


def moved(trainer):
    """Its weights after training, and those of the student."""
    before = toys.weights(trainer.companions)
    trainer.train()
    after = toys.weights(trainer.companions)
    assert toys.drift(before, after) > 1e-3
    return after | toys.weights(trainer.model)


@pytest.mark.parametrize("settings", [{}, ADAM, {"max_grad_norm": 0.05}])
@pytest.mark.parametrize(("batch", "accumulation"), [(2, 2), (1, 4)])
def test_its_step_does_not_depend_on_accumulation(tmp_path, settings, batch, accumulation):
    """Gradients are summed over micro-batches and cleared after the step; one norm clips all."""
    split = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    whole, parts = made(tmp_path, **settings), made(tmp_path, **settings, **split)
    assert toys.drift(moved(whole), moved(parts)) < 1e-6
    assert "pointers" not in " ".join(whole.model.state_dict())


def test_clipping_takes_student_and_companion_together(tmp_path):
    """One SGD step of rate 1 is as long as the norm that everything is clipped to."""
    settings = {"max_steps": 1, "learning_rate": 1.0, "max_grad_norm": 0.05}
    trainer = made(tmp_path, **settings)
    start = toys.weights(trainer.companions) | toys.weights(trainer.model)
    end = moved(trainer)
    length = sum(float((end[n] - start[n]).square().sum()) for n in start) ** 0.5
    assert length == pytest.approx(0.05, rel=1e-3)
    assert trainer.state.log_history[0]["grad_norm"] > 0.05


def test_it_is_not_decayed(tmp_path):
    """Without a gradient it stays, whatever the weight decay of the student."""
    trainer = made(tmp_path, **ADAM)
    trainer.add_companion("idle", nn.Linear(3, 3))
    before = toys.weights(trainer.companions["idle"])
    trainer.train()
    assert toys.drift(before, toys.weights(trainer.companions["idle"])) == 0


def test_a_resumed_run_ends_at_its_bits(tmp_path):
    """Weights and the optimizer's state come from the checkpoint; the final file holds them."""
    settings = {**ADAM, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = made(tmp_path, **settings)
    expected = moved(whole)
    resumed = made(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    found = toys.weights(resumed.companions) | toys.weights(resumed.model)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    resumed.save_model(str(tmp_path / "final"))
    stored = load_file(tmp_path / "final" / "companions" / "pointers.safetensors")
    # What vLLM and others load: every such file beside the configuration.
    assert [f.name for f in (tmp_path / "final").glob("*.safetensors")] == ["model.safetensors"]
    assert all(
        torch.equal(stored[n], p) for n, p in resumed.companions["pointers"].named_parameters()
    )


def test_the_best_checkpoint_brings_its_own(tmp_path):
    """load_best_model_at_end takes the companion of the same step."""
    trainer = made(
        tmp_path,
        learning_rate=50.0,  # the first checkpoint is the best
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_cross_entropy",
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best.endswith("checkpoint-1")
    stored = load_file(f"{best}/companions/pointers.safetensors")
    assert torch.equal(stored["weight"], trainer.companions["pointers"].weight)


def test_one_that_is_not_finite_is_not_saved(tmp_path):
    """As the student's weights: a resumed run would be lost at its first step."""
    trainer = made(tmp_path)
    trainer.companions["pointers"].weight.data[0] = float("nan")
    with pytest.raises(ValueError, match=r"weights of the pointers are not finite: weight holds"):
        trainer.save_model(str(tmp_path / "final"))
    assert not list((tmp_path / "final").rglob("*.safetensors"))


def test_a_checkpoint_without_it_is_refused(tmp_path):
    """One line says which file is missing or of another run."""
    settings = {"save_strategy": "steps", "save_steps": 1}
    made(tmp_path, **settings).train()
    file = tmp_path / "checkpoint-1" / "companions" / "pointers.safetensors"
    file.unlink()
    with pytest.raises(ValueError, match=r"pointers.safetensors does not hold the pointers of"):
        made(tmp_path, **settings).train(resume_from_checkpoint=str(file.parents[1]))
