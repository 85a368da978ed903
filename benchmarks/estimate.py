"""What ``distilllens estimate`` says of small runs on the CPU, beside what they took.

Peaks of memory are those of the process above what it held before the models were loaded, with a
malloc that gives freed memory back. Seconds of a step are of its processor, with one thread:

    python -m benchmarks.run estimate --threads 1
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import random
import tempfile
import time
from pathlib import Path

from benchmarks import rows
from benchmarks.markdown import table
from benchmarks.meter import PeakMemory

ABOUT = "estimated and measured memory and time of small runs on the CPU"
DEMO = Path(__file__).parents[1] / "src" / "distilllens" / "cli" / "demo_teacher"
_LLAMA = {"model_type": "llama", "vocab_size": 32000, "num_attention_heads": 8}
_QWEN = {"model_type": "qwen2", "vocab_size": 151936, "tie_word_embeddings": True}
_QWEN |= {"num_attention_heads": 4, "num_key_value_heads": 2}
MODELS = {  # the student, the teacher
    "llama": (
        {**_LLAMA, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6},
        {**_LLAMA, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8},
    ),
    "gpt2": (
        {"model_type": "gpt2", "n_layer": 6, "n_embd": 384, "n_head": 6, "vocab_size": 50257},
        {"model_type": "gpt2", "n_layer": 8, "n_embd": 512, "n_head": 8, "vocab_size": 50257},
    ),
    "qwen": (
        {**_QWEN, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6},
        {**_QWEN, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8},
    ),
    "toy": (
        {**_LLAMA, "vocab_size": 500, "hidden_size": 32, "intermediate_size": 64}
        | {"num_hidden_layers": 2},
        {**_LLAMA, "vocab_size": 500, "hidden_size": 48, "intermediate_size": 96}
        | {"num_hidden_layers": 3},
    ),
}
SETTINGS = {  # name -> (models, fields)
    "Llama, live teacher": ("llama", {}),
    "Llama, cached teacher": ("llama", {"teacher_cache": "cache"}),
    "Llama, LoRA": ("llama", {"use_peft": True}),
    "Llama, bf16": ("llama", {"bf16": True}),
    "Llama, packed": ("llama", {"packing": True, "per_device_train_batch_size": 4}),
    "Llama, activation checkpointing": ("llama", {"activation_checkpointing": True}),
    "GPT-2, live teacher": ("gpt2", {}),
    "Qwen, live teacher": ("qwen", {}),
}
_WORDS = ("one", "two", "ten", "six", "add", "the", "of", "is")
_STEPS, _WARM = 3, 1


def cases(options) -> list[dict]:
    """A setting a process."""
    if options.toy:
        return [{"name": "toy", "models": "toy", "fields": {}}]
    return [{"name": n, "models": m, "fields": f} for n, (m, f) in SETTINGS.items()]


def seconds(case: dict, gflop_per_s: float) -> float:
    """Mostly imports and models."""
    return 40 if case["models"] == "toy" else 60 + 6000 / gflop_per_s


def measure(case: dict):
    """The row of a setting."""
    import torch

    from distilllens.workflows.estimate import estimate
    from distilllens.workflows.run_arguments import build

    torch.manual_seed(0)
    _give_back()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        arguments = build(recipe(Path(folder), case))
        found = estimate(*arguments, device="cpu")
        _run(case, arguments, warm=True)
        with PeakMemory() as peak:
            steps = _run(case, arguments)
        row = {
            "operation": "estimate",
            **{key: case[key] for key in ("name", "models", "fields")},
            "peak_bytes": peak.bytes,
            "estimated": found["memory"],
            "seconds": [round(each, 4) for each in steps],
            "mean_s": round(sum(steps[_WARM:]) / len(steps[_WARM:]), 4),
            "estimated_s": round(found["seconds_per_step"], 4),
            "gflop": round(sum(found["flops"].values()) / 1e9, 3),
            "device": found["device"],
        }
    yield row


def recipe(folder: Path, case: dict) -> dict:
    """Fields of a run, whose models and data are written to the folder."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    student, teacher = MODELS[case["models"]]
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    for name, settings in (("student", student), ("teacher", teacher)):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings))
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    draw = random.Random(0)
    with (folder / "train.jsonl").open("w") as file:
        for _ in range(64):
            lengths = draw.randint(5, 60), draw.randint(20, 60)
            sides = (" ".join(draw.choices(_WORDS, k=length)) for length in lengths)
            file.write(json.dumps(dict(zip(("prompt", "completion"), sides, strict=True))) + "\n")
    fields = {
        "model_name_or_path": str(folder / "student"),
        "teacher_model_name_or_path": str(folder / "teacher"),
        "train_file": [str(folder / "train.jsonl")],
        "output_dir": str(folder / "run"),
        "max_length": 192,
        "max_steps": _STEPS,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-4,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **case["fields"],
    }
    if "teacher_cache" in fields:
        fields["teacher_cache"] = str(folder / fields["teacher_cache"])
    return fields


def _run(case, arguments, warm=False):
    """Train; processor seconds of every step. A warm-up loads what libraries load on first use."""
    import copy

    from transformers import TrainerCallback

    from distilllens.train.build import build_trainer
    from distilllens.workflows import students, train_data
    from distilllens.workflows.cache import write_cache

    job, model, args = (copy.deepcopy(part) for part in arguments[:3])
    if warm and args.teacher_cache:
        write_cache(job, model, args)
    args = students.with_student_settings(job, model, args)
    args.max_steps = 1 if warm else args.max_steps
    args.per_device_train_batch_size = 1 if warm else args.per_device_train_batch_size
    found = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **more):
            self.start = time.process_time()

        def on_step_end(self, args, state, control, **more):
            found.append(time.process_time() - self.start)

    tokenizer = students.load_student_tokenizer(job, model, args)
    records = train_data.load_all(job, tokenizer, args)
    examples = train_data.examples_of(job, args, tokenizer, records)
    student = model.model_name_or_path
    build_trainer(student, model, args, tokenizer, examples, callbacks=[Watch()]).train()
    return found


def _give_back():
    """Let malloc return what is freed to the system: resident memory is then what is in use."""
    with contextlib.suppress(AttributeError, OSError):
        for option in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            ctypes.CDLL(None).mallopt(option, 2**18)


def estimate_table(folder: Path) -> str:
    """Estimated and measured peaks and seconds."""
    lines = []
    for row in rows.load(folder, "estimate"):
        guess, real = row["estimated"]["total"], row["peak_bytes"]
        times = row["estimated_s"], row["mean_s"]
        lines.append(
            [
                row["name"],
                *(f"{size / 1e6:.0f}" for size in (guess, real)),
                f"{100 * (guess / real - 1):+.0f} %",
                *(f"{value:.2f}" for value in times),
                f"{100 * (times[0] / times[1] - 1):+.0f} %",
            ]
        )
    return table(
        "run | MB estimated | MB measured | error | s a step estimated | s measured | error", lines
    )


TABLES = {"estimate": estimate_table}
