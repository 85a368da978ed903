"""Fields of a job that are refused before torch is imported."""

import os
import socket
from pathlib import Path

import pytest
import toys

from distilllens.cli import main
from distilllens.workflows import train_checks
from distilllens.workflows.field_table import read_table
from distilllens.workflows.train_checks import check_cache, check_files, check_loggers, check_values

# Field -> values out of range, and the range in words.
RANGES = {
    "dataloader_num_workers": ((-1,), "at least 0"),
    "dataloader_prefetch_factor": ((0,), "at least 1"),
    "dataset_num_proc": ((0, -1), "at least 1"),
    "ddp_bucket_cap_mb": ((0,), "at least 1"),
    "ddp_timeout": ((0,), "at least 1"),
    "eval_accumulation_steps": ((0,), "at least 1"),
    "eval_delay": ((-1,), "at least 0"),
    "eval_steps": ((-1, 0, -0.5), "above 0"),
    "logging_steps": ((-1, 0), "above 0"),
    "lora_alpha": ((0, -8), "at least 1"),
    "lora_dropout": ((2, 1, -0.1), "at least 0 and below 1"),
    "lora_r": ((0, -1), "at least 1"),
    "max_prompt_length": ((0,), "at least 1"),
    "max_steps": ((-2, 0), "at least 1"),
    "router_aux_loss_coef": ((-1,), "at least 0"),
    "save_steps": ((-1, 0), "above 0"),
    "torch_empty_cache_steps": ((0,), "at least 1"),
}


@pytest.mark.parametrize("name", RANGES)
def test_numbers_out_of_range(name):
    """With the range; the least valid number and None are taken."""
    values, words = RANGES[name]
    for value in values:
        with pytest.raises(ValueError, match=f"^{name} must be {words}.*, got {value}$"):
            check_values({name: value})
    check_values({name: None})
    check_values({name: 0.5 if name in ("lora_dropout", "eval_steps") else 1})


def _accepted(name):
    """Those of the hostile numbers that a field takes."""
    found = []
    for text in ("-1", "0", "1e18", "nan", "inf"):
        try:
            check_values({name: float(text) if text in ("nan", "inf") else int(float(text))})
        except ValueError as error:
            assert str(error).startswith((name, "teacher_server")), error
        else:
            found.append(text)
    return found


# What each field of a number takes of -1, 0, 1e18, nan and inf; the fields that are not here take
# 1e18 alone, and what TRL or the data decide is here with its reason.
TAKEN = {
    "0": "dataset_shuffle_buffer lora_dropout adam_beta1 adam_beta2 adam_epsilon seed data_seed "
    "dataloader_num_workers on_policy_fraction on_policy_from",
    "0 1e18": "learning_rate warmup_steps weight_decay max_grad_norm neftune_noise_alpha "
    "eval_delay save_total_limit router_aux_loss_coef output_weight cross_entropy_weight "
    "lens_weight feature_weight",
    "": "per_device_train_batch_size gradient_accumulation_steps per_device_eval_batch_size "
    "dataloader_prefetch_factor dataset_num_proc ddp_timeout lora_r lens_beta lens_pair_fraction "
    "lens_token_fraction lens_weight_until teacher_server_top_k on_policy_max_new_tokens",
    # -1 of max_steps is "not set"; local_rank is set by launchers; pad_to_multiple_of may be a
    # word and student_blocks a list, and both are checked with the dataclasses; the only value of
    # label_smoothing_factor is 0, which is said with the reason.
    "-1 1e18": "max_steps",
    "-1 0 1e18": "local_rank pad_to_multiple_of label_smoothing_factor",
}


def test_hostile_numbers():
    """Every field of a number, by the table of fields."""
    expected = {name: taken for taken, names in TAKEN.items() for name in names.split()}
    fields = [f for f in read_table().fields if {"int", "float"} & {f.type, *f.kinds}]
    fields = [f.name for f in fields if f.name != "student_blocks"]
    assert {*expected} <= {*fields} and len(fields) > 50
    found = {name: " ".join(_accepted(name)) for name in fields}
    assert found == {name: expected.get(name, "1e18") for name in fields}


def test_python_callers_get_the_same_ranges(workshop):
    """Of all three dataclasses, before anything is loaded."""
    from trl import ModelConfig

    from distilllens import DistillLensConfig
    from distilllens.workflows.train import run_job
    from distilllens.workflows.train_inputs import JobArguments

    with pytest.raises(ValueError, match="save_steps must be above 0"):
        DistillLensConfig(output_dir="out", use_cpu=True, save_steps=0)
    with pytest.raises(ValueError, match="max_prompt_length must be at least 1"):
        JobArguments(train_file=["train.jsonl"], max_prompt_length=0)
    model = ModelConfig(model_name_or_path="student", use_peft=True, lora_dropout=2.0)
    args = DistillLensConfig(output_dir="out", use_cpu=True, cross_entropy_weight=1)
    with pytest.raises(ValueError, match="lora_dropout must be at least 0 and below 1, got 2"):
        run_job(JobArguments(train_file=["train.jsonl"]), model, args)
    assert not (workshop / "out").exists()


def test_forms_of_the_lens_are_checked_first():
    """Before torch, by what lens_layers says of the number of pairs."""
    for values, match in (
        ({"lens_pair_weights": "abc"}, "lens_pair_weights must be uniform or depth"),
        ({"lens_pair_weights": [1, 2], "lens_layers": "3"}, "one for each of the 3 pairs"),
        ({"lens_pair_weights": [0, 0]}, "are 0 for all pairs"),
        ({"lens_weight_schedule": "slow"}, "is one of constant, linear, cosine, got 'slow'"),
    ):
        with pytest.raises(ValueError, match=match):
            check_values(values)
    check_values({"lens_pair_weights": [1, 2], "lens_layers": 2, "lens_weight_schedule": "cosine"})


def test_a_missing_deepspeed_is_told_first(monkeypatch):
    """With how to install it."""
    monkeypatch.setattr(train_checks, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="deepspeed is not installed: pip install deepspeed"):
        check_values({"deepspeed": "ds.json"})


def test_a_teacher_at_nobodys_address_is_told_first(workshop, capsys):
    """One line, before torch; a folder that holds a run is left to the run, which may be over."""
    toys.recipe(
        workshop,
        teacher_model_name_or_path=None,
        teacher_server="http://127.0.0.1:9/v1",
        lens_weight=0,
    )
    assert main(["train", "--config", "recipe.yaml"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "cannot be reached, asked 2 times" in said[0]


def test_a_hub_that_cannot_be_reached_is_told_first(workshop, monkeypatch):
    """With the field and what was looked for; a model that was downloaded is left to the loader."""
    from huggingface_hub import constants

    def unknown(*_):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(workshop / "hub"))
    monkeypatch.setattr("distilllens.places.getproxies", dict)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    job = {"train_file": ["train.jsonl"], "output_dir": "out"}
    for field, name in (
        ("teacher_model_name_or_path", "org/teachr"),
        ("model_name_or_path", "org/studnt"),
        ("tokenizer_name_or_path", "org/tokenizr"),
    ):
        with pytest.raises(ValueError, match=rf"'{name}': there is no such folder .*by {field}$"):
            check_files(job | {field: name})
    (workshop / "hub" / "models--org--teachr").mkdir(parents=True)
    check_files(job | {"teacher_model_name_or_path": "org/teachr"})


def test_what_a_run_reports_to_is_looked_for(monkeypatch):
    """Wherever report_to names it; a name that nobody knows here is left to transformers."""
    for names in (None, "none", "all", "kubeflow", "logger_of_another_version"):
        check_loggers(names, has_tensorboard=False)
    check_loggers(["tensorboard"], has_tensorboard=True)
    for names in ("tensorboard", ["none", "tensorboard"]):
        with pytest.raises(ValueError, match=r"distilllens\[tensorboard\]"):
            check_loggers(names, has_tensorboard=False)
    monkeypatch.setattr(train_checks, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"report_to flyte needs flytekit.*pip install flytekit, "):
        check_loggers(["flyte"])
    with pytest.raises(ValueError, match="report_to 'wandbb' is not known; did you mean wandb"):
        check_loggers("wandbb")


def test_every_logger_of_transformers_is_known():
    """With the package that transformers asks for."""
    from transformers.integrations import INTEGRATION_TO_CALLBACK

    assert INTEGRATION_TO_CALLBACK.keys() | {"all", "none"} == train_checks._LOGGERS.keys()


def test_models_that_may_be_anywhere_are_left_to_the_loader(workshop):
    """Hub ids, whole folders, adapters; what is refused is a folder without a model."""
    adapter = workshop / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    job = {"train_file": ["train.jsonl"], "output_dir": "out"}
    for name in ("org/model", "gpt2", "teacher", str(adapter)):
        check_files(job | {"teacher_model_name_or_path": name, "model_name_or_path": name})
    os.remove(Path("teacher") / "config.json")
    with pytest.raises(ValueError, match="cannot load the tokenizer of the student"):
        check_files(job | {"tokenizer_name_or_path": "./none"})
    with pytest.raises(ValueError, match="cannot load the teacher 'teacher': the folder has no re"):
        check_files(job | {"teacher_model_name_or_path": "teacher"})


def test_a_cache_needs_a_folder_and_a_teacher():
    """Each is named."""
    check_cache({"teacher_cache": "a", "teacher_model_name_or_path": "b"})
    with pytest.raises(ValueError, match="distilllens cache needs teacher_cache"):
        check_cache({"teacher_model_name_or_path": "b"})
    with pytest.raises(ValueError, match="distilllens cache needs teacher_model_name_or_path"):
        check_cache({"teacher_cache": "a", "teacher_model_name_or_path": None})


def test_a_cache_that_is_a_file_is_told_first(workshop):
    """Also one of several teachers."""
    job = {"train_file": ["train.jsonl"], "output_dir": "out"}
    cached = {"teachers": [{"model": "teacher", "weight": 1, "cache": "train.jsonl"}]}
    for fields in ({"teacher_cache": "train.jsonl"}, cached):
        with pytest.raises(ValueError, match=r"^teacher_cache train\.jsonl is a file; name a fol"):
            check_files(job | fields)


@pytest.mark.parametrize("name", ["train_file", "eval_file"])
def test_a_list_of_files_holds_one(workshop, name):
    """Where other fields take an empty list, as ``report_to`` does."""
    job = {"train_file": ["train.jsonl"], "output_dir": "out"}
    check_files(job)
    with pytest.raises(ValueError, match=f"^{name} is empty; give it a value, or leave it out$"):
        check_files(job | {name: []})
