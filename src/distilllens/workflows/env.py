"""``distilllens env``: what a report of an error needs to say of a machine and its libraries."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from distilllens.errors import named
from distilllens.masking import masked_variable

_LIBRARIES = ("distilllens", "torch", "transformers", "trl", "accelerate", "peft", "datasets")
_LIBRARIES += ("safetensors", "tokenizers", "triton", "deepspeed", "vllm", "liger-kernel")
_LIBRARIES += ("flash-attn", "bitsandbytes", "openai", "lm-eval")
_ALWAYS = 7  # of these, those that are shown also where they are missing
# Variables that change what a run does, by their beginnings.
_PREFIXES = ("ACCELERATE_", "CUDA_", "DISTILLLENS_", "DS_", "FSDP_", "GLOO_", "HF_", "NCCL_")
_PREFIXES += ("OMP_", "PYTORCH_", "ROCR_", "SLURM_NTASKS", "SLURM_NNODES", "TORCHELASTIC_")
_PREFIXES += ("TOKENIZERS_", "TORCH_", "TRANSFORMERS_", "TRITON_", "VLLM_", "WANDB_")
_NAMES = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "MKL_NUM_THREADS")
_NAMES += ("RANK", "WORLD_SIZE", "CI", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "LD_PRELOAD")
_NAMES += ("LD_LIBRARY_PATH", "PYTHONPATH", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "TMPDIR")
_OURS = "HF_DATASETS_DISABLE_PROGRESS_BARS"  # which every command of ours sets
_GIB = 2**30


def environment() -> dict[str, Any]:
    """Versions, processor, memory, GPUs, processes and variables, as JSON can hold them.

    Imports no library but torch.
    """
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "libraries": _versions(),
        "processor": _processor(),
        "memory_gib": _memory(),
        **_of_torch(),
        "processes": _processes(),
        "variables": _variables(os.environ),
    }


def in_words(found: dict[str, Any]) -> str:
    """That as lines to paste into a report."""
    rows = [
        ("python", f"{found['python']} ({found['executable']})"),
        ("platform", found["platform"]),
    ]
    rows += [(name, text or "not installed") for name, text in found["libraries"].items()]
    cpu, memory = found["processor"], found["memory_gib"]
    rows.append(("processor", f"{cpu['model']}, {cpu['cores']} of {cpu['all_cores']} cores usable"))
    rows.append(("memory", "unknown" if memory is None else f"{memory:g} GiB"))
    if "torch_error" in found:
        rows.append(("torch cannot load", found["torch_error"]))
    if "gpu_error" in found:
        rows.append(("GPUs cannot be used", found["gpu_error"]))
    gpus = found["gpus"] or ["none"]
    rows += [("GPU", gpu if isinstance(gpu, str) else _gpu(gpu)) for gpu in gpus]
    rows += [("CUDA", found["cuda"] or "not in this torch"), ("bf16", _yes(found["bf16"]))]
    rows.append(("backends", ", ".join(found["backends"]) or "none"))
    rows.append(("processes", found["processes"]))
    rows += [(name, value) for name, value in found["variables"].items()]
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:{width}}{value}" for name, value in rows)


def _gpu(gpu):
    return f"{gpu['index']}: {gpu['name']}, {gpu['memory_gib']:g} GiB"


def _yes(value):
    return "yes" if value else "no"


def _versions():
    """Library -> version; None for one that is needed and missing."""
    found = {}
    for at, name in enumerate(_LIBRARIES):
        try:
            package = distribution(name)
        except PackageNotFoundError:
            if at < _ALWAYS:
                found[name] = None
            continue
        found[name] = package.version
        if name == "distilllens" and (commit := _commit()):
            found[name] += f" (commit {commit})"
    return found


def _commit():
    """The commit of the working tree that this is imported from; None for an installed package."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=2, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor():
    model = platform.processor() or platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    if match := re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE):
        model = match[1]
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"model": model, "cores": usable, "all_cores": os.cpu_count()}


def _memory():
    """GiB of the machine; None where the system does not say."""
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / _GIB, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _of_torch():
    """GPUs, CUDA, bf16 and backends; an error in place of what a broken installation cannot say."""
    empty = {"gpus": [], "cuda": None, "bf16": False, "backends": []}
    try:
        import torch
        from torch import distributed
    except Exception as error:  # a report of just this error is what the command is for
        return empty | {"torch_error": named(error)}
    cuda, gpus, bf16, broken = torch.cuda, [], False, {}
    try:
        properties = [cuda.get_device_properties(n) for n in range(cuda.device_count())]
        gpus = [
            {"index": n, "name": each.name, "memory_gib": round(each.total_memory / _GIB, 1)}
            for n, each in enumerate(properties)
        ]
        bf16 = bool(gpus) and cuda.is_bf16_supported()
    except Exception as error:  # a driver that is too old, a GPU that another process keeps
        broken = {"gpu_error": named(error)}
    kinds = ("gloo", "nccl", "mpi", "ucc", "xccl")
    known = [kind for kind in kinds if getattr(distributed, f"is_{kind}_available", bool)()]
    return {
        "gpus": gpus,
        "cuda": torch.version.cuda or getattr(torch.version, "hip", None),
        "bf16": bf16,
        "backends": known if distributed.is_available() else [],
        **broken,
    }


def _processes():
    if "LOCAL_RANK" not in os.environ:
        return "1, not started by torchrun or accelerate"
    rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    return f"process {rank} of {size}, started by torchrun or accelerate"


def _variables(environment):
    """The variables that matter, those that are set; secrets are masked."""
    found = {}
    for name in sorted(environment.keys() - {_OURS}):
        if name.upper() in _NAMES or name.startswith(_PREFIXES):
            found[name] = masked_variable(name, environment[name])
    return found
