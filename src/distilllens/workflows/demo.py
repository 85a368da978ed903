"""``distilllens demo``: distil a teacher into two students of the same start, and compare them."""

from __future__ import annotations

import copy
import logging
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    set_seed,
)

from distilllens.data import to_dataset, to_training_examples
from distilllens.data.synthetic import synthetic_records
from distilllens.divergence import divergence
from distilllens.files import write_atomically
from distilllens.generate.decoding import Decoding
from distilllens.generate.transformers_backend import TransformersBackend
from distilllens.jsonl import write_rows
from distilllens.layer_map import LayerMap
from distilllens.lens import LogitLens, divergence_by_depth
from distilllens.loading import load_model, load_tokenizer
from distilllens.report import plot_divergence_by_depth
from distilllens.targets import Targets, without_targets
from distilllens.train import DistillLensConfig, DistillLensTrainer
from distilllens.workflows.demo_folder import (
    DATA,
    FIGURE,
    check_demo,
    claim,
    write_marker,
)
from distilllens.workflows.demo_page import demo_page
from distilllens.workflows.demo_verdict import FIRST, SECOND, ByQuestion, compared, verdict
from distilllens.workflows.outputs import PAGE
from distilllens.workflows.run_models import Texts, observe_models

logger = logging.getLogger(__name__)

BATCH_SIZE = 32
LEARNING_RATE = 1e-3  # at twice this, rounding alone moves the result (LOG.md)
NUM_HELD_OUT = 256
NUM_READ, NUM_ASKED = 64, 8  # on the page
# A student starts as a copy of these teacher blocks, counted from 1. From random weights it would
# need ten times the steps; published students start pre-trained.
STUDENT_BLOCKS = (1, 3, 5, 6)
RUNS = ((SECOND, "kd", {"lens_weight": 0.0}), (FIRST, "distilllens", {}))


class Demo(NamedTuple):
    """What a demo measured, as ``demo.json`` has it, and its page; None if it cannot be drawn."""

    result: dict
    page: Path | None


def run_demo(teacher: str | Path, output: str | Path, *, steps: int = 300, seed: int = 0) -> Demo:
    """Train both students; write models, figure, page and ``demo.json`` into ``output``.

    Args:
        teacher: the folder of a Llama and its tokenizer.
        steps: training steps of each student.
        seed: of the questions and of their order.

    Raises:
        ValueError: steps < 1, a negative seed, an output that is a file or holds other things.
        OSError: an output that cannot be written.
    """
    output = Path(output)
    check_demo(output, steps, seed)
    claim(output)
    result, models, tokenizer, log = _trained(teacher, output, steps, seed)
    held_out = synthetic_records(NUM_HELD_OUT, split="held_out", seed=seed)
    texts = Texts(held_out, "the held-out questions", NUM_READ, NUM_ASKED)
    pairs = [tuple(map(int, pair.split(":"))) for pair in result["pairs"]]
    logger.info("reading all models at every depth, answering %d questions", NUM_ASKED)
    observed = observe_models(models, tokenizer, texts, trained=pairs[:-1])
    samples = [replace(one, right=_right(one)) for one in observed.samples]
    observed = replace(observed, samples=tuple(samples))
    curves = {row["name"]: row["jsd"] for row in result["rows"] if row["seconds"] is not None}
    page = output / PAGE
    try:
        plot_divergence_by_depth(output / FIGURE, pairs, curves)
        command = f"distilllens demo --steps {steps} --seed {seed}"
        write_atomically(page, demo_page(result, observed, log, command, output))
    except ImportError as error:
        logger.warning("no figure and no %s: %s", PAGE, error)
        page = None
    write_marker(output, {**result, "finished": True})
    return Demo(result, page)


def _trained(teacher_dir, output, steps, seed):
    """Train and save both students: ``(result, name -> model, tokenizer, DistillLens's log)``."""
    tokenizer = load_tokenizer("teacher", teacher_dir)
    teacher = load_model("teacher", teacher_dir, dtype=torch.float32).eval()
    set_seed(seed)
    # A second thread does not speed up models this small, and slows them down under load.
    torch.set_num_threads(1)
    start = thinned(teacher, STUDENT_BLOCKS)
    layers = (start.config.num_hidden_layers, teacher.config.num_hidden_layers)
    # The lens pairs of training, then the output.
    pairs = LayerMap([*LayerMap.evenly("auto", *layers), layers])
    held_out = synthetic_records(NUM_HELD_OUT, split="held_out", seed=seed)
    records = synthetic_records(min(steps * BATCH_SIZE, 8000), seed=seed)
    for file, written in zip(DATA, (records, held_out), strict=True):
        write_rows(output / file, [{k: v for k, v in r.items() if k != "task"} for r in written])
    models = {"teacher": teacher, "student at start": start}
    rows = [
        measure("teacher", teacher, None, pairs, held_out, tokenizer)[0],
        measure("student at start", start, teacher, pairs, held_out, tokenizer)[0],
    ]
    by_question = {}
    for name, folder, settings in RUNS:
        student = copy.deepcopy(start)
        began = time.perf_counter()
        log = train(student, teacher, records, tokenizer, name, steps=steps, seed=seed, **settings)
        seconds = time.perf_counter() - began
        row, by_question[name] = measure(name, student, teacher, pairs, held_out, tokenizer)
        rows.append({**row, "seconds": seconds})
        student.save_pretrained(output / folder)
        tokenizer.save_pretrained(output / folder)
        models[name] = student
    teacher.save_pretrained(output / "teacher")
    tokenizer.save_pretrained(output / "teacher")
    result = {
        "steps": steps,
        "seed": seed,
        "questions": NUM_HELD_OUT,
        "pairs": [f"{student}:{teacher}" for student, teacher in pairs],
        "rows": rows,
        "comparison": compared(by_question[FIRST], by_question[SECOND]),
    }
    return {**result, "verdict": verdict(result)}, models, tokenizer, log


def make_llama(tokenizer, *, layers: int, width: int, heads: int) -> LlamaForCausalLM:
    """A small Llama with random weights, drawn from torch's global random state."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=width * 8 // 3 // 8 * 8,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            # Llama's own 0.02 is for widths in the thousands; narrow models learn faster with this.
            initializer_range=0.05,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def thinned(model: LlamaForCausalLM, blocks: tuple[int, ...]) -> LlamaForCausalLM:
    """A copy of a Llama with only these of its blocks, counted from 1."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(blocks)
    thin = LlamaForCausalLM(config)
    thin.load_state_dict(model.state_dict(), strict=False)  # ignores surplus blocks
    for block, number in zip(thin.model.layers, blocks, strict=True):
        block.load_state_dict(model.model.layers[number - 1].state_dict())
    return thin


def train(student, teacher, records, tokenizer, name, *, steps, seed, **settings) -> list[dict]:
    """Train ``student`` in place, with a progress bar; returns the log.

    ``settings`` go to DistillLensConfig.
    """
    logger.info("training %s: %d steps", name, steps)
    settings = {
        "per_device_train_batch_size": BATCH_SIZE,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "cosine",
        "warmup_steps": min(50, steps // 8),
        **settings,
    }
    with tempfile.TemporaryDirectory() as folder:
        args = DistillLensConfig(
            output_dir=folder,
            max_steps=steps,
            seed=seed,
            use_cpu=True,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            **settings,
        )
        trainer = DistillLensTrainer(
            student,
            teacher,
            args,
            train_dataset=to_dataset(records),
            processing_class=tokenizer,
        )
        trainer.train()
    return trainer.state.log_history


@torch.no_grad()
def measure(name, model, teacher, pairs, records, tokenizer) -> tuple[dict, ByQuestion]:
    """A row, and its values by question.

    The row has cross-entropy, KL(teacher || model) and JSD by pair in nats per answer token.
    Without a teacher (the teacher's own row) KL is None and the JSDs are an empty list.
    """
    model.eval()
    examples = to_training_examples(records)
    inputs, labels = _batch(examples, tokenizer)
    tokens = Targets.of(labels).mask.sum(1).tolist()
    kl, jsd, sums = None, (), ()
    if teacher is not None:
        lenses = LogitLens(model), LogitLens(teacher)

        def means(which, kind):
            found = divergence_by_depth(*lenses, which, divergence=kind, labels=labels, **inputs)
            return found.means

        by_token = []  # of every pair in turn, in chunks
        jsd = means(pairs, lambda *logits: _kept(divergence("jsd")(*logits), by_token))
        rows = torch.cat(by_token).double().cpu().view(len(jsd), -1)
        sums = [[float(part.sum()) for part in row.split(tokens)] for row in rows]
        (kl,) = means(pairs.pairs[-1:], divergence("forward_kl"))
    right = right_answers(model, examples, tokenizer)
    row = {
        "name": name,
        "cross_entropy": float(model(**inputs, labels=labels).loss),
        "kl": kl,
        "jsd": list(jsd),
        "exact_match": sum(right) / len(right),
        "seconds": None,
    }
    return row, ByQuestion(sums, tokens, right)


def right_answers(model, examples: list[dict], tokenizer) -> list[bool]:
    """Whether the greedy answer to each example equals the completion, character for character.

    Not ``evaluate.exact.exact_match``, which normalises answers first.
    """
    longest = max(len(ids) for ids in tokenizer([e["completion"] for e in examples])["input_ids"])
    decoding = Decoding(max_new_tokens=longest + 1, greedy=True)
    backend = TransformersBackend(model, tokenizer, decoding)
    answers = backend.generate(backend.encode([e["prompt"] for e in examples]), seed=0)
    return [a.text == e["completion"] for a, e in zip(answers, examples, strict=True)]


def _kept(values, places):
    places.append(values)
    return values


def _right(sample):
    return tuple(answer == sample.reference for answer in sample.answers)


def _batch(examples, tokenizer):
    texts = [e["prompt"] + e["completion"] + tokenizer.eos_token for e in examples]
    batch = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    prompts = tokenizer([e["prompt"] for e in examples])["input_ids"]
    starts = torch.tensor([len(prompt) for prompt in prompts]).unsqueeze(1)
    is_prompt = torch.arange(batch["input_ids"].shape[1]) < starts
    labels = without_targets(batch["input_ids"], is_prompt | (batch["attention_mask"] == 0))
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    return inputs, labels
