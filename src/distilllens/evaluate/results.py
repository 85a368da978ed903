"""A results folder: written row by row, whole after a kill, and read again.

    evaluation.json                    settings, hashes, versions and the command
    BENCHMARK/MODEL/seed-10.jsonl      an answer a line, with what the metrics said of it
    BENCHMARK/MODEL/greedy.jsonl       in place of the seeds, where nothing is sampled
    BENCHMARK/MODEL/references.jsonl   how likely the model finds the references, an example a line
    BENCHMARK/MODEL/calibration.json   its confidence in the references' tokens
    scores.json, scores.md             the table
    judge.jsonl                        a judge's replies
    timings.jsonl                      seconds; the only file that differs from run to run

While an evaluation is under way, answers lie in ``seed-10.process-0.jsonl`` and so on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distilllens.evaluate.calibration import Calibration
from distilllens.evaluate.scores import Samples
from distilllens.files import write_atomically, write_json

SETTINGS, JUDGE_CACHE = "evaluation.json", "judge.jsonl"
# Metrics that may join an evaluation later.
ADDABLE = ("teacher", "sbert", "judge")
# Settings that are noted and not compared; "files" and "sha256" say what a name stands for.
_NOTES = ("names", "batch_size", "device", "versions")
ANSWER_METRICS = ("rouge_l", "exact_match", "sbert", "judge", "judge_win")


@dataclass(frozen=True)
class Unit:
    """One model on one benchmark with one seed (None: greedy)."""

    benchmark: str
    model: str
    seed: int | None

    @property
    def name(self) -> str:
        """What its files are called."""
        return "greedy" if self.seed is None else f"seed-{self.seed}"


class Results:
    """The files of an evaluation."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def check(self, settings: dict):
        """Refuse a folder that holds anything but this evaluation, begun or finished.

        A metric may be added to an evaluation that was made without it. What a model or a file is
        called, the batch size, the device and the versions of libraries are notes: an evaluation
        may go on under others.

        Raises:
            ValueError: it is a file, holds other things, or an evaluation of other settings (the
                first that differs is named).
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"--output {self.folder} is a file; name a folder")
        if not self.folder.exists() or all(p.suffix == ".part" for p in self.folder.iterdir()):
            return
        before = self.settings()
        if before is None:
            raise ValueError(
                f"--output {self.folder} is not empty and holds no evaluation; name another folder"
            )
        now = json.loads(json.dumps(settings))
        for name in ADDABLE:
            if None in (before.get(name), now.get(name)) or not self._has_measured(name):
                before[name] = now[name] = None
        before, now = dict(_flat(before)), dict(_flat(now))
        for key in sorted(before.keys() | now.keys()):
            if key.split(".")[0] not in _NOTES and before.get(key) != now.get(key):
                raise ValueError(
                    f"--output {self.folder} holds an evaluation of other settings: {key} was "
                    f"{before.get(key)!r} and is now {now.get(key)!r}; name another folder"
                )

    def begin(self, settings: dict, command: str):
        """Note the settings, and the command where it is the first or adds a metric."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.rglob("*.part"):  # by a process that was killed
            left.unlink()
        before = self.settings() or settings
        kept = {name: settings[name] or before.get(name) for name in ADDABLE}
        if not (self.folder / SETTINGS).exists() or {**before, **kept} != before:
            note = {"settings": {**before, **kept}, "command": command}
            write_json(self.folder / SETTINGS, note)

    def settings(self) -> dict | None:
        """The settings in the folder, or None."""
        try:
            text = (self.folder / SETTINGS).read_text(encoding="utf-8")
            return dict(json.loads(text)["settings"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _has_measured(self, name):
        """Whether any row holds what a teacher, an sbert model or a judge says."""
        key = {"teacher": "kl"}.get(name, name)
        for path in self.folder.glob("*/*/*.jsonl"):
            rows = _read(path) if ".process-" not in path.name else None
            if rows and any(row.get(key) is not None for row in rows):
                return True
        return False

    def of(self, benchmark: str, model: str) -> Path:
        """The folder of one model on one benchmark, made if it is missing."""
        folder = self.folder / benchmark / model
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def append(self, unit: Unit, rank: int, rows: Sequence[dict]):
        """Add answers to the part file of a process; they are on the disk on return."""
        path = self.of(unit.benchmark, unit.model) / f"{unit.name}.process-{rank}.jsonl"
        with open(path, "ab") as stream:
            # A line that a kill has torn stays one broken line.
            torn = stream.tell() > 0 and _last_byte(path) != b"\n"
            stream.write(b"\n" * torn + _lines(rows))
            stream.flush()
            os.fsync(stream.fileno())

    def parts(self, unit: Unit) -> dict[int, dict]:
        """example -> row, of all part files of a unit; broken lines are left out."""
        rows = {}
        folder = self.of(unit.benchmark, unit.model)
        for path in sorted(folder.glob(f"{unit.name}.process-*.jsonl")):
            for line in path.read_bytes().split(b"\n"):
                try:
                    row = json.loads(line)
                    rows[row["example"]] = row
                except (ValueError, TypeError, KeyError):
                    continue
        return rows

    def answers(self, unit: Unit) -> list[dict] | None:
        """The finished rows of a unit, or None."""
        return _read(self.folder / unit.benchmark / unit.model / f"{unit.name}.jsonl")

    def finish(self, unit: Unit, rows: Sequence[dict]):
        """Write the finished rows of a unit and take its part files away."""
        folder = self.of(unit.benchmark, unit.model)
        write_rows(folder / f"{unit.name}.jsonl", rows)
        for path in folder.glob(f"{unit.name}.process-*.jsonl"):
            path.unlink()

    def references(self, benchmark: str, model: str) -> list[dict] | None:
        """The rows of the references' likelihood, or None."""
        return _read(self.folder / benchmark / model / "references.jsonl")

    def calibration(self, benchmark: str, model: str) -> Calibration:
        """The model's confidence in the references' tokens."""
        path = self.folder / benchmark / model / "calibration.json"
        return Calibration.from_dict(json.loads(path.read_text(encoding="utf-8")))

    def sort_replies(self):
        """Put a judge's replies, which came as they came, into an order."""
        path = self.folder / JUDGE_CACHE
        if path.exists():
            lines = sorted(line for line in path.read_bytes().split(b"\n") if _is_json(line))
            write_atomically(path, b"".join(line + b"\n" for line in lines).decode())

    def note_time(self, **entry):
        """Add a line to the timings."""
        with open(self.folder / "timings.jsonl", "a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")


@dataclass(frozen=True, eq=False)
class Table:
    """A results folder as numbers: ``samples[benchmark][model][metric]``, and the settings.

    Args:
        answers: ``[benchmark][model]`` -> mean tokens of an answer, share of answers that ended by
            themselves, and the near ties of all.
        calibration: ``[benchmark][model]``, on the references.
    """

    folder: str
    settings: dict
    samples: dict[str, dict[str, dict[str, Samples]]]
    answers: dict[str, dict[str, dict[str, float]]]
    calibration: dict[str, dict[str, Calibration]]


def read_table(folder: str | Path) -> Table:
    """The numbers of a finished results folder.

    Raises:
        ValueError: no evaluation there, or one that is not finished.
    """
    results = Results(folder)
    settings = results.settings()
    if settings is None:
        raise ValueError(f"{folder} holds no results; name the --output of a distilllens evaluate")
    samples, answers, calibration = {}, {}, {}
    for benchmark in settings["benchmarks"]:
        for model in settings["models"]:
            by_seed, references = _rows(results, benchmark, model, settings["seeds"])
            samples.setdefault(benchmark, {})[model] = _samples(by_seed, references)
            answers.setdefault(benchmark, {})[model] = _about([r for rows in by_seed for r in rows])
            bins = results.calibration(benchmark, model)
            calibration.setdefault(benchmark, {})[model] = bins
    return Table(str(folder), settings, samples, answers, calibration)


def write_rows(path: Path, rows: Iterable[dict]):
    """Write rows as JSON lines, whole or not at all."""
    write_atomically(path, _lines(rows).decode())


def _rows(results, benchmark, model, seeds):
    by_seed = [results.answers(Unit(benchmark, model, seed)) for seed in seeds]
    references = results.references(benchmark, model)
    if None in by_seed or references is None:
        raise ValueError(
            f"{results.folder} is not finished: answers of {model} on {benchmark} are missing; "
            "run its distilllens evaluate again, it goes on where it stopped"
        )
    return by_seed, references


def _about(rows):
    return {
        "mean_tokens": float(np.mean([row["num_tokens"] for row in rows])),
        "finished": float(np.mean([row["finished"] for row in rows])),
        "near_ties": sum(row["near_ties"] for row in rows),
    }


def _samples(by_seed, references):
    numbers = np.array([row["example"] for row in references])
    found = {}
    for metric in ANSWER_METRICS:
        if all(metric in row for rows in by_seed for row in rows):
            values = [[row[metric] for row in rows] for rows in by_seed]
            values = np.array(values, dtype=float).T  # None becomes NaN
            there = np.isfinite(values)
            if there.any():
                values = np.where(there, values, 0.0)
                found[metric] = Samples(numbers, values, there.astype(float))
    if "judge" in found and "judge_reference" in by_seed[0][0]:
        others = [[row["judge_reference"] for row in rows] for rows in by_seed]
        others = np.nan_to_num(np.array(others, dtype=float).T)
        found["judge_ratio"] = Samples(numbers, 100 * found["judge"].totals, others)
    tokens = np.array([[row["num_tokens"]] for row in references], dtype=float)
    for metric, key in (("perplexity", "nll"), ("kl", "kl")):
        values = np.array([[row[key]] for row in references], dtype=float)  # None becomes NaN
        if (there := ~np.isnan(values)).any():
            found[metric] = Samples(numbers, np.where(there, values, 0.0), tokens * there)
    return found


def _read(path):
    if not path.exists():
        return None
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _is_json(line):
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:  # a line that a kill has torn
        return False


def _last_byte(path):
    with open(path, "rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1)


def _flat(value, name=""):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
