"""What lm-evaluation-harness said of models: its files in a results folder, and their samples.

TASK/MODEL/lm_eval.jsonl   the harness's samples, one line for each document and filter
TASK/MODEL/lm_eval.json    its figures; written last
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np

from distilllens.evaluate.scores import Metric, Samples
from distilllens.files import write_json
from distilllens.jsonl import write_rows
from distilllens.stored import DamagedFile, check_stored, read_stored

_ROWS, _ABOUT = "lm_eval.jsonl", "lm_eval.json"


class TaskSettings(TypedDict):
    """What identifies a task: the hash of its configuration and documents, and their number."""

    sha256: str
    examples: int


Asked = dict[str, dict[str, TaskSettings]]  # name in --lm_eval -> task -> its settings


class _Figure(TypedDict):
    value: float | None
    higher_is_better: bool | None
    per_example: bool


class _About(TypedDict):
    lm_eval: str
    metrics: dict[str, _Figure]
    num_fewshot: NotRequired[int | None]
    version: NotRequired[str]


class _Row(TypedDict):
    doc_id: int
    filter: str
    metrics: list[str]


@dataclass(frozen=True, eq=False)
class HarnessTable:
    """The harness's part of a results folder as numbers.

    Args:
        samples: name in ``--lm_eval`` -> model -> metric -> its values. A group has those of its
            tasks, one after the other.
        metrics: key -> ``Metric``.
        figures: task -> key -> model -> the harness's figure, of metrics without samples.
        versions: of the harness.
    """

    samples: dict[str, dict[str, dict[Metric, Samples]]] = field(default_factory=dict)
    metrics: dict[str, Metric] = field(default_factory=dict)
    figures: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    versions: frozenset[str] = frozenset()

    def rows(self, metric: Metric) -> dict[str, dict[str, dict[Metric, Samples]]]:
        """The samples of the tasks that measure a metric, and of no other."""
        rows = {
            asked: {
                model: {metric: found[metric]} for model, found in row.items() if metric in found
            }
            for asked, row in self.samples.items()
        }
        return {asked: row for asked, row in rows.items() if row}


def settings_of(tasks: Iterable) -> Asked:
    """The settings of each ``HarnessTask``."""
    asked: Asked = {}
    for task in tasks:
        about: TaskSettings = {"sha256": task.sha256, "examples": task.examples}
        asked.setdefault(task.asked, {})[task.name] = about
    return asked


def harness_files(settings: Mapping) -> list[str]:
    """The paths, in the folder, of the files of every task and model when all is done."""
    tasks = dict.fromkeys(t for asked in (settings.get("lm_eval") or {}).values() for t in asked)
    places = product(tasks, settings["models"], (_ROWS, _ABOUT))
    return ["/".join(place) for place in places]


def is_there(folder: Path, task: str, model: str) -> bool:
    """Whether a task is finished for a model."""
    return all((folder / task / model / name).is_file() for name in (_ROWS, _ABOUT))


def write_task(folder: Path, rows: Iterable[dict], about: Mapping):
    """Write what ``run_task`` returns into the folder of one model on one task."""
    figures = {
        key: {**one, "value": v if (v := _number(one["value"])) is not None else None}
        for key, one in about["metrics"].items()
    }
    write_rows(folder / _ROWS, rows)
    write_json(folder / _ABOUT, {**about, "metrics": figures})


def left_open(folder: Path, before: Mapping, now: Mapping) -> list[str]:
    """Names that an evaluation was asked for ``before`` and not ``now``, and did not finish."""
    asked = before.get("lm_eval") or {}
    return [
        name
        for name in asked.keys() - (now.get("lm_eval") or {}).keys()
        if not all(is_there(folder, *one) for one in product(asked[name], before["models"]))
    ]


def shared(folder: Path, before: Mapping, now: Mapping) -> tuple[Asked, Asked]:
    """The settings of the names in both, but for those of which ``before`` left nothing."""
    old, new = before.get("lm_eval") or {}, now.get("lm_eval") or {}
    kept = [
        name
        for name in old.keys() & new.keys()
        if any(is_there(folder, *one) for one in product(old[name], before["models"]))
    ]
    return {name: old[name] for name in kept}, {name: new[name] for name in kept}


def read_harness(folder: Path, settings: Mapping) -> HarnessTable:
    """The samples and figures of a finished results folder.

    Raises:
        ValueError: a task is not finished.
        DamagedFile: a file does not hold what was written.
    """
    samples, metrics, figures, versions = {}, {}, {}, set()
    for asked, model in product(settings.get("lm_eval") or {}, settings["models"]):
        tasks = settings["lm_eval"][asked]
        parts: dict[Metric, list[Samples]] = {}
        first = 0  # number of the task's first document among those of a group
        for task, num in ((name, expected["examples"]) for name, expected in tasks.items()):
            if not is_there(folder, task, model):
                raise ValueError(
                    f"{folder} is not finished: the lm_eval task {task} of {model} is missing; "
                    f"run its distilllens evaluate with --lm_eval {asked} again"
                )
            about = read_stored(folder / task / model / _ABOUT, _About)
            versions.add(about["lm_eval"])
            for key, one in about["metrics"].items():
                if not _has_samples(one):
                    value = math.nan if one["value"] is None else one["value"]
                    figures.setdefault(task, {}).setdefault(_key(key, one), {})[model] = value
            for key, (values, there) in _values(folder / task / model / _ROWS, about, num).items():
                one = about["metrics"][key]
                metric = metrics.setdefault(_key(key, one), _metric(key, one))
                numbers = np.arange(first, first + num)
                part = Samples(numbers, values[:, None], there[:, None])
                parts.setdefault(metric, []).append(part)
            first += num
        joined = {m: _joined(p) for m, p in parts.items() if len(p) == len(tasks)}
        samples.setdefault(asked, {})[model] = joined
    return HarnessTable(samples, metrics, figures, frozenset(versions))


def side_by_side(
    tables: Sequence[tuple[Mapping, HarnessTable]], labels: Sequence[Mapping[str, str]]
) -> tuple[HarnessTable, list[str]]:
    """The tasks that all folders have, with the models of all; and sentences on the others.

    Args:
        tables: settings and table of each folder.
        labels: of each folder, model -> its name beside the others.
    """
    notes, kept = [], []
    every = [settings.get("lm_eval") or {} for settings, _ in tables]
    for asked in dict.fromkeys(name for one in every for name in one):
        if not all(asked in one for one in every):
            notes.append(f"{asked} (lm_eval) is left out: not every folder has it.")
        elif any(one[asked] != every[0][asked] for one in every):
            notes.append(
                f"{asked} (lm_eval) is left out: the folders have other versions of the task or "
                "other documents of it."
            )
        else:
            kept.append(asked)
    tasks = {task for asked in kept for task in every[0][asked]}
    samples, metrics, figures = {}, {}, {}
    for (_, table), names in zip(tables, labels, strict=True):
        metrics |= table.metrics
        for asked in kept:
            found = {names[m]: by for m, by in table.samples[asked].items()}
            samples.setdefault(asked, {}).update(found)
        for task, key in ((t, k) for t, keys in table.figures.items() if t in tasks for k in keys):
            found = {names[m]: v for m, v in table.figures[task][key].items()}
            figures.setdefault(task, {}).setdefault(key, {}).update(found)
    versions = frozenset().union(*(table.versions for _, table in tables))
    if kept and len(versions) > 1:
        listed = " and ".join(sorted(versions))
        notes.append(f"The tasks of lm_eval were run by its versions {listed}.")
    return HarnessTable(samples, metrics, figures, versions), notes


def _values(path, about, num):
    """key -> ``(values, counts)``, ``[num]`` each, of the metrics that are means over the rows."""
    found = {
        key: (np.zeros(num), np.zeros(num))
        for key, one in about["metrics"].items()
        if _has_samples(one)
    }
    seen = {}
    # Line by line: the samples of a large task have gigabytes of prompts.
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{path}:{number}"
            row = check_stored(_parsed(line, where), _Row, where)
            document = row["doc_id"]
            if not 0 <= document < num:
                raise DamagedFile(f"{where}: doc_id {document} is none of the {num} of this task")
            if (before := seen.setdefault((document, row["filter"]), number)) != number:
                raise DamagedFile(f"{where}: doc_id {document} is there already, on line {before}")
            for metric in row["metrics"]:
                if (key := f"{metric},{row['filter']}") in found:
                    value = row.get(metric)
                    if not isinstance(value, int | float):
                        raise DamagedFile(f"{where}: {metric} is {value!r}; it must be a number")
                    if not math.isnan(value):  # left out of the harness's mean, too
                        values, there = found[key]
                        values[document], there[document] = value, 1.0
    if missing := sorted(set(range(num)) - {document for document, _ in seen}):
        raise DamagedFile(f"{path}: doc_id {missing[0]} is missing ({len(missing)} of {num} are)")
    return {key: one for key, one in found.items() if one[1].any()}


def _parsed(line, where):
    try:
        return json.loads(line)
    except ValueError as error:
        raise DamagedFile(f"{where}: broken JSON ({error})") from error


def _joined(parts):
    columns = ((s.examples, s.totals, s.counts) for s in parts)
    return Samples(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def _has_samples(one):
    return one["per_example"] and one["higher_is_better"] is not None


def _name(key):
    """``acc`` for ``acc,none``: the harness calls it so where a task has no filter."""
    return key.removesuffix(",none")


def _key(key, one):
    """A metric's key in our tables; a direction that is not usual is part of it."""
    lower = " (lower is better)" * (one["higher_is_better"] is False)
    return f"lm_eval:{_name(key)}{lower}"


def _metric(key, one):
    lower = ", lower is better" * (not one["higher_is_better"])
    return Metric(f"lm_eval: {_name(key)}{lower}", one["higher_is_better"], 4)


def _number(value):
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if is_number else None
