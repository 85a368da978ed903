"""Teacher forcing against the trainer, and against one unpadded row at a time."""

import functools
import json
import math

import pytest
import torch
import toys
from data import tool_records
from datasets import Dataset
from lens import lens_families
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional as F
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from distilllens import DistillLensTrainer, LogitLens
from distilllens.data import format_instruction, to_dataset
from distilllens.evaluate import reference_likelihood as forced
from distilllens.evaluate.calibration import Calibration
from distilllens.evaluate.reference_likelihood import ReferenceLikelihood, reference_likelihoods


def tokenizer(template):
    """The toys' words with what ``template`` puts around a text: <bos> $A <eos>."""
    vocab = {token: i for i, token in enumerate(["<eos>", "<unk>", *toys.WORDS, "<bos>"])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<bos>", vocab["<bos>"]), ("<eos>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<eos>", unk_token="<unk>", bos_token="<bos>"
    )


PLAIN = tokenizer("$A")
EXAMPLES = [
    *toys.examples(6),
    {"prompt": "", "completion": "the cat sat"},
    {"prompt": "it was", "completion": " a dog <eos>"},  # already ended
]


def trainer(tmp_path, examples, tokenizer, *, student, teacher):
    """A trainer that evaluates these examples, three at a time."""
    args = toys.config(
        tmp_path,
        output_divergence="forward_kl",
        per_device_eval_batch_size=3,
        max_length=None,
    )
    return DistillLensTrainer(
        student,
        teacher,
        args=args,
        train_dataset=toys.dataset(2),
        eval_dataset=Dataset.from_list(examples),
        processing_class=tokenizer,
    )


@torch.no_grad()
def one_by_one(student, teacher, data):
    """Every prediction of tokenised and labelled rows, by plain forwards without padding."""
    rows = []
    for ids, labels in zip(data["input_ids"], data["labels"], strict=True):
        ids, labels = torch.tensor([ids]), torch.tensor(labels)[1:]
        logits = (model.eval()(ids).logits[0, :-1] for model in (student, teacher))
        ours, theirs = (each[labels != -100].double() for each in logits)
        labels = labels[labels != -100]
        shared = min(ours.shape[-1], theirs.shape[-1])
        q, p = ours[:, :shared].softmax(-1), theirs[:, :shared].softmax(-1)
        rows.append(
            {
                "nll": F.cross_entropy(ours, labels, reduction="none"),
                "kl": (p * (p / q).log()).sum(-1),
                "teacher_nll": F.cross_entropy(theirs, labels, reduction="none"),
                "confidence": ours.softmax(-1).amax(-1),
                "correct": ours.argmax(-1) == labels,
            }
        )
    return rows


def labelled(examples):
    """Tokens and labels of the toys, whose words never merge."""
    ids = [PLAIN(example["prompt"] + example["completion"])["input_ids"] for example in examples]
    ids = [tokens if tokens[-1] == 0 else [*tokens, 0] for tokens in ids]
    starts = [len(PLAIN(example["prompt"])["input_ids"]) for example in examples]
    labels = [[-100] * start + tokens[start:] for tokens, start in zip(ids, starts, strict=True)]
    return {"input_ids": ids, "labels": labels}


def close(found, expected, tolerance=1e-5):
    """Two lists of ReferenceLikelihood, equal to the tolerance in nats per token."""
    assert [row.num_tokens for row in found] == [row.num_tokens for row in expected]
    for ours, theirs in zip(found, expected, strict=True):
        margin = tolerance * theirs.num_tokens
        assert ours.nll == pytest.approx(theirs.nll, abs=margin)
        for name in ("kl", "teacher_nll"):
            value = getattr(theirs, name)
            assert getattr(ours, name) == (value and pytest.approx(value, abs=margin))


def as_rows(predictions):
    """Sums over the tokens of each row."""
    return [
        ReferenceLikelihood(
            float(row["nll"].sum()),
            len(row["nll"]),
            *(float(row[name].sum()) for name in ("kl", "teacher_nll")),
        )
        for row in predictions
    ]


@pytest.mark.parametrize("template", ["$A", "<bos> $A", "<bos> $A <eos>"])
def test_equals_the_evaluation_of_training(tmp_path, template):
    """Cross-entropy and forward KL equal the trainer's on the same records, for any tokenizer.

    Row by row it is what plain forwards say of the trainer's own tokens and labels.
    """
    student, teacher, words = toys.llama(), toys.llama(4, 24, seed=1), tokenizer(template)
    rows, calibration = reference_likelihoods(student, words, EXAMPLES, teacher=teacher)
    host = trainer(tmp_path, EXAMPLES, words, student=toys.twin(student), teacher=teacher)
    metrics = host.evaluate()
    count = sum(row.num_tokens for row in rows)
    mean = sum(row.nll for row in rows) / count
    assert math.exp(mean) == pytest.approx(math.exp(metrics["eval_cross_entropy"]), rel=1e-5)
    kl = sum(row.kl for row in rows) / count
    assert kl == pytest.approx(metrics["eval_output_loss"], rel=1e-5) and kl > 0.1
    predictions = one_by_one(student, teacher, host.eval_dataset.with_format(None))
    close(rows, as_rows(predictions))
    assert sum(calibration.count) == count
    assert sum(calibration.correct) == sum(int(p["correct"].sum()) for p in predictions) > 0
    expected = sum(float(p["confidence"].sum()) for p in predictions)
    assert sum(calibration.confidence) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama2-32k"])
def test_real_tokenizers(tmp_path, shared, name):
    """Real instructions, and tokens that merge across the end of the prompt, cut as in training."""
    words = AutoTokenizer.from_pretrained(shared / "tokenizers" / name)
    lines = (shared / "data" / "eval_dolly.jsonl").read_text().splitlines()
    examples = [format_instruction(json.loads(line)) for line in lines[:6]]
    examples += [
        {"prompt": "That is imposs", "completion": "ible."},
    ]
    student = toys.llama(2, 8, vocab=len(words), positions=1024)
    teacher = toys.llama(2, 8, vocab=len(words), positions=1024, seed=1)
    rows, _ = reference_likelihoods(student, words, examples, teacher=teacher)
    host = trainer(tmp_path, examples, words, student=toys.twin(student), teacher=teacher)
    data = host.eval_dataset.with_format(None)
    close(rows, as_rows(one_by_one(student, teacher, data)))
    prompts = [words(example["prompt"])["input_ids"] for example in examples]
    merged = [ids[: len(p)] != p for ids, p in zip(data["input_ids"], prompts, strict=True)]
    assert merged[-1]  # or the case proves nothing


@functools.cache
def reference():
    """Rows and calibration of the toys, in one batch."""
    return reference_likelihoods(toys.llama(), PLAIN, EXAMPLES, teacher=toys.llama(4, 24, seed=1))


@pytest.mark.parametrize("batch_tokens", [1, 17, 40, 100_000])
@pytest.mark.parametrize("tile", [1, 24 * 5, 2**24])
def test_batches_and_tiles_change_nothing(monkeypatch, batch_tokens, tile):
    """Rows, their order and the calibration do not depend on the batches."""
    monkeypatch.setattr(forced, "_TILE", tile)
    teacher = toys.llama(4, 24, seed=1)
    options = {"teacher": teacher, "batch_tokens": batch_tokens}
    rows, calibration = reference_likelihoods(toys.llama(), PLAIN, EXAMPLES, **options)
    close(rows, reference()[0])
    assert calibration.count == reference()[1].count
    assert calibration.confidence == pytest.approx(reference()[1].confidence, rel=1e-5)


def test_order_and_progress():
    """Reversed examples give reversed rows; progress counts up to all of them."""
    seen = []
    rows, _ = reference_likelihoods(
        toys.llama(),
        PLAIN,
        EXAMPLES[::-1],
        batch_tokens=30,
        progress=lambda done, total: seen.append((done, total)),
    )
    expected = [ReferenceLikelihood(row.nll, row.num_tokens, None) for row in reference()[0]]
    close(rows[::-1], expected)
    assert len(seen) > 2 and seen == sorted(set(seen)) and seen[-1] == (8, 8)


def watch(module):
    """The shapes of a module's inputs from now on."""
    shapes = []
    module.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape)))
    return shapes


def test_no_logits_of_a_whole_batch(monkeypatch):
    """The head reads references only, a tile at a time; batches keep their size, and no cache."""
    monkeypatch.setattr(forced, "_TILE", 24 * 4)
    model = toys.llama()
    lens = LogitLens(model)  # its proof runs the model as well
    monkeypatch.setattr(forced, "LogitLens", lambda model: lens)
    batches, heads = watch(model.get_input_embeddings()), watch(model.lm_head)
    caches = []
    model.model.register_forward_hook(lambda *call: caches.append(call[-1].past_key_values))
    rows, _ = reference_likelihoods(model, PLAIN, EXAMPLES, batch_tokens=40)
    assert all(b * t <= 40 for b, t in batches) and any(b > 1 for b, _ in batches)
    read = [math.prod(shape[:-1]) for shape in heads]
    assert max(read) <= 4 and sum(read) == sum(row.num_tokens for row in rows)
    assert caches == [None] * len(batches)


@torch.no_grad()
def equals_rows_alone(student):
    """Rows of a batch are those of plain forwards of one example each, without padding."""
    examples = toys.examples(5, longest=7)
    rows, _ = reference_likelihoods(student, PLAIN, examples, batch_tokens=48)
    data = labelled(examples)
    for row, ids, labels in zip(rows, data["input_ids"], data["labels"], strict=True):
        logits = student(input_ids=torch.tensor([ids])).logits[0, -len(ids) :].double()
        nll = F.cross_entropy(logits[:-1], torch.tensor(labels[1:]), reduction="sum")
        close(
            [row], [ReferenceLikelihood(float(nll), sum(label != -100 for label in labels), None)]
        )


@pytest.mark.parametrize(
    ("name", "settings", "by_lens"),
    [
        ("gpt2", {}, True),
        ("opt-350m", {}, True),
        ("mamba", {}, True),
        ("bert", {}, False),  # mode "head"
        ("gemma3n", {}, False),  # mode "stub"
        ("xlnet", {}, False),  # looks at what comes after, padding included
        ("reformer", {}, False),  # no lens
        ("xlm", {"causal": True}, False),
    ],
)
def test_any_architecture(name, settings, by_lens):
    """A model is read by its lens in mode "closed" or by plain forwards; rows are independent."""
    student = lens_families.build(name, **settings)
    assert (forced._Reader("student", student)._lens is not None) is by_lens
    equals_rows_alone(student)


@pytest.mark.parametrize("kind", ["lora", "prompt tuning"])
def test_adapters(kind):
    """With adapters or virtual tokens in front, rows are independent."""
    from peft import PromptTuningConfig, get_peft_model

    settings = {
        "lora": toys.lora(),
        "prompt tuning": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    }
    equals_rows_alone(get_peft_model(toys.llama(), settings[kind]).eval())


def test_without_a_lens_the_same(monkeypatch):
    """A model without a lens gives the same rows, in batches with small logits."""

    def refuse(model):
        raise ValueError("no exact logit lens")

    monkeypatch.setattr(forced, "LogitLens", refuse)
    monkeypatch.setattr(forced, "_WHOLE", 24 * 30)
    student, teacher = toys.llama(), toys.llama(4, 24, seed=1)
    batches = watch(student.get_input_embeddings())
    rows, _ = reference_likelihoods(student, PLAIN, EXAMPLES, teacher=teacher)
    close(rows, reference()[0])
    assert len(batches) > 2 and all(b * t <= 30 for b, t in batches)


@pytest.mark.parametrize("sizes", [(24, 31), (31, 24)])
def test_vocabularies_of_unequal_size(sizes):
    """The KL uses the renormalised shared prefix, each likelihood its model's full vocabulary."""
    student, teacher = toys.llama(vocab=sizes[0]), toys.llama(4, 24, vocab=sizes[1], seed=1)
    rows, _ = reference_likelihoods(student, PLAIN, EXAMPLES, teacher=teacher)
    close(rows, as_rows(one_by_one(student, teacher, labelled(EXAMPLES))))


def test_the_same_model_twice():
    """A model does not diverge from itself, and confidences do not depend on a teacher."""
    model = toys.gpt2(dropout=0.5)
    alone, calibration = reference_likelihoods(model, PLAIN, EXAMPLES)
    rows, also = reference_likelihoods(model, PLAIN, EXAMPLES, teacher=model)
    assert [row.kl for row in rows] == pytest.approx([0.0] * 8, abs=1e-5)
    assert [row.nll for row in rows] == [row.nll for row in alone]
    assert all(row.kl is None for row in alone) and calibration == also


def state_of(model):
    """The state that reading might change, by module and by parameter."""
    modules = {
        name: (module.training, sorted(vars(module)), len(module._forward_hooks))
        for name, module in model.named_modules()
    }
    parameters = [(p.grad, p.requires_grad, p.tolist()) for p in model.parameters()]
    return modules, parameters


@pytest.mark.parametrize("build", [toys.llama, functools.partial(lens_families.build, "xlm")])
def test_the_models_are_left_as_they_were(build):
    """Modes, attributes, hooks, weights, gradients and random numbers are unchanged."""
    student, teacher = build().train(), toys.llama(seed=3).train()
    next(student.children()).eval()
    before, random = (state_of(student), state_of(teacher)), torch.get_rng_state()
    reference_likelihoods(student, PLAIN, EXAMPLES[:3], teacher=teacher)
    assert (state_of(student), state_of(teacher)) == before
    assert torch.equal(random, torch.get_rng_state())
    # Nor is a tensor of inference mode left inside, which backward would refuse.
    student(torch.tensor([[3, 4, 5, 6, 7, 8, 9]])).logits.sum().backward()


def test_bfloat16():
    """The logits are those of the half-precision model, and are compared in float32."""
    student, teacher = toys.llama().bfloat16(), toys.llama(4, 24, seed=1).bfloat16()
    rows, _ = reference_likelihoods(student, PLAIN, EXAMPLES, teacher=teacher, batch_tokens=1)
    close(rows, as_rows(one_by_one(student, teacher, labelled(EXAMPLES))))
    batched, _ = reference_likelihoods(student, PLAIN, EXAMPLES, teacher=teacher)
    close(batched, reference()[0], tolerance=0.05)


def test_nothing_to_measure():
    """No example: no rows, an empty calibration."""
    assert reference_likelihoods(toys.llama(), PLAIN, []) == ([], Calibration())


def test_what_is_beyond_the_context_is_cut():
    """The truncated example is scored as if complete. A prompt that fills the context is named."""
    student = toys.llama(positions=12)
    long = {"prompt": "the " * 8, "completion": "cat " * 9}
    (row,), _ = reference_likelihoods(student, PLAIN, [long])
    assert row.num_tokens == 4
    whole = toys.llama()  # the weights do not depend on the positions
    ids = torch.tensor([PLAIN("the " * 8 + "cat " * 4)["input_ids"]])
    labels = ids.masked_fill(torch.arange(12) < 8, -100)
    assert row.nll == pytest.approx(4 * whole(ids, labels=labels).loss.item(), rel=1e-5)
    with pytest.raises(ValueError, match=r"^dolly example 8: the prompt fills the 12 positions"):
        full = [{"prompt": "the " * 12, "completion": "cat"}]
        reference_likelihoods(student, PLAIN, full, names=["dolly example 8"])


def test_a_teacher_of_a_shorter_context_changes_nothing_but_the_kl():
    """An example beyond its context has no KL; everything else is as without the teacher."""
    examples = [*EXAMPLES, {"prompt": "the " * 8, "completion": "cat " * 9}]
    short, long = (toys.llama(4, 24, seed=1, positions=p) for p in (14, 64))
    rows, calibration = reference_likelihoods(toys.llama(), PLAIN, examples, teacher=short)
    alone, expected = reference_likelihoods(toys.llama(), PLAIN, examples)
    whole, _ = reference_likelihoods(toys.llama(), PLAIN, examples, teacher=long)
    assert rows[-1].kl is None and whole[-1].kl > 0
    assert all((row.kl is None) == (row.teacher_nll is None) for row in rows)
    assert sum(row.kl is None for row in rows) < len(rows)
    for row, without, other in zip(rows, alone, whole, strict=True):
        assert row.num_tokens == without.num_tokens
        assert row.nll == pytest.approx(without.nll, rel=1e-5)
        assert row.kl is None or row.kl == pytest.approx(other.kl, rel=1e-4)
    assert calibration.count == expected.count


def test_a_conversation_is_cut_as_in_training(tmp_path):
    """Messages are written by the chat template; the reference is what follows the prompt."""
    tokenizer = toys.tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] == 'user' and 'the ' or 'a ' }}{{ m['content'] }} "
        "<eos>{% endfor %}{% if add_generation_prompt %}a {% endif %}"
    )
    records = [
        {
            "prompt": [{"role": "user", "content": e["prompt"]}],
            "completion": [{"role": "assistant", "content": e["completion"]}],
        }
        for e in EXAMPLES
    ]
    trainer = DistillLensTrainer(
        toys.llama(),
        toys.llama(4, 24, seed=1),
        args=toys.config(tmp_path),
        train_dataset=Dataset.from_list(records),
        eval_dataset=Dataset.from_list(records),
        processing_class=tokenizer,
    )
    expected = trainer.evaluate()["eval_cross_entropy"]
    rows, _ = reference_likelihoods(toys.llama(), tokenizer, records)
    found = sum(row.nll for row in rows) / sum(row.num_tokens for row in rows)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["messages", "conversations"])
def test_tools_and_template_settings_are_those_of_training(tmp_path, kind):
    """The trainer's cross-entropy, on rows with different tools and settings."""
    words, records = tool_records.tokenizer(), getattr(tool_records, kind)()
    host = DistillLensTrainer(
        toys.llama(),
        toys.llama(4, 24, seed=1),
        args=toys.config(tmp_path),
        train_dataset=to_dataset(records),
        eval_dataset=to_dataset(records),
        processing_class=words,
    )
    expected = math.exp(host.evaluate()["eval_cross_entropy"])
    rows, _ = reference_likelihoods(toys.llama(), words, records)
    found = math.exp(sum(row.nll for row in rows) / sum(row.num_tokens for row in rows))
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_token_without_an_embedding(who):
    """A tokenizer of another model is found before the model fails on it."""
    examples = [*EXAMPLES, {"prompt": "the", "completion": toys.WORDS[-1]}]
    models = {"student": toys.llama(), "teacher": toys.llama()}
    models[who] = toys.llama(vocab=22)
    reference_likelihoods(models["student"], PLAIN, examples, teacher=models["teacher"])
    models[who] = toys.llama(vocab=21)
    with pytest.raises(ValueError, match=f"has token 21, but the {who} has only 21 embeddings"):
        reference_likelihoods(models["student"], PLAIN, examples, teacher=models["teacher"])


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_broken_weights(who):
    """NaN logits are an error."""
    models = {"student": toys.llama(), "teacher": toys.llama()}
    with torch.no_grad():
        models[who].model.layers[1].mlp.down_proj.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match=f"^example .: the {who}'s logits are NaN"):
        reference_likelihoods(models["student"], PLAIN, EXAMPLES, teacher=models["teacher"])


def test_a_tokenizer_without_an_end():
    """No reference would have an end to predict."""
    words = PreTrainedTokenizerFast(tokenizer_object=PLAIN.backend_tokenizer)
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        reference_likelihoods(toys.llama(), words, EXAMPLES)


def test_a_batch_holds_something():
    """batch_tokens of 0 is refused."""
    with pytest.raises(ValueError, match="batch_tokens must be at least 1, got 0"):
        reference_likelihoods(toys.llama(), PLAIN, EXAMPLES, batch_tokens=0)
