"""Whole on-policy steps: answer tokens per processor second of ours and of TRL's GKDTrainer.

In every step the student answers the same prompts (Dolly's lengths) with up to 128 tokens, and is
compared with the teacher on them: JSD at the output, and with the lens in a third row. Both write
with noise of their own, so steps are compared by tokens. Weights are random, with a bias on the
student's end-of-sequence token, so that its answers end at random, after 68 tokens on average as
Dolly's; the learning rate is 0, so that they go on doing so. Both trainers take their whole steps,
optimizer included; the first is left out. With activation checkpointing, which is on by default in
TRL, GKDTrainer generates without a key-value cache. Only processor seconds are kept:

    python -m benchmarks.run on_policy --threads 1
    python -m benchmarks.run on_policy --threads 1 --model STORIES --prompts FILE
"""

from __future__ import annotations

import copy
import math
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import TrainerCallback

from benchmarks import dolly
from benchmarks.generation import MEAN_ANSWER, checkpoint
from benchmarks.markdown import table
from benchmarks.rows import load

ABOUT = "whole on-policy steps by ours and by TRL's GKDTrainer, processor seconds"
ENGINES = ("TRL's GKDTrainer", "ours, JSD at the output", "ours, with the lens")
TINY = {"vocab": 512, "student": (5, 64, 8), "teacher": (8, 128, 8), "limit": 128}
TOY = {"vocab": 211, "student": (3, 16, 2), "teacher": (4, 24, 2), "limit": 6}
# Rows of a micro-batch, accumulation, activation checkpointing (TRL's default), measured steps.
SIZES = ((4, 8, False, 2), (32, 1, False, 2), (8, 1, True, 1))


def cases(options) -> list[dict]:
    """A process for each shape of a step; in it, one engine after the other."""
    shapes = {"toy": TOY} if options.toy else {"gpt2 tiny": TINY}
    if options.model and not options.toy:
        shapes = {
            Path(options.model).name: {
                "model": options.model,
                "data": options.prompts,
                "limit": 128,
            }
        }
    sizes = ((2, 2, False, 1), (2, 1, True, 1)) if options.toy else SIZES
    return [
        {
            **shape,
            "shape": name,
            "rows": rows,
            "accumulated": accumulated,
            "recomputed": recomputed,
            "steps": steps,
            "name": f"{name} {rows} x {accumulated}" + (", recomputed" if recomputed else ""),
        }
        for name, shape in shapes.items()
        for rows, accumulated, recomputed, steps in sizes
    ]


def seconds(case: dict, gflop_per_s: float) -> float:
    """Three engines; generation is far from the speed of large products."""
    return 1 if "vocab" in case and case["vocab"] < 1000 else 180


def measure(case: dict):
    """A row for each engine."""
    student, teacher, tokenizer, rows = parts(case)
    for engine in ENGINES:
        make = trl if engine.startswith("TRL") else ours
        with tempfile.TemporaryDirectory() as folder:
            args = settings(case, folder)
            more = {} if engine.endswith("lens") or make is trl else {"lens_weight": 0.0}
            trainer = make(copy.deepcopy(student), teacher, tokenizer, rows, args | more, case)
            found = Watch(trainer)
            trainer.train()
        used, tokens = found.seconds[1:], found.tokens[1:]
        rates = [count / each for count, each in zip(tokens, used, strict=True)]
        yield {
            "operation": "on-policy step",
            "name": f"{case['name']}: {engine}",
            "engine": engine,
            **{key: case[key] for key in ("shape", "rows", "accumulated", "recomputed", "limit")},
            "tokens": tokens,
            "cpu_s": used,
            "mean_s": round(statistics.mean(used), 4),
            "tokens_per_s": round(sum(tokens) / sum(used), 1),
            "min_tokens_per_s": round(min(rates), 1),
            "max_tokens_per_s": round(max(rates), 1),
        }


def settings(case, folder):
    """What both trainers are told."""
    return {
        "output_dir": folder,
        "max_steps": case["steps"] + 1,
        "per_device_train_batch_size": case["rows"],
        "gradient_accumulation_steps": case["accumulated"],
        "learning_rate": 0.0,
        "max_length": dolly.LONGEST,
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": case["recomputed"],
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
    }


def ours(student, teacher, tokenizer, rows, args, case):
    """A trainer all of whose steps are on-policy."""
    from datasets import Dataset

    from distilllens import DistillLensConfig, DistillLensTrainer

    args = DistillLensConfig(
        output_divergence="jsd",
        on_policy_fraction=1.0,
        on_policy_max_new_tokens=case["limit"],
        completion_only_loss=True,
        **args,
    )
    return DistillLensTrainer(
        student,
        teacher,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )


def trl(student, teacher, tokenizer, rows, args, case):
    """The same of TRL, with a collator for rows that are tokenized already."""
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    from distilllens.generate.prompts import left_padded

    def collate(found):
        prompts = [r["input_ids"][: r["completion_mask"].index(1)] for r in found]
        ids, mask = left_padded([r["input_ids"] for r in found], tokenizer.pad_token_id, "cpu")
        targets, _ = left_padded([r["completion_mask"] for r in found], 0, "cpu")
        asked, asked_mask = left_padded(prompts, tokenizer.pad_token_id, "cpu")
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": ids.masked_fill(targets == 0, -100),
            "prompts": asked,
            "prompt_attention_mask": asked_mask,
        }

    args = GKDConfig(lmbda=1.0, beta=0.5, temperature=1.0, max_new_tokens=case["limit"], **args)
    return GKDTrainer(
        student,
        teacher,
        args=args,
        data_collator=collate,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )


class Watch(TrainerCallback):
    """Processor seconds from the end of a step to that of the next, and its answer tokens."""

    def __init__(self, trainer):
        self.seconds, self.tokens, self._since, self._count = [], [], time.process_time(), 0
        compute = trainer.compute_loss

        def compute_loss(model, inputs, *args, **more):
            self._count += int((inputs["labels"][:, 1:] != -100).sum())
            return compute(model, inputs, *args, **more)

        trainer.compute_loss = compute_loss
        trainer.add_callback(self)

    def on_step_end(self, *args, **kwargs):
        """Note what the step took."""
        now = time.process_time()
        self.seconds.append(round(now - self._since, 4))
        self.tokens.append(self._count)
        self._since, self._count = now, 0


def parts(case: dict):
    """Student, teacher, tokenizer and the rows of all steps."""
    count = case["rows"] * case["accumulated"] * (case["steps"] + 1)
    if "model" in case:
        return trained(case, count)
    from distilllens.data.synthetic_tokenizer import synthetic_tokenizer

    tokenizer = synthetic_tokenizer()
    student, teacher = (gpt2(case, who, tokenizer.eos_token_id) for who in ("student", "teacher"))
    # Logits of random weights are nearly equal: the end gets one chance in MEAN_ANSWER.
    student.lm_head.bias = torch.nn.Parameter(torch.zeros(case["vocab"]))
    bias = math.log(case["vocab"] / (MEAN_ANSWER - 1))
    student.lm_head.bias.data[tokenizer.eos_token_id] = bias
    return student, teacher.eval(), tokenizer, dolly.synthetic_rows(count, case["vocab"])


def gpt2(case, who, end):
    """Random weights without dropout, which GKDTrainer turns off."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    layers, width, heads = case[who]
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = GPT2Config(
        vocab_size=case["vocab"],
        n_layer=layers,
        n_embd=width,
        n_head=heads,
        bos_token_id=end,
        eos_token_id=end,
        **dropout,
    )
    return GPT2LMHeadModel(config)


def trained(case, count):
    """A checkpoint as its own teacher, and the prompts of records, over and over."""
    model, tokenizer, prompts, _ = checkpoint({**case, "prompts": count})
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    prompts = (prompts * (count // len(prompts) + 1))[:count]
    rows = [dolly.row([*ids, *[tokenizer.eos_token_id] * 64], len(ids)) for ids in prompts]
    return model, copy.deepcopy(model), tokenizer, rows


def on_policy_table(folder: Path) -> str:
    """Answer tokens per processor second, by shape of the step and engine."""
    lines, found = [], load(folder, "on_policy")
    first = {row["name"].partition(":")[0]: row["tokens_per_s"] for row in reversed(found)}
    for row in found:
        step = row["name"].partition(":")[0]
        speed = f"{row['tokens_per_s']:.0f}"
        speed += f" ({row['min_tokens_per_s']:.0f} to {row['max_tokens_per_s']:.0f})"
        size = f"{row['rows']} x {row['accumulated']}"
        size += ", activation checkpointing" if row["recomputed"] else ""
        cells = [row["shape"], size, row["engine"]]
        cells += [round(statistics.mean(row["tokens"])), f"{row['mean_s']:.2f}", speed]
        lines.append([*cells, f"{row['tokens_per_s'] / first[step]:.1f}"])
    head = "model | rows x accumulated | engine | answer tokens a step | processor seconds a step"
    return table(f"{head} | answer tokens a second (range) | x TRL", lines)


TABLES = {"on-policy": on_policy_table}
