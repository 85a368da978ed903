"""On-policy steps: whose words are compared, over which tokens, and that nothing else matters."""

import copy
import logging
import math

import pytest
import torch
import toys
from datasets import Dataset, IterableDataset
from torch.distributions import Categorical, kl_divergence

from distilllens.generate.generation import Generation
from distilllens.sampling import answer_seed, draw_step
from distilllens.train.on_policy import prompts_of, readable

ON = {"on_policy_fraction": 1.0, "on_policy_max_new_tokens": 6}


def spied(trainer):
    """The micro-batches of a trainer, as its steps get them, with the divisor of each."""
    seen, step = [], trainer.training_step

    def training_step(model, inputs, num_items_in_batch=None):
        seen.append((copy.deepcopy(inputs), num_items_in_batch))
        return step(model, inputs, num_items_in_batch)

    trainer.training_step = training_step
    return seen


def trained(folder, **settings):
    """A trainer that has taken its steps, and what they read."""
    trainer = toys.trainer(folder, **settings)
    seen = spied(trainer)
    trainer.train()
    return trainer, [inputs for inputs, _ in seen]


def prompt_of(row):
    """The ids of a prepared row before its answer."""
    return [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100]


def naive_answer(model, prompt, seed, limit, ends=(0,)):
    """One forward a token: argmax of logits and Gumbel noise of the prompt alone."""
    from distilllens.generate.decoding import add_gumbel_, noise_keys

    ids, keys = list(prompt), noise_keys([prompt], seed, limit)
    for step in range(limit):
        with torch.no_grad():
            scores = model(torch.tensor([ids])).logits[:, -1].float()
        ids.append(int(add_gumbel_(scores, keys[:, step]).argmax()))
        if ids[-1] in ends:
            break
    return ids[len(prompt) :]


def test_a_step_reads_the_students_own_answers(tmp_path):
    """Prompts of the data, behind them what the student says to each alone; these are targets."""
    trainer = toys.trainer(tmp_path, max_steps=1, per_device_train_batch_size=8, **ON)
    seen, student = spied(trainer), toys.twin(trainer.model).eval()
    prompts = sorted(prompt_of(row) for row in trainer.train_dataset)
    trainer.train()
    ((inputs, divisor),) = seen
    answers = {}
    for ids, labels, mask in zip(*(inputs[k].tolist() for k in KEYS), strict=True):
        kept = [(i, label) for i, label, m in zip(ids, labels, mask, strict=True) if m]
        prompt = tuple(i for i, label in kept if label == -100)
        assert [*prompt, *(label for _, label in kept if label != -100)] == [i for i, _ in kept]
        answers[prompt] = [label for _, label in kept if label != -100]
    assert sorted(map(list, answers)) == prompts
    seed = answer_seed(seed=42, step=0)
    for prompt, answer in answers.items():
        assert answer == naive_answer(student, prompt, seed, 6)
    assert divisor == sum(map(len, answers.values()))


KEYS = ("input_ids", "labels", "attention_mask")


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_loss_is_that_of_trls_gkd_on_equal_text(tmp_path, accumulation):
    """generalized_jsd_loss of the answers, over all targets of the step."""
    from trl.experimental.gkd import GKDTrainer

    weights = {"lens_weight": 0.0, "cross_entropy_weight": 3.0, "output_divergence": "jsd"}
    size = {"per_device_train_batch_size": 8 // accumulation, "max_steps": 1}
    trainer = toys.trainer(
        tmp_path, gradient_accumulation_steps=accumulation, **size, **weights, **ON
    )
    seen, student = spied(trainer), toys.twin(trainer.model).eval()
    trainer.train()
    teacher, total = toys.llama(4, 24, seed=1).eval(), 0.0
    assert len(seen) == accumulation
    for inputs, divisor in seen:
        labels = inputs.pop("labels")
        with torch.no_grad():
            ours, theirs = (model(**inputs).logits[:, :-1] for model in (student, teacher))
        loss = GKDTrainer.generalized_jsd_loss(
            ours, theirs, labels[:, 1:], beta=0.5, num_items_in_batch=divisor
        )
        total += float(loss)
    row = trainer.state.log_history[0]
    assert math.isclose(row["loss"], total, rel_tol=1e-5)
    # The student's own words are no reference: no cross-entropy is trained, and none is logged.
    assert math.isclose(row["output_loss"], total, rel_tol=1e-5)
    assert not {"cross_entropy", "mean_token_accuracy"} & row.keys()


def mean_kl(trainer, prompts, teacher):
    """KL(student || teacher) a token, of sampled answers, by torch.distributions in float64."""
    student, total, count = toys.twin(trainer.model).double().eval(), 0.0, 0
    for prompt in prompts:
        answer = naive_answer(student, prompt, 12345, 6)
        ids = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            q, p = (Categorical(logits=m(ids).logits[0]) for m in (student, teacher))
        total += float(kl_divergence(q, p)[len(prompt) - 1 : -1].sum())
        count += len(answer)
    return total / count


def test_the_distance_on_the_students_own_text_falls(tmp_path):
    """KL(student || teacher) on new answers, of other noise than training's, halves."""
    settings = {"max_steps": 60, "learning_rate": 0.02, "optim": "adamw_torch"}
    trainer = toys.trainer(tmp_path, data=toys.dataset(16), **settings, **ON)
    teacher = toys.llama(4, 24, seed=1).double().eval()
    prompts = [prompt_of(row) for row in trainer.train_dataset]
    before = mean_kl(trainer, prompts, teacher)
    trainer.train()
    assert mean_kl(trainer, prompts, teacher) < 0.5 * before


# A share of the steps, or all, with the forms of the objective that a batch may meet.
FORMS = {
    "half": {"on_policy_fraction": 0.5},
    "late": {"on_policy_from": 0.5},
    "features and entropy": {**toys.FORMS["features"], **toys.FORMS["drawn by entropy"]},
    "tuned": toys.FORMS["tuned"],
    "dropout": {},
    "adapter": {},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_resumed_run_is_the_same(tmp_path, form):
    """Stopped after two of four steps: the same weights, to the bit, and the same log."""
    settings = {**ON, **FORMS[form], "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    settings |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}

    def made(folder):
        student = toys.gpt2(3, dropout=0.2) if form == "dropout" else toys.llama()
        peft = {"peft_config": toys.lora()} if form == "adapter" else {}
        return toys.trainer(folder, student=student, **peft, **settings)

    whole = made(tmp_path / "whole")
    start = toys.weights(whole.model)
    whole.train()
    assert toys.drift(start, toys.weights(whole.model)) > 1e-4
    again = made(tmp_path / "again")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert toys.drift(toys.weights(whole.model), toys.weights(again.model)) == 0
    timed = ("runtime", "second", "flos")
    for a, b in zip(whole.state.log_history[:-1], again.state.log_history[:-1], strict=True):
        assert {k: v for k, v in a.items() if not any(t in k for t in timed)} == {
            k: v for k, v in b.items() if not any(t in k for t in timed)
        }


@pytest.mark.parametrize("layout", [{"padding_free": True, "max_length": None}, {}])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_step_does_not_depend_on_padding_or_checkpointing(tmp_path, layout, family):
    """Padded, padded further and recomputed, or padding-free: the same three steps."""
    layout = layout or {"pad_to_multiple_of": 16, "activation_checkpointing": True}
    runs = []
    for settings in ({}, layout):
        trainer, _ = trained(tmp_path, student=getattr(toys, family)(), **ON, **settings)
        runs.append(toys.weights(trainer.model))
    assert toys.drift(*runs) < 1e-6


def test_a_fraction_of_0_is_the_run_of_before(tmp_path):
    """No forward more, no random number less: the same bits, and nothing new in the log."""
    plain, _ = trained(tmp_path, student=toys.gpt2(3, dropout=0.2))
    asked, _ = trained(
        tmp_path,
        student=toys.gpt2(3, dropout=0.2),
        on_policy_fraction=0.0,
        on_policy_from=0.5,
        on_policy_temperature=2.0,
    )
    assert toys.drift(toys.weights(plain.model), toys.weights(asked.model)) == 0
    assert not any("policy" in name for row in asked.state.log_history for name in row)


def test_off_policy_steps_are_those_of_the_data(tmp_path):
    """Seed and step draw which steps are on-policy; the others read and log what they always do."""
    share, steps = 0.5, 8
    trainer, seen = trained(tmp_path, max_steps=steps, **{**ON, "on_policy_fraction": share})
    _, plain = trained(tmp_path, max_steps=steps)
    drawn = [draw_step(seed=42, step=step) < share for step in range(steps)]
    assert 0 < sum(drawn) < steps
    rows = trainer.state.log_history[:steps]
    for on, row, inputs, data in zip(drawn, rows, seen, plain, strict=True):
        assert row["on_policy_steps"] == on
        assert ("cross_entropy" in row) == (not on)
        assert ("on_policy_length" in row) == on
        is_data = inputs["labels"].shape == data["labels"].shape
        assert (is_data and torch.equal(inputs["labels"], data["labels"])) == (not on)


def test_a_warm_start_is_off_policy(tmp_path):
    """Up to on_policy_from of the steps the answers are the data's: of 10 steps, 3."""
    trainer, _ = trained(tmp_path, max_steps=10, on_policy_from=0.3, **ON)
    found = [row["on_policy_steps"] for row in trainer.state.log_history[:-1]]
    assert found == [0] * 3 + [1] * 7


def test_answers_differ_from_step_to_step(tmp_path):
    """One prompt, visited twice at a rate of 0, is answered with new noise."""
    data = Dataset.from_list(toys.examples(1))
    _, (first, second) = trained(
        tmp_path, data=data, max_steps=2, per_device_train_batch_size=1, learning_rate=0.0, **ON
    )
    assert first["labels"].tolist() != second["labels"].tolist()


def test_a_temperature_near_0_writes_the_likeliest_tokens(tmp_path):
    """on_policy_temperature is that of the sampling; the loss has a temperature of its own."""
    trainer = toys.trainer(tmp_path, max_steps=1, on_policy_temperature=1e-9, **ON)
    seen, student = spied(trainer), toys.twin(trainer.model).eval()
    trainer.train()
    ((inputs, _),) = seen
    for ids, labels, mask in zip(*(inputs[k].tolist() for k in KEYS), strict=True):
        kept = [(i, label) for i, label, m in zip(ids, labels, mask, strict=True) if m]
        first = next(n for n, (_, label) in enumerate(kept) if label != -100)
        tokens = torch.tensor([[i for i, _ in kept]])
        with torch.no_grad():
            likeliest = student(tokens).logits[0].argmax(-1).tolist()
        assert likeliest[first - 1 : -1] == [label for _, label in kept[first:]]


def test_bf16_writes_and_trains(tmp_path):
    """Under autocast, too, every step has answers and a finite loss."""
    trainer, (first, *_) = trained(tmp_path, bf16=True, **ON)
    assert all(math.isfinite(row["loss"]) for row in trainer.state.log_history[:-1])
    assert (first["labels"] != -100).sum() > 0


def test_answers_are_counted(tmp_path, caplog):
    """Shares of answers that were cut or are empty, and their mean length, over all rows."""
    trainer, seen = trained(tmp_path, max_steps=2, logging_steps=2, **ON)
    answers = []
    for inputs in seen:
        for labels in inputs["labels"].tolist():
            answers.append([label for label in labels if label != -100])
    row = trainer.state.log_history[0]
    assert row["on_policy_length"] == sum(map(len, answers)) / len(answers)
    assert row["on_policy_truncated"] == sum(a[-1] != 0 for a in answers) / len(answers)
    assert row["on_policy_empty"] == sum(a == [0] for a in answers) / len(answers)
    assert "answers of the student" not in caplog.text


@pytest.mark.parametrize("bias", [100.0, -100.0], ids=["at once", "never"])
def test_a_student_that_ends_at_once_or_never(tmp_path, caplog, bias):
    """Finite steps, honest counts, and after 32 such answers one warning with what to do."""
    student = toys.gpt2(3)
    student.lm_head.bias = torch.nn.Parameter(torch.zeros(24))
    student.lm_head.bias.data[0] = bias
    with caplog.at_level(logging.WARNING):
        trainer, seen = trained(
            tmp_path, student=student, max_steps=12, learning_rate=1e-4, lens_weight=0.0, **ON
        )
    name = "empty" if bias > 0 else "truncated"
    rows = trainer.state.log_history[:-1]
    assert all(row[f"on_policy_{name}"] == 1 and math.isfinite(row["loss"]) for row in rows)
    assert [row["on_policy_length"] for row in rows] == [1.0 if bias > 0 else 6.0] * 12
    assert all((inputs["labels"] != -100).any() for inputs in seen)
    (said,) = [m for m in caplog.messages if "answers of the student" in m]
    advice = "(on_policy_from)" if bias > 0 else "raise that limit"
    assert said.startswith("at step 8, the last 32 answers") and advice in said


def test_a_token_that_the_teacher_lacks_ends_an_answer(tmp_path):
    """A student with more rows of padding: no step reads what the teacher has no embedding for."""
    answer = Generation("", 3, True, 0, (3, 30, 0))
    assert readable(answer, 31) is answer
    cut = readable(answer, 24)
    assert (cut.ids, cut.num_tokens, cut.finished) == ((3,), 1, False)
    student = toys.llama(vocab=40)
    trainer, seen = trained(tmp_path, student=student, **ON)
    assert all(inputs["input_ids"].max() < 24 for inputs in seen)
    assert trainer.state.log_history[0]["on_policy_truncated"] > 0


def test_the_last_answer_of_a_conversation_is_written(tmp_path):
    """Answers before it stay as they are in the data."""
    rows = [
        {"input_ids": [2, 3, 4, 5, 6, 7, 8], "labels": [-100, 3, -100, -100, 6, 7, -100]},
        {"input_ids": [2, 3, 4, 5], "labels": [-100, -100, 4, 5]},
    ]
    _, (inputs,) = trained(tmp_path, data=Dataset.from_list(rows), max_steps=1, **ON)
    found = sorted(prompts_of(inputs))
    assert found == [[2, 3], [2, 3, 4, 5]]


def test_prompts_are_found_in_every_layout():
    """Padded rows, documents of one row, rows without a target."""
    padded = {
        "input_ids": torch.tensor([[5, 6, 7, 0], [8, 9, 3, 4]]),
        "labels": torch.tensor([[-100, 6, 7, -100], [-100] * 4]),
        "attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]),
    }
    assert prompts_of(padded) == [[5]]
    flat = {
        "input_ids": torch.tensor([[5, 6, 7, 8, 9, 0]]),
        "labels": torch.tensor([[-100, 6, -100, -100, 9, -100]]),
        "position_ids": torch.tensor([[0, 1, 0, 1, 2, 0]]),
    }
    assert prompts_of(flat) == [[5], [7, 8]]


def test_a_stream_of_prompts_is_answered(tmp_path):
    """Rows that cannot be counted beforehand; their prompts are checked as they come."""
    data = IterableDataset.from_generator(lambda: iter(toys.examples(8)))
    trainer, _ = trained(tmp_path, data=data, max_steps=1, **ON)
    assert trainer.state.log_history[0]["on_policy_steps"] == 1
    said = "the longest prompt of the training data has 4 tokens, and with on_policy_max_new_tokens"
    with pytest.raises(ValueError, match=f"{said} 62 that is beyond the student's 64 positions"):
        trained(tmp_path, data=data, max_steps=1, **(ON | {"on_policy_max_new_tokens": 62}))


def test_the_teacher_runs_once_on_what_was_written(tmp_path):
    """A call of its backbone a micro-batch, none while the student writes."""
    trainer = toys.trainer(tmp_path, **ON)
    calls = []
    trainer.teacher.lens.model.model.register_forward_hook(lambda *_: calls.append(1))
    trainer.train()
    assert len(calls) == 3


REFUSED = {
    "a teacher": ({"teacher": None, "cross_entropy_weight": 1.0}, "needs a teacher to compare"),
    "texts": ({"data": toys.texts()}, "every token of these training data is a target"),
    "room": ({"on_policy_max_new_tokens": 62}, "beyond the student's 64 positions; lower on_pol"),
    "a cache": ({"teacher_cache": "cache"}, "does not go with teacher_cache: a cache holds"),
    "packing": ({"packing": True}, "does not go with packing: packed rows hold several"),
    "prompts": (
        {"completion_only_loss": False},
        "does not go with completion_only_loss: false, which makes",
    ),
    "a loss": (
        {"output_weight": 0.0, "lens_weight": 0.0, "cross_entropy_weight": 1.0},
        "leaves nothing to learn from in its steps: the cross-entropy is not trained",
    ),
    "a lens that stays": (
        {"output_weight": 0.0, "lens_weight_until": 0.5, "cross_entropy_weight": 1.0},
        "leaves nothing to learn from in its steps",
    ),
    "a share": ({"on_policy_fraction": 1.5}, "on_policy_fraction must be at least 0 and at most 1"),
    "a start": ({"on_policy_from": 1.0}, "on_policy_from must be at least 0 and below 1, got 1.0"),
    "a limit": ({"on_policy_max_new_tokens": 0}, "on_policy_max_new_tokens must be at least 1"),
    "warmth": ({"on_policy_temperature": 0.0}, "on_policy_temperature must be above 0, got 0.0"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_work_is_refused(tmp_path, what):
    """One line, before the first step."""
    settings, message = REFUSED[what]
    with pytest.raises(ValueError, match=message) as caught:
        toys.trainer(tmp_path, **{**ON, **settings})
    assert "\n" not in str(caught.value)


def test_conversations_need_marked_answers(tmp_path):
    """Without assistant_only_loss every token of a conversation is a target."""
    turns = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]
    with pytest.raises(ValueError, match="set assistant_only_loss: true, or give rows a prompt"):
        toys.trainer(tmp_path, data=Dataset.from_list([{"messages": turns}]), **ON)


def test_a_row_without_a_prompt_is_named(tmp_path):
    """Among rows that have one; by its number in the data as they are encoded."""
    rows = [{"input_ids": [2, 3, 4], "labels": [-100, 3, 4]}]
    rows.append({"input_ids": [2, 3, 4], "labels": [2, 3, 4]})
    with pytest.raises(ValueError, match="row 1 of the training data, as they are encoded"):
        toys.trainer(tmp_path, data=Dataset.from_list(rows), **ON)


def test_a_collator_that_makes_other_targets_is_refused(tmp_path):
    """Its labels would leave out answers, or teach prompts."""
    trainer = toys.trainer(tmp_path, **ON)
    own = trainer.data_collator

    def collator(rows):
        batch = own(rows)
        batch["labels"][:, -1] = -100
        return batch

    trainer.data_collator = collator
    with pytest.raises(ValueError, match="the data_collator makes other targets"):
        trainer.train()
