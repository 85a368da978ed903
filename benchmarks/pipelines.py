"""What steps.py measures: a Runner per pipeline, with a student, an optimizer and a step."""

from __future__ import annotations

import copy
import gc
import time
import traceback
from pathlib import Path

import torch

from benchmarks import dolly
from benchmarks.meter import too_large, wait
from benchmarks.rivals import PublishedPipeline, trl_trainer, whole_tensors
from distilllens import cost

SHAPES = {  # student and teacher: blocks, width, attention heads
    "gpt2": {"student": (12, 768, 12), "teacher": (48, 1600, 25), "vocab": 50257, "batch": 1},
    "gpt2 batch 16": {
        "student": (12, 768, 12),
        "teacher": (48, 1600, 25),
        "vocab": 50257,
        "batch": 16,
    },
    "gpt2 batch 4": {
        "student": (12, 768, 12),
        "teacher": (48, 1600, 25),
        "vocab": 50257,
        "batch": 4,
    },
    "small": {"student": (4, 128, 2), "teacher": (8, 256, 4), "vocab": 50257, "batch": 4},
    "tiny": {"student": (3, 64, 2), "teacher": (4, 128, 2), "vocab": 512, "batch": 4},
    "toy": {"student": (3, 8, 2), "teacher": (4, 16, 2), "vocab": 211, "batch": 2},
}
OURS = {  # settings of DistillLensConfig
    "plain KD": {"lens_weight": 0.0},
    "DistillLens": {},
    "DistillLens, cached teacher": {"teacher_cache": "cache"},
    "plain KD, cached teacher": {"lens_weight": 0.0, "teacher_cache": "cache"},
    "DistillLens, 0.4 of the pairs": {"lens_pair_fraction": 0.4},
    "DistillLens, a quarter of the tokens": {"lens_token_fraction": 0.25},
    "DistillLens, weighted by entropy": {"lens_token_weights": "entropy"},
    "DistillLens, after its schedule": {"lens_weight_until": 0.5},
    "DistillLens, tuned": {"lens_readout": "tuned"},
}
SAMPLED = ("DistillLens, 0.4 of the pairs", "DistillLens, a quarter of the tokens")
FORMS = (
    "DistillLens, weighted by entropy",
    "DistillLens, after its schedule",
    "DistillLens, tuned",
)


def models(case: dict):
    """The cost model's student and teacher, and the batch size."""
    shape = SHAPES[case["shape"]]
    sides = (cost.gpt2(*shape[who][:2], shape["vocab"]) for who in ("student", "teacher"))
    return *sides, shape["batch"]


def num_pairs(case: dict) -> int:
    """The number of layer pairs that `lens_layers: auto` gives."""
    return min(5, SHAPES[case["shape"]]["student"][0] - 1)


def flops(pipeline: str, student, teacher, rows, pairs: int) -> dict[str, int]:
    """The flop model of a pipeline of this file."""
    fractions = OURS.get(pipeline, {})
    of_pairs = max(1, round(fractions.get("lens_pair_fraction", 1) * pairs)) / pairs
    share = of_pairs * fractions.get("lens_token_fraction", 1)
    weighted, tuned = "lens_token_weights" in fractions, "lens_readout" in fractions
    pipeline = "plain KD" if "lens_weight_until" in fractions else pipeline
    pipeline = "DistillLens" if pipeline in (*SAMPLED, *FORMS) else pipeline
    found = cost.step_flops(pipeline, student, teacher, rows, pairs, share=share)
    # The entropies of the teacher's output are one more projection of it.
    extra = 2 * sum(targets for _, targets in rows) * teacher.vocab * teacher.width
    extra *= weighted
    # Translators see every token, and only the student's have a gradient.
    if tuned:
        tokens = sum(tokens for tokens, _ in rows)
        extra += pairs * tokens * (6 * student.width**2 + 2 * teacher.width**2)
    return found | {"lens": found["lens"] + extra}


def refused(pipeline: str) -> str | None:
    """Why this version of the library cannot run a pipeline, or None."""
    from distilllens import DistillLensConfig

    fields = OURS.get(pipeline, {})
    if unknown := fields.keys() - DistillLensConfig.__dataclass_fields__.keys():
        return f"not in this version: {min(unknown)}"
    try:
        DistillLensConfig(output_dir="unused", report_to="none", **fields)
    except ValueError as error:
        return f"not in this version: {str(error).splitlines()[0]}"
    return None


class Runner:
    """A student, its optimizer and a step; it records the seconds of each step."""

    def __init__(self, pipeline, case, student, optimizer, *, collate, step):
        self.pipeline, self.case, self.student = pipeline, case, student
        self.optimizer, self.collate, self.step = optimizer, collate, step
        self.seconds, self.lengths, self.more = [], [], {}

    def fill(self):
        """Make gradients and optimizer state resident, as they are during training."""
        for weight in self.student.parameters():
            weight.grad = torch.empty_like(weight).fill_(0)
        self.optimizer.step()

    def forget(self):
        """Discard the measurements so far."""
        self.seconds, self.lengths = [], []

    def run(self, rows):
        """One timed optimizer step."""
        batch = self.collate(rows)
        wait(self.student.device)
        start = time.perf_counter()
        self.step(batch)
        wait(self.student.device)
        self.seconds.append(round(time.perf_counter() - start, 4))
        self.lengths.append(dolly.lengths(rows))

    def row(self, **more):
        """The measurements so far."""
        student, teacher, _ = models(self.case)
        found = [
            flops(self.pipeline, student, teacher, r, num_pairs(self.case)) for r in self.lengths
        ]
        terms = {term: round(sum(one[term] for one in found) / 1e9, 3) for term in found[0]}
        total = sum(self.seconds)
        case = {key: self.case[key] for key in ("shape", "kind")}
        label = "".join(f", {key} {value}" for key, value in more.items())
        return {
            "operation": "training step",
            "name": f"{case['shape']} {case['kind']}: {self.pipeline}{label}",
            **case,
            "pipeline": self.pipeline,
            "rows": "Dolly" if self.case["data"] else "random ids, Dolly's lengths",
            **({"rows": "random ids"} if "answer" in more else {}),
            "batch": SHAPES[self.case["shape"]]["batch"],
            "pairs": num_pairs(self.case),
            "dtype": self.case.get("dtype", "float32"),
            "steps": len(self.seconds),
            "seconds": self.seconds,
            "tokens": [sum(tokens for tokens, _ in rows) for rows in self.lengths],
            "targets": [sum(targets for _, targets in rows) for rows in self.lengths],
            "mean_s": round(total / len(self.seconds), 4),
            "gflop": {term: round(value / len(self.seconds), 3) for term, value in terms.items()},
            "step_gflop": [round(sum(one.values()) / 1e9, 3) for one in found],
            "gflop_per_s": round(sum(terms.values()) / total, 1),
            **self.more,
            **more,
        }


def token_rows(case: dict):
    """A tokenizer, and batch x steps rows: of ``--data``, or random ids."""
    shape = SHAPES[case["shape"]]
    count = shape["batch"] * case["steps"]
    if case["tokenizer"]:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(case["tokenizer"])
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    else:
        from distilllens.data.synthetic_tokenizer import synthetic_tokenizer

        tokenizer = synthetic_tokenizer()
    if case["data"]:
        return tokenizer, dolly.dolly_rows(count, case["data"], tokenizer)
    longest = 96 if case["shape"] == "toy" else dolly.LONGEST
    return tokenizer, dolly.synthetic_rows(count, shape["vocab"], longest=longest)


def make_model(case: dict, who: str, blocks: int | None = None):
    """A GPT-2 of the shape with random weights; in bfloat16 the student's stay float32.

    With ``blocks`` that many have weights of their own, and the others share them in turn.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = SHAPES[case["shape"]]
    layers, width, heads = shape[who]
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=shape["vocab"],
        n_layer=min(layers, blocks or layers),
        n_embd=width,
        n_head=heads,
        attn_implementation="sdpa",
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.device(case.get("device", "cpu")):
        model = GPT2LMHeadModel(config)
    for at in range(config.n_layer, layers):
        block = model.transformer.h[at - config.n_layer]
        # What a copy finds in its memo, it does not copy.
        model.transformer.h.append(copy.deepcopy(block, {id(x): x for x in block.parameters()}))
        model.transformer.h[at].attn.layer_idx = at
    config.n_layer = layers
    return model.bfloat16() if who == "teacher" and _is_half(case) else model


def _is_half(case):
    return case.get("dtype") == "bfloat16"


def make_runners(case: dict, rows, tokenizer, folder: Path, warm=None, teacher=None):
    """A runner for each pipeline, after one run of ``warm``, and rows of those that cannot run."""
    teacher = teacher or make_model(case, "teacher").eval()
    runners, skipped = [], []
    for pipeline in case["pipelines"]:
        reason = refused(pipeline) or (_too_large(case) if pipeline == "published" else None)
        if not reason:
            make = {"published": _published, "TRL": _trl}.get(pipeline, _ours)
            try:
                runner = make(pipeline, case, teacher, rows, tokenizer, folder)
                if warm:
                    runner.run(warm)
                    runner.forget()
                runners.append(runner)
            except Exception as error:  # a rival that breaks must not cost the others' rows
                traceback.print_exc()
                reason = f"failed: {type(error).__name__}: {str(error).splitlines()[0]}"
        if reason:
            row = {key: case[key] for key in ("shape", "kind")}
            row |= {"operation": "training step", "pipeline": pipeline, "skipped": reason}
            skipped.append({**row, "name": f"{case['shape']} {case['kind']}: {pipeline}"})
    del teacher
    gc.collect()
    return runners, skipped


def _ours(pipeline, case, teacher, rows, tokenizer, folder):
    from datasets import Dataset

    from distilllens import DistillLensConfig, DistillLensTrainer

    options, more = dict(OURS[pipeline]), {}
    if "teacher_cache" in options:
        options["teacher_cache"] = str(folder / "cache")

    def make(teacher):
        args = DistillLensConfig(
            output_dir=str(folder / "run"),
            per_device_train_batch_size=SHAPES[case["shape"]]["batch"],
            max_length=dolly.LONGEST,
            completion_only_loss=True,
            optim="adamw_torch_fused",
            bf16=case.get("autocast", _is_half(case)),
            use_cpu=case.get("device", "cpu") == "cpu",
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            **options,
        )
        return DistillLensTrainer(
            make_model(case, "student"),
            teacher,
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )

    start = time.perf_counter()
    trainer = make(teacher)
    if "lens_weight_until" in options:  # its first step behind it
        trainer.state.global_step, trainer.state.max_steps = 1, 2
    held = sum(weight.nbytes for weight in teacher.parameters())
    if "teacher_cache" in options:
        trainer.fill_teacher_cache()
        written = sum(file.stat().st_size for file in (folder / "cache").rglob("*"))
        more = {"cache_s": round(time.perf_counter() - start, 2), "cache_bytes": written}
        more["head_numbers"] = teacher.get_output_embeddings().weight.numel()
        trainer = make(None)  # a run that has the cache needs no teacher
        held = 0
    more["teacher_bytes"] = held
    numbers = {tuple(row["input_ids"]): at for at, row in enumerate(trainer.train_dataset)}

    def collate(rows):
        found = [trainer.train_dataset[numbers[tuple(row["input_ids"])]] for row in rows]
        batch = trainer.data_collator(found)
        assert int((batch["labels"] != -100).sum()) == sum(sum(r["completion_mask"]) for r in rows)
        return batch

    return _of_trainer(pipeline, case, trainer, collate, more)


def _trl(pipeline, case, teacher, rows, tokenizer, folder):
    numbers = {tuple(row["input_ids"]): str(at) for at, row in enumerate(rows)}
    trainer = trl_trainer(
        make_model(case, "student"),
        teacher,
        rows,
        folder=folder / "trl",
        tokenizer=tokenizer,
        batch=SHAPES[case["shape"]]["batch"],
    )

    def collate(rows):
        return [{"prompt": numbers[tuple(row["input_ids"])]} for row in rows]

    return _of_trainer(pipeline, case, trainer, collate, {})


def _of_trainer(pipeline, case, trainer, collate, more):
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    model, optimizer = trainer.model, trainer.optimizer

    def step(batch):
        labels = batch["labels"] if isinstance(batch, dict) or hasattr(batch, "keys") else None
        count = None if labels is None else (labels[:, 1:] != -100).sum()
        trainer.training_step(model, batch, count)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.zero_grad()

    runner = Runner(pipeline, case, model, optimizer, collate=collate, step=step)
    runner.more, runner.trainer = more, trainer
    return runner


def _published(pipeline, case, teacher, rows, tokenizer, folder):
    from distilllens import LayerMap

    student = make_model(case, "student")
    layers = student.config.n_layer, teacher.config.n_layer
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-5, weight_decay=0.0, fused=True)
    layer_map = LayerMap.evenly("auto", *layers)
    rival = PublishedPipeline(student, teacher, layer_map, optimizer, length=dolly.LONGEST)
    return Runner(pipeline, case, student, optimizer, collate=rival.collate, step=rival.step)


def _too_large(case):
    shape = SHAPES[case["shape"]]
    one = 4 * shape["batch"] * dolly.LONGEST * shape["vocab"]
    return too_large(one * (num_pairs(case) * whole_tensors("published formula") + 4))
