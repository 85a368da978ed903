"""To its user DistillLensTrainer is an SFTTrainer: columns, arguments, log, metrics, subclasses."""

import copy
import math
import warnings

import pytest
import torch
import toys
from datasets import Dataset
from transformers import MixtralConfig, MixtralForCausalLM, TrainingArguments
from trl import SFTConfig, SFTTrainer

from distilllens import DistillLensTrainer

INSTRUCTIONS = [{"instruction": "the red dog", "output": f"ran {'on ' * n}"} for n in range(8)]
SETTINGS = {**toys.SETTINGS, "use_cpu": True, "activation_checkpointing": False}


def alike(kind, args, student=toys.llama, data=None, **parts):
    """A trainer of a kind, plain SFT on toys."""
    return kind(
        student(),
        args=args,
        train_dataset=toys.dataset() if data is None else data,
        processing_class=toys.tokenizer(),
        **parts,
    )


def sft_config(tmp_path, **changes):
    return SFTConfig(output_dir=str(tmp_path), **(SETTINGS | changes))


def mixtral():
    """Three blocks of four experts each."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=24,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        max_position_embeddings=64,
        initializer_range=0.2,
        router_aux_loss_coef=0.02,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return MixtralForCausalLM(config)


def with_instructions(rows):
    return Dataset.from_list([INSTRUCTIONS[n % 8] | row for n, row in enumerate(rows)])


STORIES = [{"story": e["prompt"]} for e in toys.examples()]
IDS = [{"input_ids": [2, 3, 4], "labels": [-100, 3, 4]} for _ in range(8)]
KINDS = {
    "text": (list(toys.texts()), {}, {}),
    "prompt and completion": (toys.examples(), {}, {}),
    "tokens": (IDS, {}, {}),
    "a field of text": (STORIES, {"dataset_text_field": "story"}, {}),
    "formatting_func": (STORIES, {}, {"formatting_func": lambda row: row["story"] + " then"}),
    "skip_prepare_dataset": (IDS, {"dataset_kwargs": {"skip_prepare_dataset": True}}, {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_instructions_beside_other_columns_are_not_read(tmp_path, kind):
    """Rows that SFTTrainer reads are its rows, whatever else they hold."""
    rows, settings, parts = KINDS[kind]
    args = sft_config(tmp_path, **settings)
    data = with_instructions(rows)
    ours, theirs = (
        alike(cls, copy.copy(args), data=data, **parts).train_dataset
        for cls in (DistillLensTrainer, SFTTrainer)
    )
    assert [*ours["input_ids"]] == [*theirs["input_ids"]]
    assert [*ours["labels"]] == [*theirs["labels"]]


def test_a_transform_is_left_alone(tmp_path):
    """Rows made when they are read, with preparation switched off."""
    data = Dataset.from_list(INSTRUCTIONS)
    data.set_transform(lambda rows: {"input_ids": [[2, 3, 4]] * len(rows["output"])})
    settings = {
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "remove_unused_columns": False,
    }
    weights = []
    for cls in (DistillLensTrainer, SFTTrainer):
        trainer = alike(cls, sft_config(tmp_path, **settings), data=data)
        trainer.train()
        weights.append(toys.weights(trainer.model))
    assert toys.drift(*weights) < 3e-7


def test_data_given_to_evaluate_are_prepared_as_at_the_start(tmp_path):
    """Instruction records, to a trainer that has seen other rows, and the reverse."""
    instructions = Dataset.from_list(INSTRUCTIONS)
    kinds = {"instructions": instructions, "pairs": toys.dataset(6, seed=3)}
    known = alike(
        DistillLensTrainer, sft_config(tmp_path), data=toys.dataset(), eval_dataset=kinds
    ).evaluate()
    for data in (toys.dataset(), instructions):
        later = alike(DistillLensTrainer, sft_config(tmp_path), data=data)
        for name, rows in kinds.items():
            assert later.evaluate(rows)["eval_loss"] == known[f"eval_{name}_loss"]


def test_arguments_of_trl_and_transformers_are_converted(tmp_path):
    """By name or as the second argument; nothing that was set is lost, and plain SFT is trained."""
    args = sft_config(tmp_path, eos_token="cat", hub_token="secret", max_length=12)
    trainer = DistillLensTrainer(
        toys.llama(), args, train_dataset=toys.dataset(), processing_class=toys.tokenizer()
    )
    assert (trainer.args.max_length, trainer.args.hub_token) == (12, "secret")
    assert trainer.processing_class.eos_token == "cat"
    assert trainer.args.cross_entropy_weight == 1
    plain = {k: v for k, v in SETTINGS.items() if k in TrainingArguments.__dataclass_fields__}
    plain = TrainingArguments(output_dir=str(tmp_path), **plain)
    assert alike(DistillLensTrainer, plain).args.learning_rate == 0.1
    taught = alike(DistillLensTrainer, args, teacher_model=toys.llama(4, 24, seed=1))
    assert taught.args.cross_entropy_weight == 0


@pytest.mark.parametrize("student", [toys.llama, mixtral], ids=["dense", "mixture of experts"])
def test_the_log_has_what_trl_logs(tmp_path, student):
    """Accuracy, entropy, tokens and the loss of routers, in training and evaluation.

    One micro-batch a log and an evaluation: over several, TRL takes means of means.
    """
    rows = []
    for cls in (SFTTrainer, DistillLensTrainer):
        trainer = alike(
            cls, sft_config(tmp_path, max_steps=2), student, eval_dataset=toys.dataset(4, seed=5)
        )
        trainer.train()
        rows.append([*trainer.state.log_history[:2], trainer.evaluate()])
    for theirs, ours in zip(*rows, strict=True):
        for name, value in theirs.items():
            if "_per_second" in name or name.endswith("time"):
                continue
            assert math.isclose(ours[name], value, rel_tol=2e-6), name
    assert ("aux_loss" in rows[1][0]) == (student is mixtral)


def test_routers_are_balanced_as_in_trl(tmp_path):
    """The weights of a mixture of experts after steps of two micro-batches, and its teacher's."""
    changes = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    weights = []
    for cls in (SFTTrainer, DistillLensTrainer):
        trainer = alike(cls, sft_config(tmp_path, **changes), mixtral)
        trainer.train()
        weights.append(toys.weights(trainer.model))
    assert toys.drift(*weights) < 3e-7  # float32
    off = alike(DistillLensTrainer, sft_config(tmp_path, router_aux_loss_coef=0.0), mixtral)
    off.train()
    assert "aux_loss" not in off.state.log_history[0]
    assert toys.drift(weights[1], toys.weights(off.model)) > 1e-5
    taught = toys.trainer(tmp_path, student=mixtral(), max_steps=1)
    taught.train()
    row = taught.state.log_history[0]
    parts = row["output_loss"] + row["lens_loss"] + 0.02 * row["aux_loss"]
    assert math.isclose(row["loss"], parts, rel_tol=1e-6)


class Doubled(DistillLensTrainer):
    """Calls ours."""

    def compute_loss(self, *args, **kwargs):
        return 2 * super().compute_loss(*args, **kwargs)


class Own(DistillLensTrainer):
    """Never calls ours, and takes the labels out of the batch."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")[:, 1:].flatten()
        outputs = model(**inputs)
        logits = outputs.logits[:, :-1].flatten(0, 1)
        loss = 2 * torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        loss = loss / ((labels >= 0).sum() if num_items_in_batch is None else num_items_in_batch)
        return (loss, outputs) if return_outputs else loss


@pytest.mark.parametrize("kind", [Doubled, Own])
def test_the_loss_of_a_subclass_is_logged_and_evaluated(tmp_path, kind):
    """Twice the cross-entropy, by whatever means; unequal batches are weighted by their tokens."""
    changes = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    changes |= {"learning_rate": 0.0, "per_device_eval_batch_size": 2}
    rows = []
    for cls in (DistillLensTrainer, kind):
        trainer = alike(cls, sft_config(tmp_path, **changes), eval_dataset=toys.dataset(5, seed=5))
        output = trainer.train()
        losses = [row["loss"] for row in trainer.state.log_history[:-1]]
        rows.append([*losses, output.training_loss, trainer.evaluate()["eval_loss"]])
    assert rows[1] == pytest.approx([2 * value for value in rows[0]], rel=1e-6)


def test_logits_are_built_for_those_who_ask(tmp_path):
    """predict, compute_metrics and preprocess_logits_for_metrics read the student's own logits."""

    def accuracy(found):
        logits, labels = found.predictions[:, :-1], found.label_ids[:, 1:]
        return {"hits": (logits == labels)[labels != -100].mean()}

    args = toys.config(tmp_path, per_device_eval_batch_size=4)
    parts = {"eval_dataset": toys.dataset(4, seed=5), "teacher_model": toys.llama(4, 24, seed=1)}
    trainer = alike(
        DistillLensTrainer,
        args,
        compute_metrics=accuracy,
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
        **parts,
    )
    found = trainer.evaluate()
    assert found["eval_hits"] == pytest.approx(found["eval_mean_token_accuracy"])
    plain = alike(DistillLensTrainer, args, **parts)
    rows = plain.predict(plain.eval_dataset)
    batch = next(iter(plain.get_eval_dataloader()))
    with torch.no_grad():
        logits = toys.llama()(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert torch.equal(torch.tensor(rows.predictions), logits)
    assert rows.metrics["test_loss"] == plain.evaluate()["eval_loss"]


def test_the_best_checkpoint_may_be_the_most_accurate(tmp_path):
    """Larger is better there, and smaller for every loss; 0 kept checkpoints are all of them."""
    trainer = toys.trainer(
        tmp_path,
        max_steps=2,
        eval_dataset=toys.dataset(4),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=0,
        load_best_model_at_end=True,
        metric_for_best_model="mean_token_accuracy",
    )
    trainer.train()
    values = [r["eval_mean_token_accuracy"] for r in trainer.state.log_history if "eval_loss" in r]
    assert trainer.state.best_metric == max(values)
    assert len([*tmp_path.glob("checkpoint-*")]) == 2
    for name in ("loss", "eval_lens_loss/1:2", "cross_entropy", "my_loss"):
        assert toys.config(tmp_path, metric_for_best_model=name).greater_is_better is False
    assert toys.config(tmp_path, metric_for_best_model="hits").greater_is_better is True


def test_settings_that_trl_takes_are_taken(tmp_path):
    """An old name of a strategy, and a limit of length beyond every row and every position."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        args = toys.config(tmp_path, packing=True, packing_strategy="bfd-requeue")
    assert args.packing_strategy == "bfd_split"
    toys.trainer(toys.config(tmp_path, max_length=4096, max_steps=1)).train()


def test_the_card_has_data_and_tags(tmp_path):
    """Those of the caller beside ours; the first ones are TRL's."""
    trainer = toys.trainer(tmp_path)
    trainer.create_model_card(dataset_name="org/data", tags=["mine", "a: b"])
    card = (tmp_path / "README.md").read_text()
    assert 'tags:\n- trl\n- sft\n- distillation\n- logit-lens\n- mine\n- "a: b"\n' in card
    assert 'datasets:\n- "org/data"\n---\n' in card
    trainer.create_model_card(tags="sft")
    assert (tmp_path / "README.md").read_text().count("- sft\n") == 1


def test_fillers_of_a_cloned_chat_template_are_no_difference(tmp_path):
    """TRL pads the student's vocabulary with tokens that a named teacher does not have."""
    toys.llama(4, 24, seed=1).save_pretrained(tmp_path / "teacher")
    source = toys.tokenizer()
    source.save_pretrained(tmp_path / "teacher")
    source.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    source.save_pretrained(tmp_path / "source")
    trainer = toys.trainer(
        tmp_path / "out",
        teacher=None,
        teacher_model_name_or_path=str(tmp_path / "teacher"),
        chat_template_path=str(tmp_path / "source"),
        max_steps=1,
    )
    assert len(trainer.processing_class) > len(toys.tokenizer())
    assert trainer.train().training_loss > 0


def test_tokens_are_counted_over_a_resume(tmp_path):
    """num_tokens goes on from a checkpoint, as every other sum of the log."""
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = toys.trainer(tmp_path / "whole", **settings)
    whole.train()
    again = toys.trainer(tmp_path / "again", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    rows = [t.state.log_history[-2]["num_tokens"] for t in (whole, again)]
    assert rows[0] == rows[1] == 2 * sum(map(len, whole.train_dataset["input_ids"]))
