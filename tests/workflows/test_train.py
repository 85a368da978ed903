"""``run_job``: what ``distilllens train`` does, called from Python."""

import json
import logging

import pytest
from trl import ModelConfig

from distilllens import DistillLensConfig
from distilllens.workflows.train import run_job
from distilllens.workflows.train_inputs import JobArguments, changed_fields


def arguments(**changes):
    """Those of a run of two steps."""
    training = {
        "output_dir": "out",
        "teacher_model_name_or_path": "teacher",
        "max_steps": 2,
        "max_length": 64,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        **changes,
    }
    job = JobArguments(train_file=["train.jsonl"], report=False)
    return job, ModelConfig(model_name_or_path="student"), DistillLensConfig(**training)


def test_a_run_without_the_command_line(workshop, capsys):
    """It trains and saves; called again it finds the finished run. No handler is installed."""
    handlers = list(logging.getLogger("distilllens").handlers)
    assert run_job(*arguments()) == "the final model and its tokenizer are in out"
    assert (workshop / "out" / "model.safetensors").exists()
    assert json.loads((workshop / "out" / "run.json").read_text())["finished"] is True
    assert run_job(*arguments()) == "out holds the finished run of this recipe; nothing to do"
    assert logging.getLogger("distilllens").handlers == handlers
    assert "loading the tokenizer" not in capsys.readouterr().err


def test_the_fields_that_were_set_identify_a_run(workshop):
    """Those with another value than their default; a change of one is another recipe."""
    changed = changed_fields(*arguments(learning_rate=0.5, lens_norm=False))
    assert {"learning_rate": 0.5, "lens_norm": False, "max_steps": 2}.items() <= changed.items()
    assert changed["model_name_or_path"] == "student" and changed["train_file"] == ["train.jsonl"]
    assert not {"temperature", "bf16", "dtype", "seed", "optim"} & changed.keys()
    run_job(*arguments())
    with pytest.raises(ValueError, match=r"another recipe: learning_rate was not set and is now 0"):
        run_job(*arguments(learning_rate=0.5))
