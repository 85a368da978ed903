"""Resident memory over 2,000 training steps in bfloat16 on the CPU, with and without our bounds.

Batches of text have a new shape at nearly every step, and torch keeps compiled CPU products by
their shapes; see distilllens/kernel_caches.py. A small vocabulary keeps 2,000 steps short:

    python -m benchmarks.run resident --data DOLLY_DIR --tokenizer STORIES260K_DIR
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from benchmarks.meter import resident_bytes
from benchmarks.pipelines import SHAPES, flops, make_model, token_rows
from distilllens import cost
from distilllens.kernel_caches import VARIABLES

ABOUT = "resident memory over 2,000 steps in bfloat16 on the CPU"
CACHES = {"bounded": "64", "torch's default": "1024"}


def cases(options) -> list[dict]:
    """A run with the bounds of the package, and one with what torch does without them."""
    shape, steps = ("toy", 20) if options.toy else ("tiny", 2000)
    base = {"shape": shape, "steps": steps, "data": options.data, "tokenizer": options.tokenizer}
    return [{**base, "name": f"{shape} bf16: {caches}", "caches": caches} for caches in CACHES]


def seconds(case: dict, gflop_per_s: float) -> float:
    """The flop model, bfloat16 at the speed of float32, and the construction of the models."""
    shape = SHAPES[case["shape"]]
    sides = (cost.gpt2(*shape[who][:2], shape["vocab"]) for who in ("student", "teacher"))
    work = sum(flops("DistillLens", *sides, [(139, 68)] * shape["batch"], 3).values()) / 1e9
    return 12 + case["steps"] * 1.3 * work / gflop_per_s


def measure(case: dict):
    """The row of a run."""
    for variable in VARIABLES:  # read when the first product runs
        os.environ[variable] = CACHES[case["caches"]]
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        trainer, found = _trainer(case, Path(folder))
        start = time.perf_counter()
        trainer.train()
        elapsed = time.perf_counter() - start
    yield {
        "operation": "training run",
        **{key: case[key] for key in ("name", "shape", "steps", "caches")},
        "rows": "Dolly" if case["data"] else "random ids, Dolly's lengths",
        "dtype": "bfloat16",
        "mean_s": round(elapsed / case["steps"], 4),
        "every": max(1, case["steps"] // 20),
        "resident_bytes": found,
        "peak_bytes": max(found),
    }


def _trainer(case, folder):
    from datasets import Dataset
    from transformers import TrainerCallback

    from distilllens import DistillLensConfig, DistillLensTrainer

    tokenizer, rows = token_rows({**case, "steps": min(case["steps"], 1000)})
    found, every = [], max(1, case["steps"] // 20)

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **more):
            if state.global_step % every == 0:
                found.append(resident_bytes())

    args = DistillLensConfig(
        output_dir=str(folder),
        per_device_train_batch_size=SHAPES[case["shape"]]["batch"],
        max_steps=case["steps"],
        max_length=512,
        completion_only_loss=True,
        bf16=True,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
    )
    models = make_model(case, "student"), make_model({**case, "dtype": "bfloat16"}, "teacher")
    trainer = DistillLensTrainer(
        *models,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Watch()],
    )
    return trainer, found
