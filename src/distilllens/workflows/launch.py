"""A command on several processes: profiles, what a machine cannot start, and the start."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from distilllens.errors import did_you_mean, one_line
from distilllens.train.teacher_checks import check_teacher_sharding
from distilllens.workflows.recipe_file import Recipe, read_recipe

_PROFILES = Path(__file__).with_name("profiles")
# Set for the processes that we start: what a recipe says of processes is done already.
LAUNCHED = "DISTILLLENS_LAUNCHED"
_INSTALL_DEEPSPEED = "pip install deepspeed"
_KINDS = {"NO": "ddp", "MULTI_GPU": "ddp", "MULTI_CPU": "ddp", "FSDP": "fsdp", "DEEPSPEED": "zero"}
# Of a file of accelerate: what is read, and entries that change nothing with these values.
_READ = ("distributed_type", "fsdp_config", "deepspeed_config", "num_processes", "use_cpu")
_READ += ("mixed_precision",)
_IDLE = {
    "compute_environment": ("LOCAL_MACHINE",),
    "gpu_ids": ("all",),
    "num_machines": (1,),
    "machine_rank": (0,),
    "mixed_precision": ("no", "bf16", "fp16"),
    "downcast_bf16": ("no",),
}
_IGNORED = ("main_training_function", "rdzv_backend", "same_network", "main_process_port")
_IGNORED += ("main_process_ip", "tpu_env")
_ZERO = {
    "zero_stage": "stage",
    "zero3_save_16bit_model": "stage3_gather_16bit_weights_on_model_save",
}
_OFFLOADED = {
    "offload_optimizer_device": "offload_optimizer",
    "offload_param_device": "offload_param",
}
_AUTO = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
)
# A save may take minutes; torchrun would kill its processes half a minute after a signal.
_SECONDS_TO_STOP = 600


@dataclass(frozen=True)
class Profile:
    """How processes share the work.

    Args:
        name: as the user wrote it.
        kind: "ddp", "fsdp" or "zero".
        fields: the fields of a recipe that say so to transformers.
        num_processes: as its file says; None for all GPUs.
        use_cpu: whether its file asks for the CPU.
        precision: "bf16" or "fp16", if its file asks for it.
    """

    name: str
    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    num_processes: int | None = None
    use_cpu: bool = False
    precision: str | None = None


def profile_names() -> list[str]:
    """The names of the profiles that come with the package."""
    return sorted(path.stem for path in _PROFILES.glob("*.yaml"))


def read_profile(name: str) -> Profile:
    """A profile of the package, or one in a file that ``accelerate config`` has written.

    Raises:
        ValueError: neither; a file that cannot be read, or that asks for what is not done here.
    """
    file = Path(name)
    if not file.is_file():
        names = profile_names()
        if name not in names:
            raise ValueError(
                f"accelerate_config {name!r} is neither a file nor one of {', '.join(names)}"
                f"{did_you_mean(name, names)}"
            )
        file = _PROFILES / f"{name}.yaml"
    recipe = read_recipe(str(file), "accelerate_config")
    values = recipe.values
    given = values.get("distributed_type")
    kind = _KINDS.get(given) if isinstance(given, str) else None
    if kind is None:
        hint = '; YAML reads a bare NO as false: write "NO" in quotes' if given is False else ""
        raise ValueError(
            f"{recipe.where('distributed_type')}: distributed_type must be one of "
            f"{', '.join(_KINDS)}, got {given!r}{hint}"
        )
    for key, value in values.items():
        _check_entry(recipe, key, value)
    if kind == "ddp" and values.get("fsdp_config"):
        raise ValueError(
            f"{recipe.where('fsdp_config')}: fsdp_config does not go with distributed_type "
            f"{values['distributed_type']}, which shards nothing; set FSDP, or leave it out"
        )
    fields = {"fsdp": _fsdp, "zero": _deepspeed}.get(kind, lambda recipe: {})(recipe)
    precision = values.get("mixed_precision")
    return Profile(
        name,
        kind,
        fields,
        values.get("num_processes"),
        values.get("distributed_type") == "MULTI_CPU" or values.get("use_cpu") is True,
        precision if precision in ("bf16", "fp16") else None,
    )


def _check_entry(recipe, key, value):
    """Refuse what accelerate would do at this entry and we would not."""
    if key == "num_processes":
        check_number(value, f"{recipe.where(key)}: num_processes")
    elif key == "num_machines" and value not in (None, 1):
        raise ValueError(
            f"{recipe.where(key)}: num_machines {value}: on several machines, start torchrun on "
            "each (docs/distributed.md)"
        )
    elif key in _IGNORED or (key in _READ and key not in _IDLE):
        return
    elif value not in (None, False, {}, [], "no", *_IDLE.get(key, ())):
        raise ValueError(
            f"{recipe.where(key)}: {key} {value!r} is not supported here; leave it out, or use "
            f"accelerate launch --config_file {recipe.path} -m distilllens train ..."
        )


def _fsdp(recipe: Recipe) -> dict[str, Any]:
    """The fields ``fsdp`` and ``fsdp_config``."""
    config = recipe.values.get("fsdp_config") or {}
    found = {key.removeprefix("fsdp_"): value for key, value in config.items()}
    if found.get("version", 1) != 2:
        raise ValueError(
            f"{recipe.where('fsdp_config')}: fsdp_version must be 2, got "
            f"{found.get('version', 1)}: FSDP1 has not been tried with this trainer"
        )
    # transformers calls it so.
    if "offload_params" in found:
        found["cpu_offload"] = found.pop("offload_params")
    return {"fsdp": True, "fsdp_config": found}


def _deepspeed(recipe: Recipe) -> dict[str, Any]:
    """The field ``deepspeed``: the configuration that accelerate makes of these entries."""
    config = dict(recipe.values.get("deepspeed_config") or {})
    if (file := config.pop("deepspeed_config_file", None)) is not None:
        return {"deepspeed": file}
    zero = {name: config.pop(key) for key, name in _ZERO.items() if key in config}
    for key, name in _OFFLOADED.items():
        if (device := config.pop(key, "none")) not in ("none", "cpu"):
            raise ValueError(f"{recipe.where('deepspeed_config')}: {key} must be none or cpu")
        zero[name] = {"device": device}
    # transformers fills these in from the recipe, and zero.Init follows from the stage.
    for key in ("gradient_accumulation_steps", "gradient_clipping", "zero3_init_flag"):
        config.pop(key, None)
    config.pop("deepspeed_multinode_launcher", None)
    if config:
        raise ValueError(
            f"{recipe.where('deepspeed_config')}: {', '.join(config)} is not supported here; "
            "write a JSON file for DeepSpeed and name it by deepspeed_config_file"
        )
    zero.setdefault("stage", 2)
    precisions = {name: {"enabled": "auto"} for name in ("bf16", "fp16")}
    return {"deepspeed": {"zero_optimization": zero, **dict.fromkeys(_AUTO, "auto"), **precisions}}


def check_number(value: Any, what: str = "num_processes"):
    """Refuse what is no number of processes.

    Raises:
        ValueError: not a whole number of at least 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{what} must be a whole number of at least 1, got {value!r}")


def check_profile(profile: Profile, values: Mapping[str, Any]):
    """Refuse a profile that contradicts the recipe, or whose library is missing.

    Args:
        values: field -> value of those that recipe and flags set.

    Raises:
        ValueError: with both, or with how to install the library.
    """
    for name in ("fsdp", "fsdp_config", "deepspeed"):
        if values.get(name):
            raise ValueError(
                f"accelerate_config and {name} both say how weights are sharded; give one of them"
            )
    check_teacher_sharding({**values, **profile.fields})
    if profile.kind == "zero" and find_spec("deepspeed") is None:
        raise ValueError(
            f"accelerate_config {profile.name} needs deepspeed, which is not installed: "
            f"{_INSTALL_DEEPSPEED}"
        )
    if profile.use_cpu and values.get("use_cpu") is False:
        raise ValueError(f"{profile.name} asks for the CPU, and use_cpu is false; change one")
    if (asked := profile.precision) is None:
        return
    if values.get(asked) is False or values.get({"bf16": "fp16", "fp16": "bf16"}[asked]):
        raise ValueError(
            f"accelerate_config {profile.name} asks for mixed_precision {asked}, the recipe does "
            f"not; set {asked}: true, or mixed_precision: 'no'"
        )


def number_to_start(profile: Profile, asked: int | None, *, use_cpu: bool) -> tuple[int, str]:
    """How many processes a profile means on this machine, and on what: "CPU" or "GPU".

    Args:
        asked: by the user; None for what the profile says, or for all GPUs.
        use_cpu: whether the recipe asks for the CPU.

    Raises:
        ValueError: a profile or a number that this machine cannot start.
    """
    num_gpus = 0 if use_cpu or profile.use_cpu else _num_gpus()
    number = asked or profile.num_processes or num_gpus
    if num_gpus == 0:
        if profile.kind != "ddp":
            raise ValueError(
                f"accelerate_config {profile.name} needs GPUs, and "
                + ("use_cpu is set" if use_cpu or profile.use_cpu else "this machine has none")
                + "; on a CPU, accelerate_config ddp trains on several processes"
            )
        if not number:
            raise ValueError("on a CPU, say how many processes to start: --num_processes N")
        return number, "CPU"
    if number > num_gpus:
        raise ValueError(
            f"num_processes {number}: each process needs a GPU, and {num_gpus} "
            f"{'is' if num_gpus == 1 else 'are'} visible; start at most {num_gpus}"
        )
    return number, "GPU"


def in_words(profile: Profile, number: int, where: str) -> str:
    """``2 processes on the CPU: ddp``."""
    processes = "1 process" if number == 1 else f"{number} processes"
    place = "the CPU" if where == "CPU" else "1 GPU" if number == 1 else f"{number} GPUs"
    return f"{processes} on {place}: {profile.name}"


def _num_gpus():
    import torch

    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def field_flags(profile: Profile) -> list[str]:
    """The profile's fields as flags of a command."""
    return [
        word
        for name, value in profile.fields.items()
        for word in (f"--{name}", value if isinstance(value, str) else json.dumps(value))
    ]


def start(words: list[str], number: int, *, on_cpu: bool) -> int:
    """Run ``distilllens`` with these words on so many processes; their exit status.

    It is that of the process that failed first. Signals reach the processes, which save and stop as
    one would.

    Raises:
        ValueError: the processes cannot find each other.
    """
    from torch.distributed import DistError, run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // number) if on_cpu else 1))
    os.environ[LAUNCHED] = "1"
    parser = run.get_args_parser()
    settings = {
        "--standalone": None,
        "--nproc-per-node": str(number),
        # Newer than the oldest torch that we run on.
        "--shutdown-timeout": str(_SECONDS_TO_STOP),
        "--signals-to-handle": ",".join(_signals()),
    }
    known = {option for action in parser._actions for option in action.option_strings}
    flags = [f"{n}={v}" if v else n for n, v in settings.items() if n in known]
    logging.disable(logging.ERROR)  # a page on each process that ends otherwise than by 0
    try:
        run.run(parser.parse_args([*flags, "-m", "distilllens", *words]))
    except SignalException as stop:
        return 128 + int(stop.sigval)
    except ChildFailedError as error:
        return _status(error.failures, number)
    except (RendezvousError, DistError) as error:
        why = one_line(error.__cause__ or error)
        raise ValueError(f"the processes cannot be started, for they do not meet: {why}") from error
    finally:
        logging.disable(logging.NOTSET)
    return 0


def _signals():
    names = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1")
    return [name for name in names if hasattr(signal, name)]


def _status(failures, number):
    """The exit status of the process that failed first; says so where it could not itself."""
    # Seconds; of equal ones the first is the one that torchrun found first.
    rank = min(failures, key=lambda rank: failures[rank].timestamp)
    code = failures[rank].exitcode
    if code < 0:
        name = signal.Signals(-code).name
        print(
            f"distilllens: error: process {rank} of {number} was ended by {name}", file=sys.stderr
        )
        return 128 - code
    return code
