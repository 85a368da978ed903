"""Training from several teachers: what is compared, and what it must equal."""

import json
import math

import pytest
import torch
import toys
from datasets import Dataset
from train.test_distributed import on_two_processes

from distilllens.objective import Objective
from distilllens.teacher import CachedTeacher, LiveTeacher
from distilllens.train.run_folder import other_layer_map

TOLERANCE = 1e-6  # of any weight after SGD steps of 0.1, as in test_invariance


def teachers():
    """One of four blocks and one of five, of other widths, and with rows of padding."""
    return [toys.llama(4, 24, seed=1), toys.llama(5, 32, seed=2, vocab=26)]


ENTRIES = [{"weight": 0.7}, {"weight": 0.3, "lens_layers": "1:2,2:2"}]


def trainer(output, *, models=None, entries=ENTRIES, **kwargs):
    """A trainer with several teachers."""
    given = teachers() if models is None else models or None
    return toys.trainer(output, teacher=given, teachers=entries, **kwargs)


def trained(made):
    start = toys.weights(made.model)
    made.train()
    assert toys.drift(start, toys.weights(made.model)) > 1e-3, "the steps did nothing"
    return toys.weights(made.model) | toys.weights(made.companions), made.state.log_history


def by_hand(student, models, rows):
    """Reverse KL of the output and mean jsd of each pair, in float64, from the models' own layers.

    The mixture is ``log p = logsumexp_i(log w_i + log_softmax(z_i))`` over 24 tokens.
    """

    def predictions(model, ids):
        model = model.double().eval()
        with torch.no_grad():
            out = model(ids, output_hidden_states=True)
            states = [*out.hidden_states[:-1]]
            inner = [model.lm_head(model.model.norm(state)) for state in states]
        return [logits[..., :24].log_softmax(-1)[0] for logits in (*inner, out.logits)]

    words = toys.tokenizer()
    sums, count = {}, 0
    for example in rows:
        prompt = words(example["prompt"])["input_ids"]
        ids = [*prompt, *words(example["completion"])["input_ids"], words.eos_token_id]
        places = range(len(prompt) - 1, len(ids) - 1)
        ours, *theirs = (predictions(m, torch.tensor([ids])) for m in (student, *models))
        count += len(places)
        for at in places:
            log_q = ours[-1][at]
            parts = [math.log(w) + t[-1][at] for w, t in zip((0.7, 0.3), theirs, strict=True)]
            log_p = torch.logsumexp(torch.stack(parts), 0)
            nats = {"output": (log_q.exp() * (log_q - log_p)).sum()}
            for s, t, number in ((1, 1, 0), (2, 3, 0), (1, 2, 1), (2, 2, 1)):
                q, p = ours[s][at].exp(), theirs[number][t][at].exp()
                m = (p + q) / 2
                jsd = (p * (p / m).log()).sum() / 2 + (q * (q / m).log()).sum() / 2
                nats[f"{s}:{t}@{number + 1}"] = jsd
            for key, value in nats.items():
                sums[key] = sums.get(key, 0) + float(value)
    return {key: value / count for key, value in sums.items()}


def test_the_terms_are_those_of_the_formula(tmp_path):
    """The mixture at the output, and the weighted sum of each teacher's lens, in float64."""
    rows, student, models = toys.examples(3, seed=3), toys.llama(), teachers()
    made = trainer(tmp_path, student=toys.twin(student), eval_dataset=toys.dataset(3, seed=3))
    found, expected = made.evaluate(), by_hand(student, models, rows)
    assert found["eval_output_loss"] == pytest.approx(expected["output"], rel=1e-5)
    pairs = [expected[name] for name in ("1:1@1", "2:3@1", "1:2@2", "2:2@2")]
    for name, value in zip(str(made.objective.layer_map).split(","), pairs, strict=True):
        assert found[f"eval_lens_loss/{name}"] == pytest.approx(value, rel=1e-5)
    lens = 0.7 * sum(pairs[:2]) / 2 + 0.3 * sum(pairs[2:]) / 2
    assert found["eval_lens_loss"] == pytest.approx(lens, rel=1e-5)
    assert found["eval_loss"] == pytest.approx(expected["output"] + lens, rel=1e-5)


ONE = {
    "twice": ([1, 1], [{"weight": 0.5}, {"weight": 0.5}]),
    "weight 0": ([1, 2], [{"weight": 1}, {"weight": 0}]),
    "not scaled": ([1, 1], [{"weight": 2}, {"weight": 6}]),
    "alone": ([1], [{"weight": 3}]),
}
FORMS = {
    "default": {},
    "sampled tokens": {"lens_token_fraction": 0.4},
    "weighted": {
        "lens_pair_weights": "depth",
        "lens_weight_schedule": "linear",
        "lens_detach_head": True,
    },
    "exits": toys.FORMS["exits"],
    "on-policy": toys.FORMS["on-policy"],
    "raw": {"lens_norm": False, "temperature": 2.0, "output_divergence": "forward_kl"},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ONE)
def test_teachers_that_agree_are_one_teacher(tmp_path, name, form):
    """One twice, or beside another of weight 0: weights and losses are those of one."""
    seeds, entries = ONE[name]
    models = [toys.llama(4, 24, seed=seed) for seed in seeds]
    several, log = trained(trainer(tmp_path / "a", models=models, entries=entries, **FORMS[form]))
    alone, expected = trained(toys.trainer(tmp_path / "b", **FORMS[form]))
    assert toys.drift(several, alone) < TOLERANCE
    for a, b in zip(log, expected, strict=True):
        for key in (key for key in b if key in ("loss", "output_loss", "lens_loss")):
            assert math.isclose(a[key], b[key], rel_tol=1e-5), key


LOSSES = {
    "default": {},
    "sampled": {"lens_pair_fraction": 0.5, "lens_token_fraction": 0.4},
    "weighted": FORMS["weighted"],
    "mixed": {"cross_entropy_weight": 0.5, "output_divergence": "forward_kl"},
    "on-policy": toys.FORMS["on-policy"],
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_does_not_depend_on_how_tokens_are_batched(tmp_path, name):
    """Accumulated, padded further, padding-free and packed batches give the same weights."""
    layouts = [
        {},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
        {"pad_to_multiple_of": 16},
        {"padding_free": True, "max_length": None},
        {"packing": True, "max_length": 64, "per_device_train_batch_size": 1},
    ]
    layouts = layouts[:3] if name == "on-policy" else layouts
    settings = {"data": toys.dataset(4), "max_steps": 1, **LOSSES[name]}
    (first, log), *others = (trained(trainer(tmp_path, **settings, **each)) for each in layouts)
    for weights, other_log in others:
        assert toys.drift(first, weights) < TOLERANCE
        for key in (key for key in log[0] if "loss" in key):
            assert math.isclose(log[0][key], other_log[0][key], rel_tol=1e-5), key


def test_a_sample_of_the_pairs_is_the_lens_on_average(tmp_path):
    """The mean over all draws of two of four pairs is the weighted sum over both teachers."""
    made = trainer(tmp_path)
    pairs, weights = made.objective.layer_map.pairs, made.objective.lens_pair_weights
    assert weights == pytest.approx((1.4, 1.4, 0.6, 0.6))
    drawn = made.objective.over(type(made.objective.layer_map)(pairs[1:3]))
    assert isinstance(drawn, Objective) and drawn.lens_pair_weights == weights[1:3]


def test_a_resumed_run_is_the_run(tmp_path):
    """Stopped behind the second of four steps and resumed: the same bits and the same log."""
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = trainer(tmp_path / "whole", **settings)
    whole.train()
    again = trainer(tmp_path / "again", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert toys.drift(toys.weights(whole.model), toys.weights(again.model)) == 0
    losses = [[row["loss"] for row in t.state.log_history if "loss" in row] for t in (whole, again)]
    assert losses[0] == losses[1]


def test_a_run_folder_knows_the_map_of_several_teachers(tmp_path):
    """From its note or, without one, from its log: another map is refused with the old one."""
    made = trainer(tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    made.train()
    now = str(made.objective.layer_map)
    assert other_layer_map(tmp_path / "checkpoint-1", now) is None
    said = other_layer_map(tmp_path / "checkpoint-1", "1:1@1,2:2@2")
    assert "the layer map 1:1@1,1:2@2,2:2@2,2:3@1, and its recipe now gives 1:1@1,2:2@2" in said


@pytest.mark.parametrize("cached", [(True, True), (False, True)], ids=["both", "the second"])
def test_each_teacher_has_a_cache_of_its_own(tmp_path, cached):
    """Filled before the first step, read again without the teacher: the weights of live ones."""
    live, _ = trained(trainer(tmp_path / "a"))
    entries = [
        {**entry, "cache": str(tmp_path / f"cache{number}")} if is_cached else entry
        for number, (entry, is_cached) in enumerate(zip(ENTRIES, cached, strict=True))
    ]
    filled, _ = trained(trainer(tmp_path / "b", entries=entries))
    models = [None if is_cached else m for m, is_cached in zip(teachers(), cached, strict=True)]
    again = trainer(tmp_path / "c", models=models, entries=entries)
    kinds = [type(source) for source in again.teacher.sources]
    assert kinds == [CachedTeacher if is_cached else LiveTeacher for is_cached in cached]
    read, _ = trained(again)
    assert toys.drift(live, filled) < TOLERANCE and toys.drift(live, read) < TOLERANCE


def test_teachers_are_named_in_the_config(tmp_path):
    """By folder, each with its own settings; the card names them with their weights."""
    entries = []
    for number, (model, entry) in enumerate(zip(teachers(), ENTRIES, strict=True)):
        folder = tmp_path / f"teacher{number}"
        model.save_pretrained(folder)
        toys.tokenizer().save_pretrained(folder)
        entries.append({"model": str(folder), **entry})
    entries[1]["model_init_kwargs"] = {"dtype": "float64"}
    made = trainer(tmp_path / "out", models=False, entries=entries)
    dtypes = [next(source.lens.model.parameters()).dtype for source in made.teacher.sources]
    assert dtypes == [torch.float32, torch.float64]
    made.train()
    made.create_model_card()
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{entries[0]['model']} (0.7), {entries[1]['model']} (0.3)" in card
    other = toys.tokenizer(toys.WORDS[::-1])
    other.save_pretrained(tmp_path / "teacher1")
    with pytest.raises(ValueError, match=r"entry 2 of teachers \(.*teacher1\): .*different tok"):
        trainer(tmp_path / "out", models=False, entries=entries)


REFUSED = {
    "no weights": ({"teacher": teachers, "teachers": None}, "2 teachers need weights"),
    "one for two": ({"teacher": lambda: teachers()[:1]}, "1 teachers were passed for the 2"),
    "a model": ({"teacher": lambda: teachers()[0]}, "pass a list of models"),
    "nobody": ({"teacher": lambda: None}, "entry 1 of teachers needs a model or a cache"),
    "pairs": (
        {"lens_pair_weights": [1, 2, 3], "lens_layers": "1:1,2:3"},
        "one for each of the 2 pairs",
    ),
    "depths": (
        {"teachers": [{"weight": 1}, {"weight": 1, "lens_layers": "1:9"}]},
        "depths 0 to 5",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_refused(tmp_path, name):
    """One line, before the first step."""
    settings, match = REFUSED[name]
    given = {"teachers": ENTRIES, **settings}
    made = given.pop("teacher", teachers)()
    with pytest.raises(ValueError, match=match):
        toys.trainer(tmp_path, teacher=made, **given)


def test_the_student_is_no_teacher(tmp_path):
    """The same object among the teachers is refused."""
    student = toys.llama()
    with pytest.raises(ValueError, match="same object"):
        trainer(tmp_path, student=student, models=[student, toys.llama(4, 24, seed=1)])


def test_tokens_of_a_row_are_checked_for_every_teacher(tmp_path):
    """A token that the second teacher has no row for is refused with its number."""
    models = [toys.llama(4, 24, seed=1), toys.llama(4, 24, seed=2, vocab=12)]
    data = Dataset.from_list([{"input_ids": [1, 2, 20, 3], "labels": [1, 2, 20, 3]}] * 4)
    with pytest.raises(ValueError, match=r"entry 2 of teachers: .*20"):
        trainer(tmp_path, models=models, data=data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_step_like_one(tmp_path, kind):
    """Batch 2 on each of two processes ends at the weights of batch 4 on one."""
    entries = json.dumps(ENTRIES)
    found, _ = on_two_processes(tmp_path, kind, "--teachers", entries)
    assert found["teacher"] == "MixedTeacher"
    alone, log = trained(trainer(tmp_path / "alone"))
    for name, value in alone.items():
        ours = found["weights"].get(name, found["weights"].get(f"module.{name}"))
        assert torch.allclose(ours, value, atol=TOLERANCE, rtol=0), name
    rows = [row for row in found["log"] if "loss" in row]
    for a, b in zip(rows, [row for row in log if "loss" in row], strict=True):
        for key in (key for key in b if "loss" in key):
            assert math.isclose(a[key], b[key], rel_tol=1e-5), key
