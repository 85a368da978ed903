"""``distilllens env``: what a report of an error needs, fast, and without secrets."""

import json
import os
import re
import resource
import subprocess
import sys

import torch

from distilllens.cli import main

SECRETS = {
    "HF_TOKEN": "abc-one",
    "WANDB_API_KEY": "abc-two",
    "HF_ENDPOINT": "https://me:abc-three@host/x",
    "https_proxy": "http://abc-four@proxy:80",
    "HF_HOME": "/home/hf_abcfive99",
}


def test_the_text_names_versions_and_variables_but_no_secret(capsys, monkeypatch):
    """Variables by name, addresses without their login, and what is not a secret as it is."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("UNRELATED", "of nobody's interest")
    assert main(["env"]) == 0
    text = capsys.readouterr().out
    lines = dict(line.split(maxsplit=1) for line in text.splitlines())
    assert lines["torch"] == torch.__version__
    assert lines["HF_TOKEN"] == lines["WANDB_API_KEY"] == "***"
    assert lines["HF_ENDPOINT"] == "https://***@host/x"
    assert lines["TOKENIZERS_PARALLELISM"] == "false"
    assert SECRETS.keys() <= lines.keys() and "UNRELATED" not in lines
    assert not any(word in text for word in ("abc-", "abcfive"))


def test_json_has_the_same(capsys, monkeypatch):
    """For programs; under torchrun it says which process it is."""
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["libraries"]["torch"] == torch.__version__
    assert found["processes"] == "process 1 of 4, started by torchrun or accelerate"
    assert found["processor"]["cores"] >= 1 and found["memory_gib"] > 0
    assert len(found["gpus"]) == torch.cuda.device_count()
    assert found["backends"] == [
        kind
        for kind, there in (
            ("gloo", torch.distributed.is_gloo_available()),
            ("nccl", torch.distributed.is_nccl_available()),
            ("mpi", torch.distributed.is_mpi_available()),
        )
        if there
    ]
    assert found["variables"]["WORLD_SIZE"] == "4"


def test_it_is_fast_and_loads_no_other_library():
    """Below three seconds of processor time."""
    code = "import sys; from distilllens.cli import main; main(['env']); "
    code += "print(sorted({'trl', 'transformers', 'accelerate', 'datasets'} & sys.modules.keys()))"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.splitlines()[-1] == "[]"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3


def test_a_torch_that_cannot_be_imported_is_reported(tmp_path):
    """The report of just this error is what the command is for."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libcudart.so.12: not found')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "distilllens", "env"]
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert re.search("torch cannot load +libcudart.so.12: not found", done.stdout)


def test_a_gpu_that_does_not_start_is_reported(capsys, monkeypatch):
    """A driver that is too old, or another process that keeps it: the rest is told all the same."""

    def broken(number):
        raise RuntimeError("CUDA unknown error")

    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_properties", broken)
    assert main(["env"]) == 0
    assert "CUDA unknown error" in capsys.readouterr().out
