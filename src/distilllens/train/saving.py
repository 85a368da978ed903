"""What prevents a student from being saved: found before it is trained, or told on one line."""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, PreTrainedModel

from distilllens.errors import first_line, one_line
from distilllens.files import part_of, settle, write_json
from distilllens.train._trl import invalid_generation_fields
from distilllens.train.checkpoint import last_whole

logger = logging.getLogger(__name__)
# How safetensors and tokenizers name an error of the disk, and how torch.save does.
_RUST = re.compile(r"(.*: )?(.+) \(os error \d+\)")
_TORCH = re.compile(r"inline_container|PytorchStreamWriter|iostream error")


def make_saveable(student, tokenizer):
    """Reset the generation settings that transformers refuses to save, and try what else it saves.

    Raises:
        ValueError: a configuration or a tokenizer that cannot be saved.
    """
    parts = {} if tokenizer is None else {"tokenizer": tokenizer}
    if isinstance(student, PreTrainedModel):  # of an adapter, PEFT saves nothing of these
        if student.can_generate():
            _repair(student.generation_config)
            parts["generation_config"] = student.generation_config
        parts["configuration"] = student.config
    # An error of the disk of temporary files says nothing of the student.
    with suppress(OSError), tempfile.TemporaryDirectory() as folder:
        for name, part in parts.items():
            try:
                part.save_pretrained(folder)
            except OSError:
                raise
            except Exception as error:
                text = f"the {name} of the student cannot be saved: {one_line(error)}"
                raise ValueError(text) from error


def _repair(generation_config):
    """Published configurations have, for example, a temperature and ``do_sample: false``."""
    try:
        fields = invalid_generation_fields(generation_config)
    except ValueError as error:
        text = f"the generation_config of the student is not valid: {one_line(error)}"
        raise ValueError(text) from error
    if not fields:
        return
    default = GenerationConfig()
    given = [f"{name} ({getattr(generation_config, name)!r})" for name in fields]
    for name in fields:
        setattr(generation_config, name, getattr(default, name))
    logger.warning(
        "the student's generation_config.json has settings without effect, with which it could "
        "not be saved; reset: %s",
        ", ".join(given),
    )


@contextmanager
def saved_or_removed(folder: Path, what: str, *, writes: bool) -> Iterator[None]:
    """Where the disk fails in this block, remove what was written of a folder, and say it.

    Args:
        folder: a checkpoint or the like, in the run's folder.
        what: for the message.
        writes: whether this process is the one that may remove it.

    Raises:
        OSError: on one line: what was not saved, why, what remains, and how to go on.
    """
    try:
        yield
    except Exception as error:
        run = folder.parent
        if (why := _disk_error(error, run)) is None:
            raise
        if writes:
            shutil.rmtree(folder, ignore_errors=True)
        kept = last_whole(run, contents=False)
        remains = f"{kept} is the last checkpoint" if kept else "there is no checkpoint so far"
        after = "goes on from there" if kept else "begins again"
        raise OSError(
            f"{what} could not be saved in {run}: {why}; {remains}: make room or mend the disk, "
            f"and the same command {after}"
        ) from error


def recast(folder: Path, dtype: str):
    """Give the weights of a saved model another dtype, a file at a time.

    Weights that do not fit into it stay as they are, all of them, and a warning says so.

    Args:
        dtype: "float32", "bfloat16" or "float16".
    """
    files = sorted(folder.glob("*model*.safetensors"))
    largest = torch.finfo(getattr(torch, dtype)).max
    for file in files:
        if any(t.is_floating_point() and t.abs().max() > largest for t in _tensors(file)):
            logger.warning(
                "weights in %s do not fit into %s, and stay in the dtype of training", file, dtype
            )
            return
    num_bytes = sum(_recast_file(file, getattr(torch, dtype)) for file in files)
    for name in ("config.json", "model.safetensors.index.json"):
        if not (folder / name).exists():
            continue
        entries = json.loads((folder / name).read_text(encoding="utf-8"))
        if name == "config.json":
            for part in (entries, *(v for v in entries.values() if isinstance(v, dict))):
                part |= {"dtype": dtype} if "dtype" in part else {}
        else:
            entries["metadata"]["total_size"] = num_bytes
        write_json(folder / name, entries)


def _tensors(file):
    """The tensors in a file, one at a time."""
    with safe_open(file, "pt") as stream:
        yield from (stream.get_tensor(name) for name in stream.keys())  # noqa: SIM118


def _recast_file(file, dtype):
    """Write the floating tensors of a file in a dtype; returns the bytes of all tensors."""
    tensors = load_file(file)
    made = {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}
    # load_file may map the file, which therefore is not written into.
    save_file(made, part_of(file), metadata={"format": "pt"})
    settle(part_of(file), file)
    return sum(tensor.nbytes for tensor in made.values())


def _disk_error(error, folder):
    """What an error of any library says of the disk; None if it has another cause."""
    if isinstance(error, OSError):  # errors of the hub are such, too, without a number
        network = isinstance(error, ConnectionError | TimeoutError)
        return None if error.errno is None or network else error.strerror or one_line(error)
    text = first_line(error)
    if found := _RUST.fullmatch(text):
        return found[2]
    if not (isinstance(error, RuntimeError) and _TORCH.search(text)):
        return None
    full = shutil.disk_usage(folder).free < 2**20
    return "No space left on device" if full else f"torch could not write a file ({text})"
