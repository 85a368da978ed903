"""Plain SFT takes the steps of TRL, and of the formulas, in every setting that decides a step.

The second oracle is a loop in float64 that shares nothing with either trainer but the rows of the
batches, which it reads one document at a time, without padding and without masks.
"""

import copy
import math

import pytest
import torch
import toys
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from distilllens import DistillLensTrainer

# Of weights up to 1 in float32, after three to six steps.
OF_TRL = 3e-7
OF_FORMULAS = 6e-7

ADAM = {
    "optim": "adamw_torch",
    "learning_rate": 0.01,
    # So large that a gradient near 0 does not decide a step by its sign.
    "adam_epsilon": 1e-3,
}


def rows_of_eight():
    """Rows of eight words, of which the last six are the completion."""
    rows = []
    for k in range(1, 9):
        words = [toys.WORDS[(i * k + 3) % 20] for i in range(8)]
        rows.append({"prompt": " ".join(words[:2]), "completion": " " + " ".join(words[2:])})
    return Dataset.from_list(rows)


SETTINGS = {
    "text": ({}, {"data": toys.texts}),
    "completions": ({}, {}),
    "whole pairs": ({"completion_only_loss": False}, {}),
    "packed": ({"packing": True, "max_length": 24, "per_device_train_batch_size": 1}, {}),
    "wrapped": ({"packing": True, "packing_strategy": "wrapped", "max_length": 12}, {}),
    "padding-free": ({"padding_free": True, "max_length": None}, {}),
    "accumulation": ({"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}, {}),
    "clipping": ({"max_grad_norm": 0.5}, {}),
    "AdamW": ({**ADAM}, {}),
    "weight decay": ({**ADAM, "weight_decay": 0.5}, {"student": toys.gpt2, "data": rows_of_eight}),
    "linear": ({"lr_scheduler_type": "linear", "warmup_steps": 1, "max_steps": 5}, {}),
    "cosine": ({"lr_scheduler_type": "cosine", "warmup_steps": 2, "max_steps": 6}, {}),
    "GPT-2 without padding": ({}, {"student": toys.gpt2, "data": rows_of_eight}),
    # Of GPT-2's rows TRL also counts the first token, which nothing predicts.
    "GPT-2 without a prompt": ({}, {"student": toys.gpt2, "data": toys.texts, "of_trl": False}),
    "epochs": ({"max_steps": -1, "num_train_epochs": 3, "learning_rate": 0.03}, {}),
    "another seed": ({"seed": 7, "max_steps": 4}, {}),
    "LoRA": ({}, {"lora": True}),
}


def made(kind, tmp_path, settings, parts):
    """A trainer, and the batches that it will have seen."""
    given = {**toys.SETTINGS, "use_cpu": True, "activation_checkpointing": False, **settings}
    more = {"peft_config": toys.lora()} if parts.get("lora") else {}
    trainer = kind(
        parts.get("student", toys.llama)(),
        args=SFTConfig(output_dir=str(tmp_path), **given),
        train_dataset=parts.get("data", toys.dataset)(),
        processing_class=toys.tokenizer(),
        **more,
    )
    seen, collator = [], trainer.data_collator

    def watched(rows):
        seen.append(collator(rows))
        return copy.deepcopy(seen[-1])

    trainer.data_collator = watched
    return trainer, seen


def documents(batch):
    """``(ids, labels)`` of each document of a batch."""
    for number, (ids, labels) in enumerate(zip(batch["input_ids"], batch["labels"], strict=True)):
        if "attention_mask" in batch:
            kept = batch["attention_mask"][number] == 1
            yield ids[kept], labels[kept]
            continue
        starts = (batch["position_ids"][number] == 0).nonzero().flatten().tolist()
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            yield ids[start:end], labels[start:end]


def rate(args, step, num_steps):
    """The learning rate of a step, from 0."""
    if step < args.warmup_steps:
        return args.learning_rate * step / args.warmup_steps
    share = (step - args.warmup_steps) / max(1, num_steps - args.warmup_steps)
    falling = {"constant": 1.0, "linear": 1 - share, "cosine": (1 + math.cos(math.pi * share)) / 2}
    return args.learning_rate * falling[args.lr_scheduler_type.value]


def by_formulas(model, batches, args):
    """Train a float64 model on a list of micro-batches for each step."""
    weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
    moments = {n: (torch.zeros_like(p), torch.zeros_like(p)) for n, p in weights.items()}
    for step, parts in enumerate(batches):
        rows = [row for batch in parts for row in documents(batch)]
        num_targets = sum(int((labels[1:] != -100).sum()) for _, labels in rows)
        loss = 0.0
        for ids, labels in rows:
            logs = model(ids[None]).logits[0, :-1].log_softmax(-1)
            wanted = labels[1:]
            for at in (wanted != -100).nonzero().flatten():
                loss = loss - logs[at, wanted[at]] / num_targets
        found = dict(zip(weights, torch.autograd.grad(loss, weights.values()), strict=True))
        norm = math.sqrt(sum(float((g**2).sum()) for g in found.values()))
        limit = args.max_grad_norm
        scale = limit / (norm + 1e-6) if 0 < limit < norm else 1.0
        lr = rate(args, step, len(batches))
        for name, weight in weights.items():
            decays = not (name.endswith("bias") or "norm" in name or ".ln_" in name)
            change = one_step(found[name] * scale, moments[name], step + 1, args)
            if decays and "adamw" in args.optim:
                change = change + args.weight_decay * weight.detach()
            weight.data -= lr * change
    return {name: weight.detach() for name, weight in weights.items()}


def one_step(gradient, moments, number, args):
    """What a weight loses for a learning rate of 1."""
    if args.optim == "sgd":
        return gradient
    first, second = moments
    first += (1 - args.adam_beta1) * (gradient - first)
    second += (1 - args.adam_beta2) * (gradient**2 - second)
    mean = first / (1 - args.adam_beta1**number)
    spread = (second / (1 - args.adam_beta2**number)).sqrt()
    return mean / (spread + args.adam_epsilon)


def in_float64(student, trainer):
    """A float64 model that starts where a trainer's does, with a forward of its own."""
    model = student()
    if hasattr(trainer.model, "peft_config"):
        from peft import get_peft_model

        model = get_peft_model(model, toys.lora())
    model.load_state_dict(trainer.model.state_dict())
    return model.double()


@pytest.mark.parametrize("name", SETTINGS)
def test_steps_are_those_of_trl_and_of_the_formulas(tmp_path, name):
    """The largest difference of any weight, after the same batches."""
    settings, parts = SETTINGS[name]
    theirs, their_batches = made(SFTTrainer, tmp_path, settings, parts)
    ours, our_batches = made(DistillLensTrainer, tmp_path, settings, parts)
    model = in_float64(parts.get("student", toys.llama), ours)
    start = toys.weights(ours.model)
    theirs.train()
    ours.train()
    assert len(our_batches) == len(their_batches)
    for one, other in zip(our_batches, their_batches, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in ("input_ids", "labels"))
    found = toys.weights(ours.model)
    assert toys.drift(start, found) > 1e-3
    drift = toys.drift(found, toys.weights(theirs.model))
    assert (drift < OF_TRL) == parts.get("of_trl", True)
    num, steps = ours.args.gradient_accumulation_steps, ours.state.global_step
    batches = [our_batches[num * step : num * (step + 1)] for step in range(steps)]
    wanted = by_formulas(model, batches, ours.args)
    assert toys.drift({n: p.double() for n, p in found.items()}, wanted) < OF_FORMULAS


def test_label_smoothing_is_refused(tmp_path):
    """The one setting of a step in which this trainer is not TRL's."""
    with pytest.raises(ValueError, match="label_smoothing_factor must be 0, got"):
        made(DistillLensTrainer, tmp_path, {"label_smoothing_factor": 0.1}, {})
