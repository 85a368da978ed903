"""``distilllens report``: a training run and its models on a few texts, on one HTML page."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import yaml

from distilllens.masking import masked
from distilllens.objective import TERMS
from distilllens.report import Run, render_page, require_plotting, run_sections
from distilllens.report.training import pairs_of
from distilllens.stored import check_stored
from distilllens.train.config import DistillLensConfig
from distilllens.train.progress import duration
from distilllens.train.run_folder import RUN_FILE, read_run, read_state
from distilllens.workflows.outputs import PAGE, check_count, check_page, write_page
from distilllens.workflows.run_models import observe_run
from distilllens.workflows.run_summary import (
    blocks_in_words,
    loss_in_words,
    on_policy_in_words,
)

logger = logging.getLogger(__name__)


class _Recipe(TypedDict):
    fields: dict[str, Any]
    models: NotRequired[dict[str, dict[str, str]]]


class _Note(TypedDict):
    recipe: _Recipe
    finished: NotRequired[bool]
    given: NotRequired[dict[str, Any]]
    command: NotRequired[str]
    working_directory: NotRequired[str]
    versions: NotRequired[dict[str, str]]
    layer_map: NotRequired[str]


_TEXTS = ("model_name_or_path", "model_revision", "dtype", "dataset_name", "dataset_config")
_TEXTS += ("dataset_train_split", "dataset_test_split", "teacher_model_name_or_path")
_TEXTS += ("teacher_cache", "teacher_server", "teacher_server_model")
# The fields of a recipe that a report reads.
_Fields = TypedDict(
    "_Fields",
    {
        **dict.fromkeys(_TEXTS, str | None),
        **dict.fromkeys(("train_file", "eval_file"), list[str] | str | None),
        **dict.fromkeys(("student_config", "teacher_model_init_kwargs"), dict[str, Any] | None),
        **dict.fromkeys((term.weight_field for term in TERMS), float),
        **{term.divergence_field: str for term in TERMS if term.divergence_field},
        "student_blocks": list[int] | int | None,
        "datasets": list[dict[str, Any]] | None,
        "teachers": list[dict[str, Any]] | None,
        "seed": float,
        **dict.fromkeys(("chat", "use_cpu", "dataset_streaming", "streaming"), bool),
    },
    total=False,
)


def write_report(
    folder: str | Path,
    output: str | Path | None = None,
    *,
    limit: int = 4,
    trust_remote_code: bool = False,
) -> str:
    """Read a run and its models, write the page; returns a line on what was written.

    Args:
        folder: the ``output_dir`` of the run.
        output: the page; ``report.html`` in the run's folder by default.
        limit: number of texts to read, and of questions to answer.
        trust_remote_code: whether code that comes with a model may run.

    Raises:
        ValueError: no training run, a run.json with an entry that is none of ours (the message
            names it), a log that cannot be read, or an ``output`` that is a file of others.
        OSError: a page that cannot be written.
        ImportError: matplotlib is missing.
    """
    check_count("--limit", limit)
    require_plotting()
    folder = Path(folder)
    flag = "the report" if output is None else "--output"
    output = Path(output or folder / PAGE)
    note = _checked(read_run(folder), folder / RUN_FILE)
    where, state = read_state(folder)
    check_page(output, flag)
    logger.info(
        "writing the report: the models of %s read %d texts at every depth and answer %d questions",
        *(folder, limit, limit),
    )
    fields = _fields(note)
    rows = state["log_history"]
    observed = observe_run(where, note, fields, _pairs(note, rows), limit, trust_remote_code)
    run = Run(
        facts=_facts(note, fields, state),
        rows=rows,
        recipe=yaml.safe_dump(masked(fields), sort_keys=False, allow_unicode=True),
        command=note.get("command", ""),
        versions=note.get("versions", {}),
    )
    title = f"Training run: {folder.resolve().name}"
    page = render_page(title, _lead(note, fields, state), run_sections(run, observed))
    # JSON can hold half a surrogate pair, which UTF-8 cannot.
    page = page.encode("utf-8", "replace").decode("utf-8")
    write_page(output, page, flag)
    return f"the report is {output}"


def _checked(note, file):
    """The contents of run.json, with the entries that a report reads.

    Raises:
        DamagedFile: an entry that is none of ours.
    """
    note = check_stored(note, _Note, str(file))
    check_stored(_fields(note), _Fields, f"{file}: recipe.fields or given")
    return note


def _fields(note: Mapping) -> dict:
    """The fields that were set; for runs of older versions, those that identify the run."""
    identity = dict(note["recipe"]["fields"])
    identity.pop("number of processes", None)
    return {**identity, **note.get("given", {})}


def _lead(note, fields, state):
    student, teacher = _student(fields), _teacher(fields)
    what = f"{student}, distilled from {teacher}." if teacher else f"{student}, fine-tuned."
    if note.get("finished") is True:
        return what
    step = state.get("global_step")
    return f"{what} This run is not finished; the report shows its newest checkpoint, step {step}."


def _facts(note, fields, state):
    facts = {"student started from": _student(fields)}
    if teacher := _teacher(fields):
        facts |= {"teacher": teacher, "loss": loss_in_words(_value_of(fields))}
        if pairs := _pairs(note, state["log_history"]):
            facts["depths, student:teacher"] = ", ".join(pairs)
        if on_policy := on_policy_in_words(_value_of(fields)):
            facts["on-policy"] = on_policy
    else:
        facts["loss"] = "cross-entropy"
    if data := _data(fields):
        facts["trained on"] = data
    facts["steps"] = f"{state.get('global_step')} of {state.get('max_steps')}"
    if isinstance(epochs := state.get("epoch"), int | float):
        facts["epochs"] = f"{epochs:.3g}"
    runtimes = [row["train_runtime"] for row in state["log_history"] if "train_runtime" in row]
    if runtimes and isinstance(runtimes[-1], int | float):
        facts["time since its last start"] = duration(runtimes[-1])
    facts["processes"] = str(note["recipe"]["fields"].get("number of processes", 1))
    facts["finished"] = "yes" if note.get("finished") is True else "no"
    return facts


def _pairs(note, rows):
    """The pairs of depths that training compared; older runs note them in their log alone."""
    return note["layer_map"].split(",") if "layer_map" in note else pairs_of(rows)


def _student(fields):
    if config := fields.get("student_config"):
        kind = config.get("model_type") if isinstance(config, dict) else config
        return f"random weights ({kind})"
    if (blocks := fields.get("student_blocks")) is not None:
        return f"{blocks_in_words(blocks)} of {fields.get('teacher_model_name_or_path')}"
    return str(fields.get("model_name_or_path"))


def _teacher(fields):
    if several := fields.get("teachers"):
        each = (
            (entry.get("model") or entry.get("cache"), entry.get("weight")) for entry in several
        )
        return ", ".join(f"{name} (weight {weight})" for name, weight in each)
    if server := fields.get("teacher_server"):
        return f"{fields.get('teacher_server_model') or 'a model'} at {server}"
    cache = fields.get("teacher_cache")
    named = fields.get("teacher_model_name_or_path")
    return str(named) if named else f"the teacher cache {cache}" if cache else None


def _value_of(fields):
    """Field -> its value; fields that were not set have their defaults."""
    defaults = DistillLensConfig.__dataclass_fields__
    return lambda name: fields.get(name, defaults[name].default)


def _data(fields):
    if name := fields.get("dataset_name"):
        return str(name)
    if entries := fields.get("datasets"):
        return ", ".join(str(entry.get("path")) for entry in entries)
    files = fields.get("train_file") or []
    return ", ".join(map(str, files if isinstance(files, list) else [files]))
