"""What a run says before its first step and after its last, and how its model is saved."""

import json
import logging
import re
import subprocess
import sys

import pytest
import torch
import toys
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from workflows.test_train import arguments

from distilllens.cli import main
from distilllens.workflows.run_summary import block
from distilllens.workflows.train import run_job

LORA = {"use_peft": True, "lora_r": 2, "lora_dropout": 0.0, "lora_target_modules": "all-linear"}


def save(folder, dtype):
    """The student of the workshop, in another dtype."""
    toys.llama(3, 16).to(dtype).save_pretrained(folder / "student")


def test_a_run_says_what_it_does(workshop, caplog):
    """Models, precision, loss, layers with their rule, data, batch arithmetic, output."""
    with caplog.at_level(logging.INFO):
        run_job(*arguments(per_device_train_batch_size=2, gradient_accumulation_steps=3))
    (opening,) = [m for m in caplog.messages if m.startswith("student ")]
    (closing,) = [m for m in caplog.messages if m.startswith("losses ")]
    num = sum(p.numel() for p in toys.llama(3, 16).parameters())
    rows = dict(line.split(maxsplit=1) for line in opening.splitlines())
    assert rows["student"] == f"student: {num:,} parameters, float32"
    assert rows["teacher"].startswith("teacher: ") and "runs beside the student" in opening
    assert rows["loss"] == "1 × reverse_kl at the output + 1 × jsd through the lens"
    assert rows["layers"] == "1:1, 2:3 (student:teacher; lens_layers auto: evenly spaced)"
    assert "lens" not in rows, "the plain lens needs no words"
    assert rows["steps"] == "2 steps of 6 rows (2 rows x 3 accumulated x 1 process)"
    assert rows["output"].startswith("out; a checkpoint every 500 steps")
    # Words are tokens of the toy tokenizer, and the end of each answer is a target.
    answers = [e["completion"].split() for e in toys.examples(8)]
    assert rows["data"] == f"8 rows, {sum(map(len, answers)) + 8} target tokens"
    assert "loss " in closing and "distilllens inspect --teacher teacher --student out" in closing
    assert all(len(line) <= 100 for line in opening.splitlines())
    assert re.search(r"^memory +at most [0-9.]+ [MG]B of the process$", closing, re.M)


def test_peak_memory_is_what_a_process_has_held():
    """An array of 500 MB counts after it is gone; what the process above it has held does not."""
    code = (
        "import torch; from distilllens.workflows.run_summary import peak_memory\n"
        "cpu = torch.device('cpu'); before = peak_memory(cpu)\n"
        "torch.ones(125_000_000); print(before, peak_memory(cpu))"
    )
    parent = "import subprocess, sys; x = bytearray(2 * 10**9); x[::4096] = x[::4096]\n"
    parent += f"subprocess.run([sys.executable, '-c', {code!r}], check=True)"
    argv = [sys.executable, "-c", parent]
    found = subprocess.run(argv, capture_output=True, text=True, check=True)
    before, after = map(int, found.stdout.split())
    assert 5e7 < before < after < 2e9 and 250e6 < after - before < 560e6


def test_forms_of_the_lens_are_told(workshop, caplog):
    """Those that were set, and no others."""
    forms = {
        "lens_readout": "tuned",
        "lens_weight_schedule": "cosine",
        "lens_weight_until": 0.5,
        "lens_pair_weights": [1, 3],
        "lens_token_weights": "entropy",
        "lens_token_fraction": 0.5,
        "lens_detach_head": True,
    }
    with caplog.at_level(logging.INFO):
        run_job(*arguments(max_steps=2, **forms))
    (opening,) = [m for m in caplog.messages if m.startswith("student ")]
    told = " ".join(opening.split("\nlens ")[1].split("\ndata ")[0].split())
    assert told == (
        "tuned; weight cosine, 0 from 0.5 of the steps on; pairs weighted 1, 3; tokens weighted by "
        "the teacher's entropy; 0.5 of the tokens; the student's head is left alone"
    )


@pytest.mark.parametrize(
    ("strategy", "note"), [("no", " (eval_strategy no: training does not evaluate)"), ("epoch", "")]
)
def test_evaluation_data_that_no_evaluation_reads_are_told(workshop, caplog, strategy, note):
    """TRL's default is not to evaluate, also where eval_file is set; and one row is a row."""
    job, model, training = arguments(
        per_device_train_batch_size=1, max_steps=1, save_strategy="no", eval_strategy=strategy
    )
    job.eval_file = ["train.jsonl"]
    with caplog.at_level(logging.INFO):
        run_job(job, model, training)
    (opening,) = [m for m in caplog.messages if m.startswith("student ")]
    words = " ".join(opening.split())
    tokens = sum(len(e["completion"].split()) + 1 for e in toys.examples(8))
    assert f"evaluation: 8 rows, {tokens} target tokens{note} steps" in words
    assert "1 step of 1 row (1 row x 1 accumulated x 1 process)" in words


def test_nothing_is_said_twice(workshop, capsys):
    """The losses of the last step, the models, where things lie; on one screen."""
    toys.recipe(workshop, max_steps=10, logging_steps=10, report=True)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    # datasets and safetensors decide on their bars when they are imported, by the suite.
    said = capsys.readouterr().err.splitlines()
    lines = [line for line in said if line.strip() and "|" not in line]
    assert len(lines) < 30 and len(lines) == len(set(lines))
    text = "\n".join(lines)
    for once in (", ce ", "parameters, float32\n", "the final model and", "report is"):
        assert text.count(once) == 1, once


def test_long_values_are_wrapped_under_their_own():
    """Names stay in a column of their own."""
    lines = block({"layers": "word " * 40, "x": "y"}).splitlines()
    assert lines[0].startswith("layers  word") and lines[1].startswith("        word")
    assert lines[-1] == "x       y"


@pytest.mark.parametrize("steps", [1, 3])
def test_the_last_step_is_logged_whatever_logging_steps(workshop, capsys, steps):
    """Log and screen (no terminal here) have it, and the report its layer map."""
    toys.recipe(workshop, max_steps=steps, logging_steps=2, report=True)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    state = json.loads((workshop / "out" / "trainer_state.json").read_text())
    assert [r["step"] for r in state["log_history"] if "loss" in r] == [*range(2, steps, 2), steps]
    assert f"step {steps} of {steps}: loss " in capsys.readouterr().err
    page = (workshop / "out" / "report.html").read_text()
    assert "Nothing was logged" not in page and "1:1, 2:3" in page


def test_layers_are_in_the_report_of_a_run_that_logs_nothing(workshop):
    """They come from run.json."""
    toys.recipe(workshop, max_steps=1, logging_strategy="no", report=True)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    assert "1:1, 2:3" in (workshop / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("source", "asked", "dtype", "saved"),
    [
        ("bfloat16", None, None, "bfloat16"),
        ("float16", None, None, "float16"),
        ("float32", None, None, "float32"),
        ("bfloat16", "float32", None, "float32"),
        ("float32", "bfloat16", None, "bfloat16"),
        ("float32", None, "bfloat16", "bfloat16"),  # trained in it: nothing is made up
    ],
)
def test_the_final_model_has_the_dtype_of_its_source(workshop, source, asked, dtype, saved):
    """The trained weights, rounded once; checkpoints keep float32, and resuming is exact."""
    save(workshop, getattr(torch, source))
    toys.recipe(workshop, save_dtype=asked, dtype=dtype)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    final = load_file(workshop / "out" / "model.safetensors")
    last = load_file(workshop / "out" / "checkpoint-4" / "model.safetensors")
    wanted = getattr(torch, saved)
    assert {t.dtype for t in last.values()} == {getattr(torch, dtype or "float32")}
    assert final.keys() == last.keys()
    assert all(torch.equal(final[name], last[name].to(wanted)) for name in last)
    assert json.loads((workshop / "out" / "config.json").read_text())["dtype"] == saved
    assert AutoModelForCausalLM.from_pretrained(workshop / "out", dtype="auto").dtype == wanted
    # The hash of run.json is that of the saved file: the run is whole, and a torn one is mended.
    before = (workshop / "out" / "model.safetensors").read_bytes()
    (workshop / "out" / "model.safetensors").write_bytes(before[:-1])
    assert main(["train", "--config", "recipe.yaml"]) == 0
    assert (workshop / "out" / "model.safetensors").read_bytes() == before


def test_an_unknown_dtype_is_refused(workshop, capsys):
    """In one line."""
    toys.recipe(workshop, save_dtype="int8")
    assert main(["train", "--config", "recipe.yaml"]) == 2
    assert "save_dtype is one of auto, float32, bfloat16, float16" in capsys.readouterr().err


def test_an_adapter_is_a_student_and_a_teacher(workshop, capsys):
    """Its training goes on, from its weights; as a teacher it is the adapted model."""
    toys.recipe(workshop, output_dir="first", **LORA)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    toys.recipe(workshop, model_name_or_path="first", teacher_model_name_or_path="first")
    # A student that is its teacher has nothing to learn: the loss of step 1 is 0.
    assert main(["train", "--config", "recipe.yaml", "--max_steps", "1"]) == 0
    state = json.loads((workshop / "out" / "trainer_state.json").read_text())
    assert state["log_history"][0]["loss"] == pytest.approx(0, abs=1e-5)
    first, out = (load_file(workshop / f / "adapter_model.safetensors") for f in ("first", "out"))
    assert first.keys() == out.keys() and not (workshop / "out" / "model.safetensors").exists()
    # AdamW's first step moves a weight by the learning rate at most, here 0.01 (and decay).
    assert max(float((first[n] - out[n]).abs().max()) for n in first) < 0.011
    err = capsys.readouterr().err
    assert "first: " in err and "trainable)" in err
    assert "the final adapter and its tokenizer are in out" in err
    again = ["--use_peft", "--output_dir", "again"]
    assert main(["train", "--config", "recipe.yaml", *again]) == 2
    assert "first is an adapter, whose training goes on" in capsys.readouterr().err


def test_an_adapter_is_inspected_like_the_model_it_makes(workshop, capsys):
    """The page of an adapter equals that of the merged model, but for names."""
    toys.recipe(workshop, **LORA)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    flags = ["--teacher", "teacher", "--prompt", "the cat", "--output", "page.html"]
    assert main(["inspect", *flags, "--student", "out"]) == 0
    err = capsys.readouterr().err
    assert "student: " in err and "parameters, float32, on cpu" in err


def test_another_base_model_makes_another_adapter(workshop):
    """A run that goes on from an adapter notices that its base has changed."""
    toys.recipe(workshop, output_dir="first", **LORA)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    toys.recipe(workshop, model_name_or_path="first")
    assert main(["train", "--config", "recipe.yaml"]) == 0
    toys.llama(3, 16, seed=5).save_pretrained(workshop / "student")
    assert main(["train", "--config", "recipe.yaml"]) == 2


def test_a_template_without_marks_names_the_ways_out(workshop, capsys):
    """SmolLM2's template, as published: TRL has no marked version of it."""
    template = (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
        "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    )
    (workshop / "student" / "chat_template.jinja").write_text(template)
    said = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "ran"}]
    (workshop / "train.jsonl").write_text(json.dumps({"messages": said}) + "\n")
    toys.recipe(workshop, assistant_only_loss=True)
    assert main(["train", "--config", "recipe.yaml"]) == 2
    err = capsys.readouterr().err
    assert "both lists of messages" in err and "chat_template_path" in err
