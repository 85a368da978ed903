"""A study of toy models in a folder, for several test files; no test in here."""

import json
import os
from pathlib import Path

import toys

STUDY = """\
base:
  model_name_or_path: student
  teacher_model_name_or_path: teacher
  train_file: train.jsonl
  eval_file: dev.jsonl
  max_steps: 4
  per_device_train_batch_size: 2
  max_length: 64
  save_steps: 2
  use_cpu: true
  report_to: none
methods:
  kd: {lens_weight: 0}
  lens: {lens_weight: 1.0}
seeds: 2
learning_rates: [1.0e-3, 1.0e-2]
evaluate: {benchmarks: [test.jsonl], seeds: [10], max_new_tokens: 4}
"""


def furnish(folder):
    """Models, data and a study file in a folder."""
    toys.llama(3, 16).save_pretrained(folder / "student")
    toys.llama(4, 24, seed=1).save_pretrained(folder / "teacher")
    for name in ("student", "teacher"):
        toys.tokenizer().save_pretrained(folder / name)
    rows = [
        {"instruction": e["prompt"], "output": e["completion"].strip()} for e in toys.examples(32)
    ]
    for name, part in {"train": rows[:8], "dev": rows[8:20], "test": rows[20:]}.items():
        text = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(text)
    (folder / "study.yaml").write_text(STUDY)


def environment():
    """Of a process: this source tree, one thread."""
    source = str(Path(__file__).parents[3] / "src")
    return {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
