"""Training from a teacher with another tokenizer: what is compared, and what it must equal."""

import json
import math

import pytest
import torch
import toys
from datasets import Dataset
from train import two_tokenizers
from train.test_distributed import on_two_processes
from train.two_tokenizers import pair_in, student_tokenizer
from transformers import AutoModelForCausalLM

from distilllens.data.alignment import TokenReader
from distilllens.data.encode import encode
from distilllens.teacher import AlignedTeacher, CachedTeacher

TOLERANCE = 1e-6  # of any weight after SGD steps of 0.1, as in test_invariance


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return pair_in(tmp_path_factory.mktemp("pair") / "teacher")


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """A teacher with the student's tokenizer."""
    words = student_tokenizer()
    return pair_in(tmp_path_factory.mktemp("alike") / "teacher", words, words)


def trained(trainer):
    start = toys.weights(trainer.model)
    trainer.train()
    assert toys.drift(start, toys.weights(trainer.model)) > 1e-3, "the steps did nothing"
    return toys.weights(trainer.model) | toys.weights(trainer.companions), trainer.state.log_history


FORMS = {
    "default": {},
    "mixed": {"cross_entropy_weight": 0.5, "output_divergence": "forward_kl"},
    "drawn by entropy": toys.FORMS["drawn by entropy"],
    "weighted": toys.FORMS["weighted"],
    "tuned": toys.FORMS["tuned"],
    "exits": toys.FORMS["exits"],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("data", ["dataset", "texts", "chats"])
def test_one_tokenizer_is_the_plain_path(tmp_path, alike, form, data):
    """Every number equals that of a run without ``cross_tokenizer``; all targets are compared."""
    rows = two_tokenizers.chats() if data == "chats" else getattr(toys, data)()
    settings = {"data": rows, "eval_dataset": rows.select(range(3)), **FORMS[form]}
    plain_run = alike.trainer(tmp_path / "a", cross_tokenizer=None, **settings)
    cross_run = alike.trainer(tmp_path / "b", **settings)
    (plain, plain_log), (cross, cross_log) = trained(plain_run), trained(cross_run)
    assert cross_run.overlap.positions == 1 and cross_run.overlap.mass == pytest.approx(1)
    assert toys.drift(plain, cross) < TOLERANCE
    plain_log.append(plain_run.evaluate())
    cross_log.append(cross_run.evaluate())
    for a, b in zip(plain_log, cross_log, strict=True):
        for key in (key for key in a if "loss" in key or "entropy" in key):
            assert math.isclose(a[key], b[key], rel_tol=1e-5), key


def by_hand(pair, example):
    """Reverse KL in float64 at every common end of a text, averaged; and how many there are."""
    student = pair.student().eval()
    teacher = AutoModelForCausalLM.from_pretrained(pair.folder)
    words = (pair.student_words, pair.teacher_words)
    text = example["prompt"] + example["completion"]
    found = []
    for tokenizer, model in zip(words, (student, teacher), strict=True):
        ids = encode(example, tokenizer).ids
        with torch.no_grad():
            logits = model.double()(torch.tensor([ids])).logits[0]
        bytes_of = {i: b for i, b in enumerate(TokenReader(tokenizer)(range(len(tokenizer))))}
        ends, at = {}, 0
        for position, token in enumerate(ids[:-1]):
            at += len(bytes_of[token])
            ends[at] = logits[position].softmax(-1)
        names = {"END" if i == tokenizer.eos_token_id else b: i for i, b in bytes_of.items()}
        found.append((ends, names))
    (ours, our_names), (theirs, their_names) = found
    shared = sorted(our_names.keys() & their_names.keys(), key=str)
    nats = {}
    for end in ours.keys() & theirs.keys():
        if end < len(example["prompt"].encode()) or end > len(text.encode()):
            continue
        q = [float(ours[end][our_names[name]]) for name in shared]
        p = [float(theirs[end][their_names[name]]) for name in shared]
        q, p = [*q, 1 - sum(q)], [*p, 1 - sum(p)]
        nats[end] = sum(b * math.log(b / a) for b, a in zip(q, p, strict=True))
    return nats


def test_the_output_term_is_what_both_models_say_at_common_ends(tmp_path, pair):
    """Float64 probabilities of the tokens that both have, and of the rest, at each common end."""
    rows = toys.examples(3)
    trainer = pair.trainer(tmp_path, data=Dataset.from_list(rows), eval_dataset=toys.dataset(3))
    assert not trainer.teacher.vocabularies.renormalises
    nats = [value for row in rows for value in by_hand(pair, row).values()]
    found = trainer.evaluate()
    assert found["eval_output_loss"] == pytest.approx(sum(nats) / len(nats), rel=1e-5)
    compared, total = trainer.pairs.shares["evaluation"]
    assert compared == len(nats) and found["eval_compared_share"] == compared / total
    losses = found["eval_output_loss"] + found["eval_lens_loss"]
    assert found["eval_loss"] == pytest.approx(losses, rel=1e-6)


LOSSES = {"shared": {}, "uld": {"cross_tokenizer": "uld"}, **FORMS}


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_does_not_depend_on_how_tokens_are_batched(tmp_path, pair, name):
    """Accumulated, padding-free and packed batches give the same weights and terms."""
    layouts = [
        {},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
        {"padding_free": True, "max_length": None},
        {"pad_to_multiple_of": 16},
    ]
    layouts.append({"packing": True, "per_device_train_batch_size": 1})
    if name == "tuned":  # the fit amplifies the rounding of other shapes
        layouts = layouts[:2]
    data = toys.dataset(4)
    runs = [
        trained(pair.trainer(tmp_path, data=data, **{**LOSSES[name], "max_steps": 1, **layout}))
        for layout in layouts
    ]
    (first, log), *others = runs
    for weights, other_log in others:
        for key, weight in first.items():
            # Translators are solved for from sums over batches, which amplifies their rounding.
            bound = 5 * TOLERANCE if "translators" in key else TOLERANCE
            assert toys.drift({key: weight}, {key: weights[key]}) < bound, key
        for key in ("loss", "output_loss", "lens_loss", "compared_share"):
            assert math.isclose(log[0][key], other_log[0][key], rel_tol=1e-5), key


@pytest.mark.slow
def test_two_processes_are_one_after_twenty_steps(tmp_path, pair):
    """Batch 2 on each of two processes, shuffled: the weights and losses of batch 4 on one."""
    for model in (AutoModelForCausalLM.from_pretrained(pair.folder), pair.teacher_words):
        model.save_pretrained(tmp_path / "teacher")
    found, other = on_two_processes(tmp_path, "ddp", "--cross")
    assert found["teacher"] == "AlignedTeacher"
    assert found["wrapper"] == "DistributedDataParallel"
    settings = {"max_steps": 20, "eval_dataset": toys.dataset(7, seed=3)}
    alone = pair.trainer(tmp_path / "alone", **settings)
    before = alone.evaluate()
    expected, log = trained(alone)
    for weights in (found["weights"], other["weights"]):
        for name, value in expected.items():
            ours = weights.get(name, weights.get(f"module.{name}"))
            assert torch.allclose(ours, value, atol=20 * TOLERANCE / 3, rtol=0), name
    rows = [row for row in log if "loss" in row]
    assert len(rows) == 20
    for a, b in zip([row for row in found["log"] if "loss" in row], rows, strict=True):
        for key in (key for key in b if "loss" in key or key == "compared_share"):
            assert math.isclose(a[key], b[key], rel_tol=1e-4), key
    for key in ("eval_loss", "eval_output_loss", "eval_lens_loss", "eval_compared_share"):
        assert math.isclose(found["before"][key], before[key], rel_tol=1e-6), key


@pytest.mark.parametrize("rule", ["shared", "uld"])
def test_what_is_trained_falls(tmp_path, pair, rule):
    """Sixty steps on eight texts bring both terms down."""
    settings = {"max_steps": 60, "learning_rate": 1e-2, "optim": "adamw_torch"}
    trainer = pair.trainer(tmp_path, cross_tokenizer=rule, **settings)
    _, log = trained(trainer)
    for key in ("output_loss", "lens_loss"):
        assert log[-2][key] < 0.7 * log[0][key]


def test_a_cache_of_the_teacher_is_the_teacher(tmp_path, pair):
    """Its states are found again without it; those for another student's tokenizer are not."""
    live, _ = trained(pair.trainer(tmp_path / "a"))
    folder = str(tmp_path / "cache")
    trained(pair.trainer(tmp_path / "b", teacher_cache=folder))
    settings = {"teacher": None, "teacher_tokenizer_name_or_path": str(pair.folder)}
    trainer = pair.trainer(tmp_path / "c", teacher_cache=folder, **settings)
    assert isinstance(trainer.teacher, AlignedTeacher)
    assert isinstance(trainer.teacher.source, CachedTeacher)
    cached, _ = trained(trainer)
    assert toys.drift(live, cached) < TOLERANCE
    manifest = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    assert "student_tokenizer" in json.dumps(manifest)
    other = two_tokenizers.Pair(
        pair.folder, two_tokenizers.byte_level(290, "<end>"), pair.teacher_words
    )
    with pytest.raises(ValueError, match=r"lacks .* because student_tokenizer was"):
        other.trainer(tmp_path / "d", teacher_cache=folder, **settings)


REFUSED = {
    "rule": ({"cross_tokenizer": "all"}, "one of shared, uld"),
    "features": ({"feature_weight": 0.1}, "feature_weight does not go with cross_tokenizer"),
    "split packs": ({"packing": True, "packing_strategy": "wrapped"}, "packing_strategy: bfd"),
    "uld": ({"cross_tokenizer": "uld", "lens_divergence": "jeffreys"}, "leave lens_divergence out"),
    "unused": (
        {"cross_tokenizer": None, "teacher_tokenizer_name_or_path": "x"},
        "read with cross_tokenizer only",
    ),
    "no teacher": ({"teacher": None, "cross_entropy_weight": 1.0}, "there is none"),
    "tokens": (
        {"data": Dataset.from_list([{"input_ids": [1, 2], "labels": [1, 2]}])},
        "hold input_ids",
    ),
    "stream": ({"data": toys.dataset(4).to_iterable_dataset()}, "IterableDataset cannot be"),
    "other tokenizers": ({"cross_tokenizer": None}, "cross_tokenizer: shared compares"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_refused(tmp_path, pair, name):
    """One line, with the way out."""
    settings, match = REFUSED[name]
    with pytest.raises(ValueError, match=match):
        pair.trainer(tmp_path, **settings)


def test_models_that_meet_too_rarely_are_refused(tmp_path, pair):
    """Below half of the targets, or with a tokenizer that loses spaces; the line says why."""
    words = two_tokenizers.byte_level(258, "<end>")  # single bytes
    far = two_tokenizers.Pair(pair.folder, words, pair.teacher_words)
    with pytest.raises(ValueError, match=r"only \d+\.\d% .* rarely end at the same character"):
        far.trainer(tmp_path, data=toys.dataset(8))
    lossy = two_tokenizers.Pair(pair.folder, toys.tokenizer(), pair.teacher_words)
    with pytest.raises(ValueError, match="in 8 of 8 rows the student's tokens do not spell"):
        lossy.trainer(tmp_path)


def test_a_teacher_object_says_where_its_tokenizer_is(tmp_path, pair):
    """By the folder that it was loaded from, or by the field."""
    teacher = AutoModelForCausalLM.from_pretrained(pair.folder)
    assert isinstance(pair.trainer(tmp_path, teacher=teacher).teacher, AlignedTeacher)
    made = toys.llama(4, 24, vocab=len(pair.teacher_words), seed=1, positions=256)
    with pytest.raises(ValueError, match="name it by teacher_tokenizer_name_or_path"):
        pair.trainer(tmp_path, teacher=made)
    named = {"teacher_tokenizer_name_or_path": str(pair.folder)}
    assert isinstance(pair.trainer(tmp_path, teacher=made, **named).teacher, AlignedTeacher)


def test_the_share_of_the_teachers_probability_is_said(tmp_path, pair, caplog):
    """Before the first step, measured on the teacher's own predictions at compared positions."""
    trainer = pair.trainer(tmp_path, max_steps=1)
    with caplog.at_level("INFO", logger="distilllens"):
        trainer.train()
    words, teacher = trainer.teacher.vocabularies, trainer.teacher.source.lens.model
    shared = [theirs for _, theirs in words.shared.tolist()]
    masses = []
    for row in trainer.pairs.tables["training"]:
        with torch.no_grad():
            logits = teacher(torch.tensor([row["input_ids"]])).logits[0]
        at = [n - 1 for n, label in enumerate(row["labels"]) if label >= 0]
        masses.append(logits[at].softmax(-1)[:, shared].sum(-1))
    assert trainer.overlap.mass == pytest.approx(float(torch.cat(masses).mean()), rel=1e-5)
    assert f"hold {trainer.overlap.mass:.1%} of the teacher's probability" in caplog.text


def test_too_little_shared_probability_is_refused(tmp_path, pair):
    """A teacher that says other tokens than the student has."""
    trainer = pair.trainer(tmp_path, max_steps=1)
    rare = trainer.teacher.vocabularies.shared[:3]
    object.__setattr__(trainer.teacher.vocabularies, "shared", rare)
    with pytest.raises(ValueError, match=r"hold only .* cross_tokenizer: uld, which names no"):
        trainer.train()
