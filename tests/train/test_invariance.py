"""One optimizer step is the same however its tokens are batched."""

import math

import pytest
import torch
import toys

TOLERANCE = 1e-6  # of any weight after three SGD steps of 0.1; float32 rounding is 1e-7 here


def after_training(tmp_path, **kwargs):
    trainer = toys.trainer(tmp_path, **kwargs)
    start = toys.weights(trainer.model)
    trainer.train()
    assert toys.drift(start, toys.weights(trainer.model)) > 1e-3, "the steps did nothing"
    return toys.weights(trainer.model) | toys.weights(trainer.companions), trainer.state.log_history


MIXED = {"cross_entropy_weight": 0.5, "output_divergence": "forward_kl"}
# All forms that look at positions, in one run.
FEATURES_TOO = {**toys.FORMS["drawn by entropy"], **toys.FORMS["features"]}
LOSSES = {"default": {}, "mixed": MIXED, **toys.FORMS}
LOSSES["adapter"] = {**FEATURES_TOO, "peft_config": toys.lora()}
# Logged in each of three steps: one of two pairs; a lens that ends after the second step, and its
# weight; distances of features and their pairs.
NUM_TERMS = {"sampled": (6, 6, 6), "drawn by entropy": (6, 6, 6)}
NUM_TERMS |= {"scheduled": (8, 8, 5), "features": (10, 10, 10), "adapter": (9, 9, 9)}
NUM_TERMS["on-policy"] = (6, 6, 6)  # what the student writes has no cross-entropy


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("batch", "accumulation"), [(2, 2), (1, 4)])
def test_a_step_does_not_depend_on_accumulation(tmp_path, batch, accumulation, name):
    """Batch 4 x 1, 2 x 2 and 1 x 4 give the same weights and the same logged terms."""
    loss = LOSSES[name]
    whole, whole_log = after_training(tmp_path, **loss)
    split, split_log = after_training(
        tmp_path,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        **loss,
    )
    assert toys.drift(whole, split) < TOLERANCE
    assert ("feature_projectors.maps.1.weight" in whole) == (name in ("features", "adapter"))
    for step, (a, b) in enumerate(zip(whole_log[:-1], split_log[:-1], strict=True)):
        terms = [key for key in a if "loss" in key or "entropy" in key or key == "lens_weight"]
        assert len(terms) == NUM_TERMS.get(name, (7, 7, 7))[step]
        for key in terms:
            assert math.isclose(a[key], b[key], rel_tol=1e-5), key


def test_a_step_does_not_depend_on_the_order_of_samples(tmp_path):
    """One step over a permuted batch ends at the same weights."""
    data = toys.dataset(4)
    one, _ = after_training(tmp_path, data=data, max_steps=1)
    other, _ = after_training(tmp_path, data=data.select([2, 0, 3, 1]), max_steps=1)
    assert toys.drift(one, other) < TOLERANCE


PADDED = {"all": {}, "sampled": toys.SAMPLED, "every form": FEATURES_TOO}


@pytest.mark.parametrize(
    "layout", [{"padding_free": True, "max_length": None}, {"pad_to_multiple_of": 16}]
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("rows", ["dataset", "texts"])
@pytest.mark.parametrize("lens", PADDED)
def test_a_step_does_not_depend_on_padding(tmp_path, layout, family, rows, lens):
    """Padded, padded further and padding-free agree, also where the first token is a label."""

    def run(**kwargs):
        student = getattr(toys, family)()
        data = getattr(toys, rows)()
        settings = {**PADDED[lens], **kwargs}
        return after_training(tmp_path, student=student, data=data, **settings)[0]

    assert toys.drift(run(), run(**layout)) < TOLERANCE


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("rows", ["dataset", "texts"])
@pytest.mark.parametrize("lens", PADDED)
def test_packing_equals_padding(tmp_path, family, rows, lens):
    """All documents in one packed row give the step that a padded batch of them gives."""

    def run(**kwargs):
        student, data = getattr(toys, family)(), getattr(toys, rows)(4)
        settings = {"max_steps": 1, **PADDED[lens], **kwargs}
        return after_training(tmp_path, student=student, data=data, **settings)[0]

    packed = run(packing=True, max_length=64, per_device_train_batch_size=1)
    assert toys.drift(run(), packed) < TOLERANCE


def test_a_micro_batch_without_a_response_adds_nothing(tmp_path):
    """A row whose labels are all -100 changes no weight, alone in its micro-batch or not."""
    from datasets import Dataset

    tokens = toys.tokenizer()
    rows = []
    for example in toys.examples(3):
        prompt = tokens(example["prompt"])["input_ids"]
        answer = tokens(example["completion"])["input_ids"]
        rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    silent = {"input_ids": [3, 4, 5], "labels": [-100] * 3}
    settings = {"max_steps": 1, "max_length": None}
    without, _ = after_training(tmp_path, data=Dataset.from_list(rows), **settings)
    for batch, accumulation in ((4, 1), (1, 4)):
        with_it, log = after_training(
            tmp_path,
            data=Dataset.from_list([silent, *rows]),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            **settings,
        )
        assert toys.drift(without, with_it) < TOLERANCE
        assert math.isfinite(log[0]["loss"])


def test_a_silent_micro_batch_has_a_connected_zero(tmp_path):
    """Its loss is 0, finite, and reaches every parameter of the student."""
    trainer = toys.trainer(tmp_path)
    labels = torch.full((1, 4), -100)
    inputs = {"input_ids": torch.tensor([[2, 3, 4, 5]]), "labels": labels}
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=torch.tensor(0))
    loss.backward()
    assert loss.item() == 0
    gradients = [p.grad for p in trainer.model.parameters()]
    assert all(g is not None and not g.any() for g in gradients)


@pytest.mark.parametrize("batch", [1, 3])
def test_eval_loss_does_not_depend_on_the_batch(tmp_path, batch):
    """eval_loss and every term are sums over counts."""
    data = toys.dataset(7, seed=3)
    whole = toys.trainer(tmp_path, eval_dataset=data, per_device_eval_batch_size=7).evaluate()
    split = toys.trainer(tmp_path, eval_dataset=data, per_device_eval_batch_size=batch).evaluate()
    terms = [key for key in whole if "loss" in key or "entropy" in key]
    assert len(terms) == 7
    for key in terms:
        assert math.isclose(whole[key], split[key], rel_tol=1e-5), key
    assert math.isclose(
        whole["eval_loss"], whole["eval_output_loss"] + whole["eval_lens_loss"], rel_tol=1e-6
    )
