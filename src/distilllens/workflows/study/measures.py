"""What a study measures of a run beside its scores: its cost, and its distance by depth."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from distilllens.cost import training_flops
from distilllens.data import load_records, to_training_examples
from distilllens.data.encode import encode_example
from distilllens.layer_map import LayerMap
from distilllens.lens.comparison import MEASURES
from distilllens.lens.reading import inspect_models
from distilllens.lens.surgery import cut_of
from distilllens.loading import load_config, load_model, load_tokenizer
from distilllens.train import run_folder
from distilllens.workflows.estimate_run import shape_of
from distilllens.workflows.estimate_step import Side, build
from distilllens.workflows.inspect import target_passage
from distilllens.workflows.study.materials import files_of
from distilllens.workflows.study.matrix import OTHER_TEACHERS

logger = logging.getLogger(__name__)

_NUM_READ, _LONGEST = 32, 256  # texts of the development set, and tokens of each
_NUM_COUNTED = 512  # rows of the training data whose targets are counted
# Fields of runs whose flops are not known.
UNCOUNTED = ("on_policy_fraction", "datasets", *OTHER_TEACHERS)
_DEFAULTS = {"output_weight": 1.0, "lens_weight": 1.0, "lens_weight_until": 1.0}


class Begun(NamedTuple):
    """Where the last start of a run began, and what the process has used until its end.

    Args:
        step: of the checkpoint it resumed from; 0 for the start.
        processor_seconds: of the process, loading included; None if they are not known.
        peak_memory: the most bytes that it has held until then; None if they are not known.
    """

    step: int
    processor_seconds: float | None = None
    peak_memory: int | None = None


@torch.no_grad()
def by_depth(fields: Mapping[str, Any], folder: Path, teacher: str) -> dict | None:
    """The JSD of a run's student from a teacher, in nats per token, at every depth.

    Each depth is read through the model's own norm and head, whatever the run's loss reads: a mean
    over the target tokens of the first texts of the development set that have some within
    ``_LONGEST`` tokens. None where no text has.

    Args:
        fields: the recipe of the run.
        folder: its output_dir.
        teacher: with the student's tokenizer.
    """
    trusted = bool(fields.get("trust_remote_code"))
    device = device_of(fields) or torch.accelerator.current_accelerator(check_available=True)
    tokenizer = load_tokenizer("student", str(folder), trust_remote_code=trusted)
    models = [
        load_model(role, str(name), dtype="auto", trust_remote_code=trusted).eval().to(device)
        for role, name in (("student", folder), ("teacher", teacher))
    ]
    chat = bool(fields.get("chat"))
    length = min(_LONGEST, fields.get("max_length") or _LONGEST)
    records = load_records(files_of(fields["eval_file"]), chat=chat)
    passages = []
    for example in to_training_examples(records, chat=chat):
        passage = target_passage(*encode_example(example, tokenizer, length), length)
        passages += [] if passage is None else [passage]
        if len(passages) == _NUM_READ:
            break
    if not passages:
        logger.warning(
            "no distance by depth: no text of the development set has targets in its first %d "
            "tokens",
            length,
        )
        return None
    comparison = inspect_models(models[1], passages, [models[0]]).comparisons[0]
    jsd = comparison.divergences[..., MEASURES.index("jsd")]
    return {
        "tokens": jsd.shape[1],
        "pairs": [list(pair) for pair in comparison.pairs],
        "jsd": jsd.double().mean(1).tolist(),
    }


def device_of(fields: Mapping[str, Any]) -> str | None:
    """ "cpu" if a recipe's runs are on the CPU; None for the accelerator."""
    return "cpu" if fields.get("use_cpu") or not torch.accelerator.is_available() else None


def cost_of_run(fields: Mapping[str, Any], folder: Path, begun: Begun) -> dict:
    """Steps, seconds, flops and memory of a finished run.

    The seconds of a run that was interrupted are those of its last start, times its steps over the
    steps of that start. Those of the processor hold loading, too, which would then count several
    times: None where that start did less than half of the steps. The flops are those of the cost
    model: matrix products and attention.
    """
    _, state = run_folder.read_state(folder)
    steps = state["global_step"]
    last = {name: value for row in state["log_history"] for name, value in row.items()}
    fresh = steps - begun.step
    used, took = begun.processor_seconds, last.get("train_runtime")
    return {
        "steps": steps,
        "seconds": None if took is None or not fresh else round(took * steps / fresh, 3),
        "processor_seconds": None
        if used is None or 2 * fresh < steps
        else round(used * steps / fresh, 3),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "flops": _flops(fields, folder, last, steps),
        "peak_memory": begun.peak_memory,
    }


def _flops(fields, folder, last, steps):
    """Flops of all steps; None where they cannot be told.

    That is where the log does not tell how many tokens were read, and where the model of costs does
    not count what was done (``UNCOUNTED``).
    """
    if not (tokens := last.get("num_tokens")) or any(map(fields.get, UNCOUNTED)):
        return None
    trusted = bool(fields.get("trust_remote_code"))
    config = load_config("student", str(folder), trust_remote_code=trusted)
    student, teacher = shape_of(build(Side(config))), None
    value = {**_DEFAULTS, **fields}
    compared = float(value["output_weight"] > 0)
    if (name := fields.get("teacher_model_name_or_path")) is not None:
        their_config = load_config("teacher", name, trust_remote_code=trusted)
        teacher = shape_of(build(Side(their_config)))
        if value["lens_weight"] > 0:
            both = config.get_text_config(), their_config.get_text_config()
            depths = tuple(each.num_hidden_layers for each in both)
            pairs = LayerMap.resolve(fields.get("lens_layers", "auto"), *depths, cut_of(config))
            share = fields.get("lens_token_fraction", 1.0) * fields.get("lens_pair_fraction", 1.0)
            falls = fields.get("lens_weight_schedule", "constant") != "constant"
            compared += len(pairs.pairs) * share * (value["lens_weight_until"] if falls else 1.0)
    return training_flops(
        student,
        teacher,
        tokens=tokens,
        targets=round(tokens * _share_of_targets(fields, folder)),
        steps=steps,
        comparisons=compared,
        live=not fields.get("teacher_cache"),
    )


def _share_of_targets(fields, folder):
    """Targets a token, from the first rows of the training data."""
    trusted = bool(fields.get("trust_remote_code"))
    tokenizer = load_tokenizer("student", str(folder), trust_remote_code=trusted)
    chat, length = bool(fields.get("chat")), fields.get("max_length", 1024)
    records = load_records(files_of(fields["train_file"]), chat=chat)[:_NUM_COUNTED]
    tokens = targets = 0
    for example in to_training_examples(records, chat=chat):
        ids, first = encode_example(example, tokenizer, length)
        tokens += len(ids)
        targets += max(0, len(ids) - max(first, 1))
    return targets / max(1, tokens)
