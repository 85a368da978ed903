"""Tasks of lm-evaluation-harness on models of ours; the only file that knows ``lm_eval``."""

from __future__ import annotations

import copy
import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from inspect import getsource
from itertools import islice
from pathlib import Path

from tqdm.auto import tqdm

from distilllens.errors import did_you_mean, named
from distilllens.evaluate.benchmarks import RESERVED
from distilllens.evaluate.models import Candidate

logger = logging.getLogger(__name__)

# The documents are hashed; where they were read from does not matter.
_PLACES = ("dataset_path", "dataset_name", "dataset_kwargs")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


@dataclass(frozen=True, eq=False)
class HarnessTask:
    """A task without parts, with its documents.

    Args:
        name: of the task.
        asked: the name in ``--lm_eval``: the task's own, or that of a group or tag that holds it.
        sha256: of its configuration and of the documents that take part.
        examples: number of documents that take part.
    """

    name: str
    asked: str
    sha256: str
    examples: int
    task: object = field(repr=False)


def task_names(texts: Sequence[str], folder: str | None, backend: str) -> tuple[str, ...]:
    """The names of ``--lm_eval``, each of which may be a list with commas.

    Args:
        folder: of ``--lm_eval_path``, with task files.

    Raises:
        ValueError: a name is empty or there twice, a folder without names or that does not exist,
            or another backend than transformers.
        ImportError: lm-evaluation-harness is not installed.
    """
    names = tuple(name.strip() for text in texts for name in text.split(","))
    if not names:
        if folder is not None:
            raise ValueError("--lm_eval_path goes with --lm_eval TASK")
        return ()
    if "" in names:
        raise ValueError(f"--lm_eval {' '.join(texts)} has an empty name; separate names by commas")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"--lm_eval names {twice[0]} twice")
    if backend != "transformers":
        raise ValueError(f"--lm_eval runs with --backend transformers, not with {backend}")
    if find_spec("lm_eval") is None:
        raise ImportError(
            "--lm_eval needs lm-evaluation-harness, which is not installed: "
            "pip install 'distilllens[lm-eval]'"
        )
    if folder is not None and not Path(folder).is_dir():
        raise ValueError(f"--lm_eval_path {folder} is no folder; name one that holds task files")
    return names


def find_tasks(plan, candidates: Sequence[Candidate]) -> list[HarnessTask]:
    """The tasks of ``plan.lm_eval``, with documents; groups and tags are replaced by their tasks.

    Args:
        plan: has ``lm_eval`` and ``lm_eval_path``, as of ``task_names``; ``limit``, the number of
            documents of each task, or None for all; and ``chat``.

    Raises:
        ValueError: an unknown name, documents or a configuration that cannot be read, a task that
            is asked for twice, or one that we cannot run or that measures nothing; or a chat with
            a candidate that has no template.
    """
    names, folder = plan.lm_eval, plan.lm_eval_path
    found: dict[str, HarnessTask] = {}
    if not names:
        return []
    for candidate in candidates if plan.chat else ():
        if not candidate.tokenizer.chat_template:
            raise ValueError(f"--chat: the tokenizer of {candidate.name} has no chat_template")
    with _heard():
        manager = _manager(names, folder)
        for asked in names:
            if asked not in manager.task_index:
                near = did_you_mean(asked, manager.all_tasks)
                raise ValueError(f"--lm_eval {asked}: lm-evaluation-harness has no such task{near}")
            for name, task in _loaded(manager, asked).items():
                if name in found:
                    both = f"{found[name].asked} and {asked}"
                    raise ValueError(f"--lm_eval {both} both hold the task {name}; name it once")
                found[name] = _checked(name, asked, task, plan.limit)
    return list(found.values())


def run_task(task: HarnessTask, model, tokenizer, plan, *, title: str = "", hidden: bool = True):
    """What the harness says of a model: ``(rows, about)``.

    Args:
        model: in evaluation mode, on its device; it stays as it is.
        plan: has ``batch_size``, ``limit`` and ``chat``, as of ``find_tasks``.
        title: of the progress bar.
        hidden: whether there is none.

    Returns:
        The logged samples, one for each document and filter, as plain values; and a dict with the
        harness's own figures, ``{"metrics": {"acc,none": {"value", "higher_is_better",
        "per_example"}}, "lm_eval", "version", "num_fewshot"}``. ``per_example`` is whether the
        figure is the mean of numbers that the samples hold.

    Raises:
        ValueError: the harness fails on this task or model.
    """
    from lm_eval.evaluator import evaluate

    with _failing(f"the lm_eval task {task.name}"):
        with _heard():
            wrapped = _wrapped(model, tokenizer, plan.batch_size)
        _seed(task.task)
        with _heard() as warnings, _own_bar(title, hidden):
            found = evaluate(
                wrapped,
                {"tasks": {task.name: task.task}},
                limit=plan.limit,
                bootstrap_iters=0,  # the intervals are ours
                apply_chat_template=plan.chat,
                fewshot_as_multiturn=plan.chat,
            )
    for text, *others in warnings.values():
        more = f" (and {len(others)} more like it)" if others else ""
        logger.warning("lm_eval task %s: %s%s", task.name, text, more)
    rows = json.loads(json.dumps(found["samples"][task.name], default=_plain))
    figures = json.loads(json.dumps(found["results"][task.name], default=_plain))
    return rows, {
        "lm_eval": version("lm_eval"),
        "version": str(task.task.VERSION),
        "num_fewshot": task.task.get_config("num_fewshot"),
        "metrics": _metrics(task.task, figures, rows),
    }


def _manager(names, folder):
    """The index of tasks. That of all of the harness's own takes seconds, and may be spared."""
    from lm_eval.tasks import TaskManager

    if folder is not None:
        own = TaskManager(include_path=folder, include_defaults=False)
        if set(names) <= {*own.all_subtasks, *own.all_tags}:
            return own
    return TaskManager(include_path=folder)


def _loaded(manager, asked):
    """name -> task, of what ``asked`` holds."""
    try:
        return manager.load([asked])["tasks"]
    except Exception as error:  # of datasets, yaml, jinja, and of the task's own functions
        raise ValueError(
            f"--lm_eval {asked}: the task or its data set cannot be loaded: {named(error)}"
        ) from error


def _checked(name, asked, task, limit):
    if RESERVED in (name, asked) or "/" in name:
        raise ValueError(f"--lm_eval {asked}: a task cannot be called {name!r}; rename it")
    if getattr(task, "UNSAFE_CODE", False):
        raise ValueError(f"--lm_eval {name} runs code that a model wrote, which we do not do")
    if getattr(task, "MULTIMODAL", False):
        raise ValueError(f"--lm_eval {name} asks about images or sound; our models read text")
    if not {*task.aggregation()} - {"bypass"}:
        raise ValueError(f"--lm_eval {name} has no metric, so there is nothing to compare")
    if task.get_config("num_fewshot") is None:  # as the harness's own command does
        task.set_config("num_fewshot", 0)
    with _failing(f"--lm_eval {name}: its documents"):
        documents = list(islice(task.eval_docs, limit))
        shots = list(task.fewshot_docs() or ()) if task.get_config("num_fewshot") else []
        digest = _digest(task.dump_config(), documents, shots)
    if not documents:
        raise ValueError(f"--lm_eval {name} has no documents")
    return HarnessTask(name, asked, digest, len(documents), task)


def _digest(config, documents, shots):
    """The SHA-256 of what decides a task's prompts and metrics."""
    config = {key: value for key, value in config.items() if key not in _PLACES}
    metadata = config.get("metadata") or {}
    config["metadata"] = {k: v for k, v in metadata.items() if k != "config_source"}
    digest = sha256()
    for part in (config, *documents, shots):
        digest.update(json.dumps(part, default=_plain, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _plain(value):
    """A value that JSON does not have: numbers and arrays of numpy, functions, sets, others."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    try:
        return getsource(value)
    except (TypeError, OSError):
        return _ADDRESS.sub("", str(value))


def _seed(task):
    """Seeds as the harness's own command sets them, anew for every task and model."""
    import random

    import numpy as np
    import torch
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    torch.manual_seed(DEFAULT_OTHER_SEED)
    task.set_fewshot_seed(DEFAULT_OTHER_SEED)


def _wrapped(model, tokenizer, batch_size):
    """The model as the harness knows it."""
    from lm_eval.models.huggingface import HFLM

    # HFLM ties weights again, as the configuration says: a checkpoint that has both an embedding
    # and another head, whatever its configuration says, would lose its head.
    model.tie_weights = lambda *_, **__: None
    try:
        # It may give the tokenizer a token for padding; ours stays as it is.
        return HFLM(
            model, backend="causal", tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size
        )
    finally:
        del model.tie_weights


def _metrics(task, figures, rows):
    """``"metric,filter"`` -> the harness's figure, and whether it is a mean over the rows."""
    from lm_eval.api.metrics import mean, nanmean

    found = {}
    for key, value in figures.items():
        metric, comma, name = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        values = [r[metric] for r in rows if r["filter"] == name and metric in r["metrics"]]
        kind = task.aggregation().get(metric, mean)  # without one, the harness takes the mean
        is_mean = kind is nanmean or (kind is mean and all(v == v for v in values))
        found[key] = {
            "value": value,
            "higher_is_better": task.higher_is_better().get(metric),
            "per_example": is_mean and all(isinstance(v, int | float) for v in values),
        }
    return found


@contextmanager
def _heard() -> Iterator[dict[tuple, list[str]]]:
    """Keep the harness's warnings from the terminal: place in its code -> their texts."""
    library, texts = logging.getLogger("lm_eval"), {}
    before, handler = library.propagate, logging.Handler(logging.WARNING)

    def emit(record):
        text = " ".join(record.getMessage().split())
        texts.setdefault((record.pathname, record.lineno), []).append(text)

    handler.emit = emit
    library.addHandler(handler)
    library.propagate = False
    try:
        yield texts
    finally:
        library.propagate = before
        library.removeHandler(handler)


@contextmanager
def _own_bar(title, hidden) -> Iterator[None]:
    """Give the harness's bar of requests our title; its other bars are hidden."""
    from lm_eval.api import model, task
    from lm_eval.models import huggingface

    modules, made = (model, task, huggingface), []

    def bar(*args, **settings):
        is_shown = not hidden and "requests" in settings.get("desc", "")
        made.append(tqdm(*args, **settings | {"desc": title, "disable": not is_shown}))
        return made[-1]

    before = [module.tqdm for module in modules]
    for module in modules:
        module.tqdm = bar
    try:
        yield
    finally:
        for module, original in zip(modules, before, strict=True):
            module.tqdm = original
        for one in made:
            one.close()


@contextmanager
def _failing(what) -> Iterator[None]:
    """Errors of the harness and of tasks, which raise whatever they like, on one line."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what} failed: {named(error)}") from error
