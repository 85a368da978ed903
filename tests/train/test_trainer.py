"""DistillLensTrainer is an SFTTrainer to its user, with a teacher and a lens."""

import copy
import json
import logging
import math

import pytest
import torch
import toys
from datasets import Dataset, IterableDataset

from distilllens import DistillLensConfig, DistillLensTrainer, LayerMap
from distilllens.data import to_dataset


def test_it_learns_from_the_teacher_alone(tmp_path):
    """With the defaults every term falls and the student nears the teacher."""
    data = toys.dataset(16)
    trainer = toys.trainer(
        tmp_path,
        data=data,
        eval_dataset=data,
        max_steps=60,
        learning_rate=0.02,
        optim="adamw_torch",
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_output_loss"] < 0.5 * before["eval_output_loss"]
    assert after["eval_lens_loss"] < 0.7 * before["eval_lens_loss"]


def test_the_log_holds_every_term_unweighted(tmp_path):
    """loss is the weighted total of the unweighted terms beside it, in nats per valid token."""
    weights = {"output_weight": 0.5, "lens_weight": 2.0, "cross_entropy_weight": 0.25}
    trainer = toys.trainer(tmp_path, lens_layers="1:2,2:3", **weights)
    trainer.train()
    for row in trainer.state.log_history[:-1]:
        pairs = [row["lens_loss/1:2"], row["lens_loss/2:3"]]
        assert math.isclose(row["lens_loss"], sum(pairs) / 2, rel_tol=1e-6)
        total = 0.5 * row["output_loss"] + 2 * row["lens_loss"] + 0.25 * row["cross_entropy"]
        assert math.isclose(row["loss"], total, rel_tol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"lens_beta": 0.1},
        {"lens_divergence": "skew_reverse_kl", "lens_divergence_kwargs": {"alpha": 0.3}},
        {"output_divergence": "jsd", "output_divergence_kwargs": {"beta": 0.9}},
        {"temperature": 3.0},
        {"lens_norm": False},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_every_setting_reaches_the_loss(tmp_path, settings):
    """The first loss is that of an objective built by hand, and not that of the defaults."""
    from distilllens import LogitLens, Objective
    from distilllens.lens import read_states

    def first_log(**kwargs):
        trainer = toys.trainer(
            tmp_path, data=toys.dataset(4), max_steps=1, lens_layers="1:2", **kwargs
        )
        trainer.train()
        return trainer, trainer.state.log_history[0]

    trainer, found = first_log(**settings)
    lens_kwargs = settings.get("lens_divergence_kwargs", {"beta": settings.get("lens_beta", 0.5)})
    objective = Objective(
        LayerMap([(1, 2)]),
        output_divergence=settings.get("output_divergence", "reverse_kl"),
        output_kwargs=settings.get("output_divergence_kwargs", {}),
        lens_divergence=settings.get("lens_divergence", "jsd"),
        lens_kwargs=lens_kwargs,
        temperature=settings.get("temperature", 1.0),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    ids, mask = batch["input_ids"], batch["attention_mask"]
    inputs = {
        "normalize": settings.get("lens_norm", True),
        "input_ids": ids,
        "attention_mask": mask,
    }
    student, teacher = LogitLens(toys.llama()), LogitLens(toys.llama(4, 24, seed=1))
    states = [read_states(lens, [d], **inputs) for lens, d in ((student, 1), (teacher, 2))]
    terms = objective(states[0], student.head, states[1], teacher.head, batch["labels"])
    _, default = first_log()
    assert not math.isclose(found["loss"], default["loss"], rel_tol=1e-3)
    assert math.isclose(found["loss"], terms.total.item() / terms.num_tokens, rel_tol=1e-5)


def test_the_best_checkpoint_survives_rotation(tmp_path):
    """save_total_limit 1 keeps the best, also when it is not the newest."""
    trainer = toys.trainer(
        tmp_path,
        eval_dataset=toys.dataset(4, seed=9),
        max_steps=4,
        learning_rate=0.0,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )
    scores = iter([3.0, 1.0, 2.0, 4.0])
    loop = trainer.evaluation_loop

    def scored(*args, **kwargs):
        output = loop(*args, **kwargs)
        output.metrics["eval_loss"] = next(scores)
        return output

    trainer.evaluation_loop = scored
    trainer.train()
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-2"]
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")


def test_a_second_run_counts_its_terms_afresh(tmp_path):
    """Terms of steps that were never logged do not leak into the next call of train."""
    trainer = toys.trainer(tmp_path, max_steps=3, logging_steps=2, learning_rate=0.0)
    trainer.train()
    first = trainer.state.log_history[0]["loss"]
    trainer.train()
    again = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert math.isclose(again[0], first, rel_tol=1e-6)


def test_without_a_teacher_it_is_plain_sft(tmp_path):
    """cross_entropy_weight 1 and no teacher take TRL's own steps, to float32 rounding."""
    from trl import SFTConfig, SFTTrainer

    ours = toys.trainer(tmp_path / "ours", teacher=None, cross_entropy_weight=1.0)
    ours.train()
    settings = {"activation_checkpointing": False, "dataloader_pin_memory": False}
    theirs = SFTTrainer(
        toys.llama(),
        args=SFTConfig(output_dir=str(tmp_path), **toys.SETTINGS, **settings),
        train_dataset=toys.dataset(),
        processing_class=toys.tokenizer(),
    )
    theirs.train()
    assert toys.drift(toys.weights(toys.llama()), toys.weights(ours.model)) > 1e-3
    assert toys.drift(toys.weights(ours.model), toys.weights(theirs.model)) < 1e-6


@pytest.mark.parametrize(
    "lens", [{}, toys.SAMPLED, toys.FORMS["features"]], ids=["all", "sampled", "features"]
)
def test_checkpointing_changes_no_weight(tmp_path, lens):
    """Gradient checkpointing recomputes, and draws nothing anew; the steps stay."""
    plain = toys.trainer(tmp_path, **lens)
    checkpointed = toys.trainer(tmp_path, gradient_checkpointing=True, **lens)
    plain.train()
    checkpointed.train()
    assert checkpointed.model.is_activation_checkpointing
    assert toys.drift(toys.weights(plain.model), toys.weights(checkpointed.model)) < 1e-7


def test_bf16_autocast_reaches_states_and_heads(tmp_path):
    """Under bf16 the loss is that of float32 to bf16's three digits, and not equal to it."""
    losses = {}
    for bf16 in (False, True):
        trainer = toys.trainer(tmp_path, bf16=bf16, max_steps=1)
        trainer.train()
        losses[bf16] = trainer.state.log_history[0]["loss"]
    assert math.isclose(losses[True], losses[False], rel_tol=2e-2)
    assert losses[True] != losses[False]


def test_a_bf16_teacher_teaches_a_float32_student(tmp_path):
    """The teacher's precision is its own."""
    trainer = toys.trainer(tmp_path, teacher=toys.llama(4, 24, seed=1).bfloat16())
    trainer.train()
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    assert math.isfinite(trainer.state.log_history[0]["loss"])


def test_lora_trains_the_adapter_alone(tmp_path):
    """The adapter moves by the lens too; the base model and its head stay."""
    from peft import LoraConfig

    student = toys.llama()
    base = {n: p.clone() for n, p in student.state_dict().items()}
    peft_config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    trainer = toys.trainer(tmp_path, student=student, peft_config=peft_config, output_weight=0.0)
    before = toys.weights(trainer.model)
    assert before
    assert all("lora" in name for name in before)
    trainer.train()
    assert toys.drift(before, toys.weights(trainer.model)) > 1e-3
    found = trainer.model.get_base_model().state_dict()
    for name, value in base.items():
        name = name if name in found else name.replace(".weight", ".base_layer.weight")
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("kind", ["dropout", "lora", "accumulation", *toys.FORMS])
def test_resume_is_bit_equal(tmp_path, kind):
    """Stopped after two steps and resumed, a run ends at the bits of one that never stopped."""
    from peft import LoraConfig

    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}
    if kind in toys.FORMS:
        # "auto" is one pair for a student of two blocks.
        settings |= {"lens_layers": "1:1,2:3"} | toys.FORMS[kind]
    if kind in ("accumulation", *toys.FORMS):
        settings |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3}

    def make():
        student = toys.gpt2(dropout=0.2 if kind == "dropout" else 0.0)
        lora = LoraConfig(r=4, target_modules="all-linear", fan_in_fan_out=True)
        peft_config = lora if kind == "lora" else None
        return toys.trainer(tmp_path, student=student, peft_config=peft_config, **settings)

    whole = make()
    whole.train()
    resumed = make()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    ours, theirs = (
        toys.weights(each.model) | toys.weights(each.companions) for each in (whole, resumed)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for a, b in zip(whole.state.log_history[:-1], resumed.state.log_history[:-1], strict=True):
        assert {k: v for k, v in a.items() if "loss" in k or "lens" in k} == {
            k: v for k, v in b.items() if "loss" in k or "lens" in k
        }


def test_the_speed_is_target_tokens_over_the_time_of_training(tmp_path, monkeypatch):
    """Every token of an epoch over half a second a log; an evaluation's seconds do not count."""
    from types import SimpleNamespace

    from distilllens.train import logged_trainer as module

    clock = iter(range(1000))
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(clock) / 2))
    settings = {"eval_strategy": "steps", "eval_steps": 2, "num_train_epochs": 1, "max_steps": -1}
    settings["per_device_train_batch_size"] = 2
    trainer = toys.trainer(tmp_path, eval_dataset=toys.dataset(), **settings)
    counts = [sum(label != -100 for label in row[1:]) for row in trainer.train_dataset["labels"]]
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    seconds = [0.5] * 4
    # The evaluation after the second step lies in the time before the third log.
    (took,) = [r["eval_runtime"] for r in trainer.state.log_history if r.get("eval_runtime")][:1]
    seconds[2] -= took
    found = sum(row["target_tokens_per_second"] * s for row, s in zip(rows, seconds, strict=True))
    assert found == pytest.approx(sum(counts))


def record_draws(monkeypatch):
    """A list of (pairs drawn, seed, step) of every micro-batch of training."""
    from distilllens.train import trainer

    draws, inner = [], trainer.draw_pairs

    def recorded(layer_map, fraction, *, seed, step):
        drawn = inner(layer_map, fraction, seed=seed, step=step)
        draws.append((str(drawn), seed, step))
        return drawn

    monkeypatch.setattr(trainer, "draw_pairs", recorded)
    return draws


def test_one_draw_is_for_one_optimizer_step(tmp_path, monkeypatch):
    """All micro-batches of an accumulation draw with one step and with ``seed``."""
    draws = record_draws(monkeypatch)
    settings = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3}
    toys.trainer(tmp_path, seed=7, data_seed=8, max_steps=4, **settings, **toys.SAMPLED).train()
    # Eight rows an epoch: micro-batches 3, 3, 2, and 3 of the next epoch.
    assert [(seed, step) for _, seed, step in draws] == [
        (7, step) for step in (0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3)
    ]
    assert len({pairs for pairs, _, _ in draws}) == 2
    assert len({draw[::2] for draw in draws}) == 4


def test_only_drawn_pairs_are_read_and_logged(tmp_path, monkeypatch):
    """Both models are read at the drawn depths only; a pair that was not drawn has no mean.

    At rate 0 a drawn pair's mean is what it is without sampling, and ``lens_loss`` is that mean.
    """
    from distilllens.train import trainer as module

    settings = {"learning_rate": 0.0, "data": toys.dataset(4), "lens_layers": "1:2,2:3"}
    whole = toys.trainer(tmp_path, **settings)
    whole.train()
    expected = whole.state.log_history[0]
    draws, read, inner = record_draws(monkeypatch), [], module.read_states

    def recorded(lens, depths, **kwargs):
        read.append(tuple(depths))
        return inner(lens, depths, **kwargs)

    monkeypatch.setattr(module, "read_states", recorded)
    trainer = toys.trainer(tmp_path, max_steps=6, lens_pair_fraction=0.5, **settings)
    theirs, inner_read = [], trainer.teacher.read
    trainer.teacher.read = lambda depths, **kw: theirs.append(depths) or inner_read(depths, **kw)
    trainer.train()
    drawn = [LayerMap.parse(pairs) for pairs, _, _ in draws]
    assert {str(pairs) for pairs in drawn} == {"1:2", "2:3"}
    assert read == [pairs.student_depths for pairs in drawn]
    assert theirs == [pairs.teacher_depths for pairs in drawn]
    for pairs, row in zip(drawn, trainer.state.log_history[:-1], strict=True):
        key = f"lens_loss/{pairs}"
        assert [name for name in row if name.startswith("lens_loss/")] == [key]
        assert math.isclose(row[key], expected[key], rel_tol=1e-6)
        assert math.isclose(row["lens_loss"], expected[key], rel_tol=1e-6)
        assert math.isclose(row["loss"], row["output_loss"] + row["lens_loss"], rel_tol=1e-6)


def test_a_pairs_mean_is_over_the_steps_that_drew_it(tmp_path, monkeypatch):
    """Logged every six steps at rate 0, each pair reads what it reads without sampling."""
    settings = {"learning_rate": 0.0, "data": toys.dataset(4), "max_steps": 6, "logging_steps": 6}
    rows = []
    for fraction in (1.0, 0.5):
        draws = record_draws(monkeypatch)
        trainer = toys.trainer(tmp_path, lens_pair_fraction=fraction, **settings)
        trainer.train()
        rows.append(trainer.state.log_history[0])
    counts = [sum(pairs == name for pairs, _, _ in draws) for name in ("1:1", "2:3")]
    assert sum(counts) == 6 and min(counts) > 0 and counts[0] != counts[1]
    pairs = [rows[0][f"lens_loss/{name}"] for name in ("1:1", "2:3")]
    assert [rows[1][f"lens_loss/{name}"] for name in ("1:1", "2:3")] == pytest.approx(pairs)
    # The estimate of the mean of both is what was drawn: weighted by steps.
    estimate = (counts[0] * pairs[0] + counts[1] * pairs[1]) / 6
    assert math.isclose(rows[1]["lens_loss"], estimate, rel_tol=1e-6)


def test_the_logged_estimate_is_unbiased(tmp_path):
    """Over 100 steps at rate 0, ``lens_loss`` and ``loss`` scatter around the full ones."""
    settings = {"learning_rate": 0.0, "data": toys.dataset(4), "max_steps": 100}
    whole = toys.trainer(tmp_path, **settings | {"max_steps": 1})
    sampled = toys.trainer(tmp_path, **settings, **toys.SAMPLED)
    whole.train()
    sampled.train()
    for key in ("lens_loss", "loss"):
        found = torch.tensor([row[key] for row in sampled.state.log_history[:-1]])
        error = found.std() / math.sqrt(100)
        expected = whole.state.log_history[0][key]
        assert 0 < error < 0.05 * expected
        assert abs(found.mean() - expected) < 4 * error


def test_evaluation_measures_everything(tmp_path):
    """Fractions below 1 change no number of an evaluation, and no pair is missing."""
    data = toys.dataset(5, seed=3)
    whole = toys.trainer(tmp_path, eval_dataset=data).evaluate()
    sampled = toys.trainer(tmp_path, eval_dataset=data, **toys.SAMPLED).evaluate()
    terms = [key for key in whole if "loss" in key or "entropy" in key]
    assert len(terms) == 7
    assert [whole[key] for key in terms] == [sampled[key] for key in terms]


def test_a_checkpoint_is_marked_whole_before_an_older_one_goes(tmp_path):
    """save_total_limit keeps the newest, and what stays lists its files."""
    trainer = toys.trainer(
        tmp_path, max_steps=3, save_strategy="steps", save_steps=1, save_total_limit=1
    )
    trainer.train()
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    sizes = json.loads((tmp_path / "checkpoint-3" / "complete.json").read_text())["files"]
    assert {"model.safetensors", "optimizer.pt", "trainer_state.json"} <= sizes.keys()


def test_the_student_is_left_as_a_model(tmp_path):
    """No forward hangs on it: a deep copy runs its own weights."""
    trainer = toys.trainer(tmp_path)
    trainer.train()
    assert "forward" not in trainer.model.__dict__
    other = copy.deepcopy(trainer.model)
    with torch.no_grad():
        other.model.embed_tokens.weight.zero_()
        ids = torch.tensor([[3, 4, 5]])
        assert not torch.equal(other(input_ids=ids).logits, trainer.model(input_ids=ids).logits)


def test_the_teacher_never_moves(tmp_path):
    """No gradient, no step, no dropout in the teacher."""
    teacher = toys.gpt2(4, 24, seed=1, dropout=0.5).train()
    before = {n: p.clone() for n, p in teacher.state_dict().items()}
    trainer = toys.trainer(tmp_path, teacher=teacher)
    trainer.train()
    assert not teacher.training
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(before[n], p) for n, p in teacher.state_dict().items())


def test_instruction_records_are_formatted(tmp_path):
    """instruction / input / output rows become Alpaca's prompt and a completion."""
    rows = [{"instruction": "the cat", "input": "", "output": "a dog ran"} for _ in range(4)]
    trainer = toys.trainer(tmp_path, data=Dataset.from_list(rows))
    row = trainer.train_dataset[0]
    labels = [label for label in row["labels"] if label != -100]
    assert toys.tokenizer().decode(labels) == "a dog ran <eos>"
    assert len(row["labels"]) > len(labels)


def test_instruction_records_are_formatted_as_they_come(tmp_path):
    """A data set made by a generator does not know its columns; they may differ between rows."""

    def rows():
        for number in range(8):
            more = [{}, {"input": "then"}, {"system": "old", "id": 1}][number % 3]
            yield {"instruction": "the cat", "output": "a dog ran", **more}

    trainer = toys.trainer(tmp_path, data=IterableDataset.from_generator(rows), max_steps=1)
    written = [toys.tokenizer().decode(row["input_ids"]) for row in trainer.train_dataset]
    expected = toys.trainer(tmp_path, data=to_dataset(rows()), max_steps=1).train_dataset
    assert written == [toys.tokenizer().decode(row["input_ids"]) for row in expected]
    assert trainer.train().training_loss > 0


def test_rows_without_a_response_are_counted(tmp_path, caplog):
    """Truncation leaves rows without a label; how many is said."""
    long = {"prompt": "the cat " * 40, "completion": " ran"}
    data = Dataset.from_list([long, *toys.examples(5)])
    with caplog.at_level(logging.WARNING):
        toys.trainer(tmp_path, data=data)
    assert "1 of 6 training examples have no response token within max_length 64" in caplog.text


def test_the_card_says_teacher_map_and_weights(tmp_path):
    """README.md of the output folder."""
    teacher = toys.llama(4, 24, seed=1)
    teacher.config.name_or_path = "org/teacher"
    trainer = toys.trainer(
        tmp_path, teacher=teacher, lens_layers="1:2,2:3", cross_entropy_weight=0.5
    )
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    for text in ("`org/teacher`", "`1:2,2:3`", "reverse_kl", "jsd (beta 0.5)", "1, 1, 0.5"):
        assert text in card


def test_a_teacher_without_a_weight_rests_in_training(tmp_path):
    """Cross-entropy alone never runs the teacher; evaluation measures against it all the same."""
    trainer = toys.trainer(
        tmp_path,
        eval_dataset=toys.dataset(4),
        output_weight=0.0,
        lens_weight=0.0,
        cross_entropy_weight=1.0,
    )
    calls = []
    trainer.teacher.lens.model.register_forward_pre_hook(lambda *_: calls.append("model"))
    trainer.teacher.lens.backbone.register_forward_pre_hook(lambda *_: calls.append("backbone"))
    trainer.train()
    assert calls == []
    assert trainer.evaluate()["eval_lens_loss"] > 0
    assert "backbone" in calls


def test_a_lens_whose_weight_is_0_is_neither_read_nor_projected(tmp_path, monkeypatch):
    """From ``until`` on a step reads the last depth alone; evaluations measure every term."""
    from distilllens import objective
    from distilllens.train import trainer as module

    read, projected = [], []
    inner_read, inner_term = module.read_states, objective.divergence_term

    def read_states(lens, depths, **kwargs):
        read.append(tuple(depths))
        return inner_read(lens, depths, **kwargs)

    def divergence_term(student, *args, **kwargs):
        projected.append(len(student))
        return inner_term(student, *args, **kwargs)

    monkeypatch.setattr(module, "read_states", read_states)
    monkeypatch.setattr(objective, "divergence_term", divergence_term)
    data = toys.dataset(4)
    settings = {"lens_layers": "1:2,2:3", "lens_token_weights": "entropy", "max_steps": 4}
    trainer = toys.trainer(
        tmp_path,
        data=data,
        eval_dataset=data,
        lens_weight=2.0,
        lens_weight_schedule="linear",
        lens_weight_until=0.5,
        **settings,
    )
    theirs, inner = [], trainer.teacher.read
    trainer.teacher.read = lambda depths, **kw: theirs.append(tuple(depths)) or inner(depths, **kw)
    trainer.train()
    assert read == [(1, 2), (1, 2), (), ()]
    assert theirs == [(2, 3), (2, 3), (), ()]
    assert len(projected) == 2 + 2 + 1 + 1
    rows = trainer.state.log_history[:-1]
    assert [row["lens_weight"] for row in rows] == [2.0, 1.0, 0.0, 0.0]
    for row in rows:
        total = row["output_loss"] + row["lens_weight"] * row.get("lens_loss", 0.0)
        assert math.isclose(row["loss"], total, rel_tol=1e-6)
        assert ("lens_loss" in row) == (row["lens_weight"] > 0)
    found = trainer.evaluate()
    total = found["eval_output_loss"] + 2 * found["eval_lens_loss"]
    assert math.isclose(found["eval_loss"], total, rel_tol=1e-6)
    assert read[-1] == (1, 2) and "eval_lens_loss/2:3" in found
    plain = toys.trainer(tmp_path, data=data, **settings)
    plain.train()
    assert "lens_weight" not in plain.state.log_history[0]


def test_a_constant_weight_ends_at_once(tmp_path):
    """The same steps as with the lens up to there, and as without it from there on."""

    def weights(student, **settings):
        trainer = toys.trainer(tmp_path, student=student, data=toys.dataset(4), **settings)
        trainer.train()
        return trainer.model, trainer.state.log_history

    whole, log = weights(toys.llama(), lens_weight_until=0.5, max_steps=4)
    first, _ = weights(toys.llama(), max_steps=2)
    second, _ = weights(first, max_steps=2, lens_weight=0.0)
    assert toys.drift(toys.weights(whole), toys.weights(second)) < 1e-7
    assert [row["lens_weight"] for row in log[:-1]] == [1.0, 1.0, 0.0, 0.0]


def test_the_teacher_is_read_once_for_all_exits(tmp_path):
    """Every inner depth of the student, one of the teacher; the log has a value for each."""
    trainer = toys.trainer(tmp_path, lens_layers="exits")
    theirs, inner = [], trainer.teacher.read
    trainer.teacher.read = lambda depths, **kw: theirs.append(tuple(depths)) or inner(depths, **kw)
    trainer.train()
    assert theirs == [(4,)] * 3
    row = trainer.state.log_history[0]
    assert math.isclose(row["lens_loss"], (row["lens_loss/1:4"] + row["lens_loss/2:4"]) / 2)


@pytest.mark.parametrize(
    "settings",
    [
        {"output_divergence": "forward_kl"},
        {"output_divergence": "reverse_kl"},
        {"output_divergence": "jeffreys"},
        {"output_divergence": "jsd"},
        {"output_divergence": "adaptive_kl"},
        {"output_divergence": "skew_forward_kl"},
        {"output_divergence": "skew_reverse_kl"},
        {"output_divergence": "total_variation"},
        {"feature_weight": 0.01},
    ],
    ids=lambda settings: "_".join(map(str, next(iter(settings.items())))),
)
def test_each_baseline_of_the_paper_is_one_line(tmp_path, settings):
    """Without the lens, every divergence at the output learns; so do features beside one."""
    data = toys.dataset(4)
    learning = {"max_steps": 30, "learning_rate": 0.01, "optim": "adamw_torch"}
    trainer = toys.trainer(
        tmp_path, data=data, eval_dataset=data, lens_weight=0.0, **learning, **settings
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    key = "eval_feature_loss" if "feature_weight" in settings else "eval_output_loss"
    assert after[key] < 0.9 * before[key]


@pytest.mark.parametrize("width", [16, 24])
def test_features_are_the_streams_before_any_norm(tmp_path, width):
    """The first value logged is that of transformers' hidden states; equal widths need no map."""
    data, teacher = toys.dataset(4), toys.llama(4, width, seed=1)
    settings = {"lens_layers": "1:2,2:3", "feature_weight": 0.5, "max_steps": 1, "optim": "sgd"}
    trainer = toys.trainer(tmp_path, data=data, teacher=teacher, save_strategy="no", **settings)
    before = toys.weights(trainer.companions)
    start = {name: tensor.clone() for name, tensor in before.items()}
    trainer.train()
    row = trainer.state.log_history[0]
    batch = next(iter(trainer.get_train_dataloader()))
    read = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        states = [
            model.eval()(**read, output_hidden_states=True).hidden_states
            for model in (toys.llama(), teacher)
        ]
    mask = torch.zeros_like(batch["labels"], dtype=torch.bool)
    mask[:, :-1] = batch["labels"][:, 1:] != -100
    for s, t in ((1, 2), (2, 3)):
        ours, theirs = states[0][s][mask], states[1][t][mask]
        if width == 24:
            weight = start[f"feature_projectors.maps.{s}.weight"]
            torch.testing.assert_close(weight.T @ weight, torch.eye(16), atol=1e-5, rtol=0)
            ours = ours @ weight.T
        expected = (ours - theirs).square().mean().item()
        assert row[f"feature_loss/{s}:{t}"] == pytest.approx(expected, rel=1e-5)
    assert row["loss"] == pytest.approx(
        row["output_loss"] + row["lens_loss"] + 0.5 * row["feature_loss"], rel=1e-6
    )
    trainer.save_model(str(tmp_path / "final"))
    file = tmp_path / "final" / "companions" / "feature_projectors.safetensors"
    assert file.exists() == bool(start) == (width == 24)
    assert not any("projector" in name for name in trainer.model.state_dict())


def test_features_teach_an_adapter(tmp_path):
    """The hidden states of a LoRA student are those of its blocks with their adapters."""
    settings = {"feature_weight": 1.0, "lens_weight": 0.0, "output_weight": 0.0}
    trainer = toys.trainer(tmp_path, peft_config=toys.lora(), lens_layers="1:2", **settings)
    before = toys.weights(trainer.model)
    trainer.train()
    moved = {
        name for name, p in toys.weights(trainer.model).items() if not torch.equal(p, before[name])
    }
    assert moved and all(".layers.0." in name for name in moved)


def test_plain_kd_needs_no_room_for_a_lens(tmp_path):
    """lens_weight 0 trains a student of one block, which has no inner depth."""
    trainer = toys.trainer(tmp_path, student=toys.llama(1), lens_weight=0.0)
    trainer.train()
    assert trainer.objective.layer_map is None


def test_unequal_vocabularies_train(tmp_path):
    """A teacher padded to more rows than the student."""
    trainer = toys.trainer(tmp_path, teacher=toys.llama(4, 24, vocab=40, seed=1))
    trainer.train()
    assert math.isfinite(trainer.state.log_history[0]["loss"])


def too_long(**kwargs):
    return {"data": Dataset.from_list([{"prompt": "the", "completion": " cat" * 200}]), **kwargs}


REFUSALS = {
    "nothing to learn from": (
        {"teacher": None},
        "no teacher and cross_entropy_weight is 0",
    ),
    "all weights zero": ({"output_weight": 0.0, "lens_weight": 0.0}, "are all 0"),
    "depth beyond the student": (
        {"lens_layers": "2:2,9:3"},
        "layer map pairs student depth 9, but the student has depths 0 to 3",
    ),
    "too many pairs": ({"lens_layers": "12"}, "12 evenly spread pairs do not fit 3 student"),
    "no inner depth": ({"student": "one block"}, "no pair of inner depths"),
    "a stream that may go beyond the positions": (
        {"data": toys.texts().to_iterable_dataset(), "max_length": 65},
        "may hold a sequence of 65 tokens, beyond the student's 64 positions; set max_length to 64",
    ),
    "data beyond the positions": (
        too_long(max_length=None),
        "a sequence of 202 tokens, beyond the student's 64 positions",
    ),
    "no response left": (
        {"data": Dataset.from_list([{"prompt": "the " * 99, "completion": " cat"}])},
        "none of the 1 training examples has a response token within max_length 64",
    ),
    "teacher without the tokens": (
        {"teacher": "small vocabulary"},
        "the data hold token .* the teacher has only 12 embeddings",
    ),
    "a packed document beyond the positions": (
        too_long(packing=True, max_length=1024),
        "a sequence of 202 tokens, beyond the student's 64 positions",
    ),
    "evaluation data beyond the positions": (
        {"eval_dataset": too_long()["data"], "max_length": None},
        "a sequence of 202 tokens",
    ),
    "evaluation without a response": (
        {"eval_dataset": Dataset.from_list([{"prompt": "the " * 99, "completion": " cat"}])},
        "none of the 1 evaluation examples has a response token",
    ),
    "labels that are all ignored": (
        {"data": Dataset.from_list([{"input_ids": [2, 3], "labels": [-100, -100]}])},
        "none of the 1 training examples has a response token",
    ),
    "no step": ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be at least"),
    "an endless rate": ({"learning_rate": math.inf}, "learning_rate must be finite, got inf"),
    "max_steps 0": ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
    "no lens at all": ({"teacher": "gemma3n"}, "Gemma3n"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(tmp_path, name):
    """What cannot be trained is refused before the first step, with the value and the remedy."""
    from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

    settings, message = REFUSALS[name]
    made = {
        "one block": lambda: toys.llama(1),
        "small vocabulary": lambda: toys.llama(4, 24, vocab=12),
        "gemma3n": lambda: Gemma3nForCausalLM(
            Gemma3nTextConfig(
                vocab_size=24,
                vocab_size_per_layer_input=24,
                hidden_size=16,
                hidden_size_per_layer_input=8,
                intermediate_size=[32, 32],
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=8,
                num_kv_shared_layers=0,
                laurel_rank=4,
                activation_sparsity_pattern=[0.0, 0.0],
                layer_types=["full_attention", "full_attention"],
            )
        ),
    }
    settings = {
        key: made[value]() if isinstance(value, str) and value in made else value
        for key, value in settings.items()
    }
    with pytest.raises(ValueError, match=message):
        toys.trainer(tmp_path, **settings)


def test_wrong_arguments_are_named(tmp_path):
    """The same object twice, another config class or two, a loss that would need logits."""
    model, args = toys.llama(), toys.config(tmp_path)
    common = {"train_dataset": toys.dataset(), "processing_class": toys.tokenizer()}
    with pytest.raises(ValueError, match="same object"):
        DistillLensTrainer(model, model, args=args, **common)
    with pytest.raises(ValueError, match="compute_loss_func is not supported"):
        DistillLensTrainer(model, toys.llama(seed=1), args=args, compute_loss_func=print, **common)
    with pytest.raises(ValueError, match="args must be a DistillLensConfig or an SFTConfig, got i"):
        DistillLensTrainer(model, toys.llama(seed=1), args=3, **common)
    with pytest.raises(ValueError, match="the second argument is the teacher, and args are named"):
        DistillLensTrainer(model, args, args, **common)


def test_a_teacher_by_name_brings_its_tokenizer(tmp_path):
    """Tokenizers that number tokens apart are refused, with the place."""
    folder = tmp_path / "teacher"
    toys.llama(4, 24, seed=1).save_pretrained(folder)
    toys.tokenizer([*toys.WORDS[:3], "fox", *toys.WORDS[4:]]).save_pretrained(folder)
    with pytest.raises(
        ValueError, match="token 5 is 'sat' for the student and 'fox' for the teacher"
    ):
        toys.trainer(tmp_path / "out", teacher=None, teacher_model_name_or_path=str(folder))
    toys.tokenizer().save_pretrained(folder)
    trainer = toys.trainer(tmp_path / "out", teacher=None, teacher_model_name_or_path=str(folder))
    assert trainer.teacher.num_layers == 4


def test_processes_that_would_train_apart_are_refused(tmp_path, monkeypatch):
    """Processes started and processes seen differ: an error, and no two trainings in one folder."""
    monkeypatch.setattr(DistillLensConfig, "world_size", 2)
    with pytest.raises(ValueError, match="1 processes were started, but accelerate sees 2"):
        DistillLensConfig(output_dir=str(tmp_path))


def test_precision_and_checkpointing_follow_the_machine(tmp_path):
    """Without an accelerator: no bf16, no checkpointing, unless asked for."""
    if torch.accelerator.is_available():
        pytest.skip("needs a machine without an accelerator")
    plain = DistillLensConfig(output_dir=str(tmp_path))
    assert (plain.bf16, plain.activation_checkpointing, plain.max_length) == (False, False, 1024)
    asked = DistillLensConfig(output_dir=str(tmp_path), gradient_checkpointing=True)
    assert asked.activation_checkpointing is True
