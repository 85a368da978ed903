"""A run with a tuned lens: both models are fitted first, and measured through what was fitted."""

import pytest
import torch
import toys

from distilllens import DistillLensConfig, LogitLens
from distilllens.lens import capture
from distilllens.lens.translators import load_translators
from distilllens.stored import DamagedFile

TUNED = {"lens_readout": "tuned", "lens_layers": "1:1,2:3"}


def lens_by_hand(trainer, student, teacher):
    """The mean JSD of all targets and pairs, in float64, through the translators written out."""
    maps = trainer.companions
    total, count = 0.0, 0
    for row in trainer.train_dataset:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        valid = labels[1:] != -100
        for s, t in trainer.objective.layer_map:
            sides = []
            for lens, depth, name in (
                (student, s, "translators"),
                (teacher, t, "teacher_translators"),
            ):
                hidden = capture(lens, [depth], input_ids=ids)[depth]
                at = maps[name].depths.index(depth)
                weight, bias = maps[name].weight[at], maps[name].bias[at]
                logits = lens.logits(hidden + hidden @ weight.T + bias)
                sides.append(logits[0, :-1][valid].double().softmax(-1))
            q, p = sides
            m = (p + q) / 2
            total += 0.5 * float((p * (p / m).log() + q * (q / m).log()).sum().detach())
        count += int(valid.sum())
    return total / count / len(trainer.objective.layer_map)


def test_the_lens_is_measured_through_both_models_translators(tmp_path):
    """What is logged before the first change is the formula; then the student's maps move."""
    student, teacher = toys.llama(), toys.llama(4, 24, seed=1)
    trainer = toys.trainer(
        tmp_path, student=student, teacher=teacher, max_steps=1, per_device_train_batch_size=8,
        **TUNED,
    )  # fmt: skip
    trainer.fit_lenses()
    expected = lens_by_hand(trainer, LogitLens(toys.twin(student)), LogitLens(teacher))
    before = {name: p.detach().clone() for name, p in trainer.companions.named_parameters()}
    trainer.train()
    assert trainer.state.log_history[0]["lens_loss"] == pytest.approx(expected, rel=1e-5)
    moved = {
        name: float((p.detach() - before[name]).abs().max())
        for name, p in trainer.companions.named_parameters()
    }
    assert moved["translators.weight"] > 1e-4
    assert moved["teacher_translators.weight"] == moved["teacher_translators.bias"] == 0


def test_fitting_brings_the_lens_nearer_to_the_output(tmp_path):
    """KL(output || lens) of each model falls at every depth that is compared."""
    student, teacher = toys.llama(), toys.llama(4, 24, seed=1)
    trainer = toys.trainer(tmp_path, student=student, teacher=teacher, **TUNED)
    trainer.fit_lenses()
    rows = [torch.tensor([row["input_ids"]]) for row in trainer.train_dataset]
    for model, name in ((student, "translators"), (teacher, "teacher_translators")):
        plain = LogitLens(model)
        lens, last = plain.tuned(trainer.companions[name]), plain.num_layers
        for depth in trainer.companions[name].depths:
            kl = []
            for ids in rows:
                states = capture(plain, [depth, last], input_ids=ids)
                p = plain.logits(states[last]).softmax(-1)
                for each in (plain, lens):
                    q = each.logits(each.translate(depth, states[depth]))
                    kl.append(float((p * (p.log() - q.log_softmax(-1))).sum(-1).mean().detach()))
            assert sum(kl[1::2]) < 0.8 * sum(kl[::2])


def test_both_lie_beside_the_model_and_not_in_it(tmp_path):
    """A plain load of the student has no word of them; the files give them back."""
    trainer = toys.trainer(tmp_path, **TUNED)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    trainer.create_model_card()
    assert "final norm | yes, behind a tuned lens |" in (tmp_path / "README.md").read_text()
    assert not [name for name in trainer.model.state_dict() if "translator" in name]
    for name, depths in (("translators", (1, 2)), ("teacher_translators", (1, 3))):
        found, _ = load_translators(tmp_path / "final" / "companions" / f"{name}.safetensors")
        assert found.depths == depths
        assert torch.equal(found.weight, trainer.companions[name].weight)


def test_a_cache_gives_what_the_live_teacher_gives(tmp_path):
    """Weights after three steps; the cache keeps the translators, and another run reads them."""
    cache = str(tmp_path / "cache")

    def run(name, **kwargs):
        trainer = toys.trainer(tmp_path / name, **TUNED, **kwargs)
        trainer.train()
        return toys.weights(trainer.model) | toys.weights(trainer.companions), trainer

    live, _ = run("live")
    written, _ = run("written", teacher_cache=cache)
    read, trainer = run("read", teacher_cache=cache, teacher=None)
    assert toys.drift(live, written) < 1e-6
    assert toys.drift(written, read) == 0
    assert trainer.teacher.manifest.readout not in ("logit", "")
    # More documents pass through the same translators, though other data would give others.
    more = toys.trainer(
        tmp_path / "more", **TUNED, teacher_cache=cache, data=toys.dataset(12, seed=5)
    )
    more.train()
    assert torch.equal(
        more.companions["teacher_translators"].weight,
        trainer.companions["teacher_translators"].weight,
    )


@pytest.mark.parametrize(("written", "now"), [("logit", "tuned"), ("tuned", "logit")])
def test_a_cache_of_the_other_readout_is_refused(tmp_path, written, now):
    """Its states are not those that the lens would compare."""
    settings = {"teacher_cache": str(tmp_path / "cache"), "lens_layers": "1:1,2:3"}
    toys.trainer(tmp_path / "a", lens_readout=written, **settings).train()
    with pytest.raises(ValueError, match=f"lens_readout was {written} .* and is now {now}"):
        toys.trainer(tmp_path / "b", lens_readout=now, **settings)


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_cache_without_its_translators_is_refused(tmp_path, damage):
    """They say what its states mean."""
    settings = {**TUNED, "teacher_cache": str(tmp_path / "cache")}
    toys.trainer(tmp_path / "a", **settings).train()
    file = tmp_path / "cache" / "translators.safetensors"
    if damage == "missing":
        file.unlink()
    else:
        data = bytearray(file.read_bytes())
        data[-3] ^= 1
        file.write_bytes(data)
    with pytest.raises(DamagedFile, match=r"translators\.safetensors"):
        toys.trainer(tmp_path / "b", **settings, teacher=None)


def test_exits_need_no_translators_of_the_teacher(tmp_path):
    """Its last depth is its output."""
    trainer = toys.trainer(tmp_path, lens_readout="tuned", lens_layers="exits")
    trainer.train()
    assert set(trainer.companions) == {"translators"}


def test_an_evaluation_before_training_is_of_the_fitted_lens(tmp_path):
    """Not of maps that are still the identity."""
    trainer = toys.trainer(tmp_path, eval_dataset=toys.dataset(4, seed=9), **TUNED)
    before = trainer.evaluate()["eval_lens_loss"]
    trainer.fit_lenses()
    assert trainer.evaluate()["eval_lens_loss"] == before


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lens_readout": "tuned", "lens_norm": False}, "lens_norm: true"),
        ({"lens_readout": "logits"}, "one of logit, tuned, got 'logits'"),
        ({"lens_readout": True}, "lens_readout must be a name, got True"),
    ],
)
def test_settings_that_do_not_go_together(tmp_path, settings, said):
    """Told when they are set."""
    with pytest.raises(ValueError, match=said):
        DistillLensConfig(output_dir=str(tmp_path), **settings)
