"""Profiles of several processes: what they mean, and what is refused before anything starts."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import trl
import yaml
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousConnectionError

from distilllens.workflows import launch
from distilllens.workflows.launch import Profile, check_profile, number_to_start, read_profile

OF_TRL = Path(trl.__file__).parent / "accelerate_configs"


def write(folder, **entries):
    """A file of accelerate with these entries."""
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump(entries))
    return str(file)


def test_the_profiles_of_the_package():
    """One for each way that is documented, and what it sets in a recipe."""
    assert launch.profile_names() == ["ddp", "fsdp2", "zero3"]
    assert read_profile("ddp") == Profile("ddp", "ddp")
    fsdp = read_profile("fsdp2").fields
    assert fsdp["fsdp"] is True and fsdp["fsdp_config"]["version"] == 2
    zero = read_profile("zero3").fields["deepspeed"]
    assert zero["zero_optimization"]["stage"] == 3
    assert zero["train_micro_batch_size_per_gpu"] == "auto"


@pytest.mark.parametrize("name", ["fsdp2.yaml", "multi_gpu.yaml", "zero2.yaml", "zero3.yaml"])
def test_the_files_of_trl_are_read(name):
    """With their eight processes and their bf16."""
    profile = read_profile(str(OF_TRL / name))
    assert (profile.num_processes, profile.precision) == (8, "bf16")


def test_fsdp_is_what_accelerate_makes_of_the_file(tmp_path, monkeypatch):
    """The plugin of transformers from our fields is the one of ``accelerate launch``."""
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_multi_gpu_env
    from trl import SFTConfig

    entries = {"fsdp_version": 2, "fsdp_reshard_after_forward": False}
    entries |= {"fsdp_offload_params": True, "fsdp_state_dict_type": "SHARDED_STATE_DICT"}
    entries |= {"fsdp_cpu_ram_efficient_loading": False}
    entries |= {"fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}
    entries |= {"fsdp_transformer_layer_cls_to_wrap": "LlamaDecoderLayer"}
    file = write(tmp_path, distributed_type="FSDP", fsdp_config=entries)
    ours = read_profile(file).fields
    args = SFTConfig(
        str(tmp_path), use_cpu=True, bf16=False, activation_checkpointing=False, **ours
    )
    mine = FullyShardedDataParallelPlugin(**args.fsdp_plugin_args)
    flags = ["--use_fsdp", "--num_processes=2", "--num_machines=1", "--mixed_precision=no"]
    flags += ["--dynamo_backend=no", "--main_process_port=0", "--num_cpu_threads_per_process=1"]
    flags += [f"--{name}={value}" for name, value in entries.items()]
    theirs = prepare_multi_gpu_env(launch_command_parser().parse_args([*flags, "train.py"]))
    for name, value in theirs.items():
        if name.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.setenv(name, value)
    expected = FullyShardedDataParallelPlugin()
    for name in (
        *("fsdp_version", "reshard_after_forward", "state_dict_type", "cpu_offload"),
        "cpu_ram_efficient_loading",
    ):
        assert repr(getattr(mine, name)) == repr(getattr(expected, name)), name
    assert mine.transformer_cls_names_to_wrap == expected.transformer_cls_names_to_wrap


REFUSED = [
    ({"distributed_type": "XLA"}, "mine.yaml:1: distributed_type must be one of NO, MULTI_GPU"),
    ({"num_processes": 2}, "mine.yaml: distributed_type must be one of"),
    ({"distributed_type": "FSDP"}, "fsdp_version must be 2, got 1: FSDP1 has not been tried"),
    ({"distributed_type": "NO", "num_machines": 2}, "start torchrun on each"),
    ({"distributed_type": "NO", "num_processes": 0}, "at least 1, got 0"),
    ({"distributed_type": "NO", "gpu_ids": "0,1"}, "gpu_ids '0,1' is not supported here"),
    ({"distributed_type": "NO", "mixed_precision": "fp8"}, "mixed_precision 'fp8' is not supp"),
    (
        {"distributed_type": "NO", "parallelism_config": {"parallelism_config_tp_size": 2}},
        "parallelism_config .* is not supported here; leave it out, or use accelerate launch",
    ),
    (
        {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 3, "moe": 1}},
        "moe is not supported here; write a JSON file",
    ),
    (
        {
            "distributed_type": "DEEPSPEED",
            "deepspeed_config": {"offload_param_device": "nvme"},
        },
        "offload_param_device must be none or cpu",
    ),
    (
        {"distributed_type": "MULTI_CPU", "fsdp_config": {"fsdp_version": 2}},
        "fsdp_config does not go with distributed_type MULTI_CPU, which shards nothing",
    ),
]


@pytest.mark.parametrize(("entries", "text"), REFUSED, ids=[text for _, text in REFUSED])
def test_what_a_file_asks_and_is_not_done_is_refused(tmp_path, entries, text):
    """With the file and the line."""
    with pytest.raises(ValueError, match=text):
        read_profile(write(tmp_path, **entries))


def test_an_unknown_profile_is_asked_after():
    with pytest.raises(ValueError, match="neither a file nor one of ddp, fsdp2, zero3; did you"):
        read_profile("fsdp")


@pytest.mark.parametrize(
    ("profile", "values", "text"),
    [
        (Profile("fsdp2", "fsdp"), {"fsdp": True}, "accelerate_config and fsdp both"),
        (Profile("ddp", "ddp"), {"deepspeed": {"a": 1}}, "accelerate_config and deepspeed both"),
        (Profile("zero3", "zero"), {}, "which is not installed: pip install deepspeed"),
        (Profile("f", "ddp", precision="bf16"), {"bf16": False}, "set bf16: true, or mixed"),
        (Profile("f", "ddp", precision="bf16"), {"fp16": True}, "set bf16: true, or mixed"),
        (Profile("f", "ddp", precision="fp16"), {"fp16": False}, "set fp16: true, or mixed"),
        (Profile("f", "ddp", use_cpu=True), {"use_cpu": False}, "f asks for the CPU, and use_cpu"),
    ],
)
def test_a_profile_that_does_not_go_with_the_recipe(monkeypatch, profile, values, text):
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=text):
        check_profile(profile, values)


GPU_TABLE = [
    # kind, asked, of the profile, use_cpu, GPUs -> number and place, or the error
    ("ddp", 2, None, False, 0, (2, "CPU")),
    ("ddp", 2, 8, True, 4, (2, "CPU")),
    ("ddp", None, 8, True, 4, (8, "CPU")),
    ("ddp", None, None, False, 4, (4, "GPU")),
    ("fsdp", None, None, False, 4, (4, "GPU")),
    ("fsdp", 1, 8, False, 4, (1, "GPU")),
    ("ddp", None, None, False, 0, "say how many processes to start: --num_processes N"),
    ("fsdp", 2, None, False, 0, "needs GPUs, and this machine has none"),
    ("zero", 2, None, True, 4, "needs GPUs, and use_cpu is set"),
    ("ddp", 2, None, False, 1, "num_processes 2: each process needs a GPU, and 1 is visible"),
    ("fsdp", None, 8, False, 4, "num_processes 8: each process needs a GPU, and 4 are visible"),
]


@pytest.mark.parametrize(("kind", "asked", "own", "use_cpu", "gpus", "expected"), GPU_TABLE)
def test_what_a_machine_starts(monkeypatch, kind, asked, own, use_cpu, gpus, expected):
    """Never one process for two, nor DDP for FSDP, in silence."""
    monkeypatch.setattr(launch, "_num_gpus", lambda: gpus)
    profile = Profile(kind, kind, num_processes=own)
    if isinstance(expected, tuple):
        assert number_to_start(profile, asked, use_cpu=use_cpu) == expected
        return
    with pytest.raises(ValueError, match=expected):
        number_to_start(profile, asked, use_cpu=use_cpu)


def test_what_is_started_in_words():
    assert launch.in_words(Profile("ddp", "ddp"), 2, "CPU") == "2 processes on the CPU: ddp"
    assert launch.in_words(Profile("fsdp2", "fsdp"), 1, "GPU") == "1 process on 1 GPU: fsdp2"


def test_fields_become_flags():
    """A path stays a path; a mapping is JSON, which the command line reads."""
    flags = launch.field_flags(read_profile("fsdp2"))
    assert flags[:3] == ["--fsdp", "true", "--fsdp_config"]
    assert json.loads(flags[3])["cpu_ram_efficient_loading"] is False
    assert launch.field_flags(Profile("f", "zero", {"deepspeed": "z.json"}))[1] == "z.json"


def started(monkeypatch, error):
    """Two processes, of which torchrun raises an error."""

    def run(args):
        try:
            raise ConnectionError("no route to host")
        except ConnectionError as cause:
            raise error from cause if isinstance(error, RendezvousConnectionError) else None

    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr("torch.distributed.run.run", run)
    return launch.start(["train"], 2, on_cpu=True)


# Rank -> exit status and second, in the order in which torchrun finds them; the status of the
# command, and the process that is named.
ENDS = [
    ({0: (2, 5), 1: (2, 5)}, 2, None),
    ({1: (1, 5), 0: (-9, 600)}, 1, None),
    ({1: (-9, 5), 0: (2, 6)}, 137, "process 1 of 2 was ended by SIGKILL"),
    ({0: (-11, 5), 1: (-9, 6)}, 139, "process 0 of 2 was ended by SIGSEGV"),
    ({1: (-11, 5), 0: (-9, 5)}, 139, "process 1 of 2 was ended by SIGSEGV"),
    ({1: (2, 5), 0: (143, 6)}, 2, None),
]


@pytest.mark.parametrize(("failures", "status", "named"), ENDS)
def test_the_process_that_failed_first_is_named_with_its_status(
    monkeypatch, capsys, failures, status, named
):
    """Others end because of it, by torchrun's signals too."""
    found = {
        rank: SimpleNamespace(exitcode=code, timestamp=second)
        for rank, (code, second) in failures.items()
    }
    monkeypatch.setattr(ChildFailedError, "format_msg", lambda self: "")
    assert started(monkeypatch, ChildFailedError("train", found)) == status
    assert capsys.readouterr().err == (f"distilllens: error: {named}\n" if named else "")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RendezvousConnectionError("See inner exception."), "no route to host"),
        (torch.distributed.DistNetworkError("failed\nto listen"), "failed to listen"),
    ],
)
def test_processes_that_cannot_meet_are_one_line(monkeypatch, error, text):
    with pytest.raises(ValueError, match=f"^the processes cannot be started, .* meet: {text}$"):
        started(monkeypatch, error)
