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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distilllens.evaluate.calibration import Calibration
from distilllens.files import write_json
from distilllens.jsonl import append_rows, read_rows, sort_rows, whole_rows, write_rows

SETTINGS, JUDGE_CACHE = "evaluation.json", "judge.jsonl"
# Metrics that may join an evaluation later.
ADDABLE = ("teacher", "sbert", "judge")
# Settings that are noted and not compared; "files" and "sha256" say what a name stands for.
_NOTES = ("names", "batch_size", "device", "versions")


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
            rows = read_rows(path) if ".process-" not in path.name else None
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
        folder = self.of(unit.benchmark, unit.model)
        append_rows(folder / f"{unit.name}.process-{rank}.jsonl", rows)

    def parts(self, unit: Unit) -> dict[int, dict]:
        """example -> row, of all part files of a unit; broken lines are left out."""
        rows = {}
        folder = self.of(unit.benchmark, unit.model)
        for path in sorted(folder.glob(f"{unit.name}.process-*.jsonl")):
            rows |= {row["example"]: row for row in whole_rows(path) if "example" in row}
        return rows

    def answers(self, unit: Unit) -> list[dict] | None:
        """The finished rows of a unit, or None."""
        return read_rows(self.folder / unit.benchmark / unit.model / f"{unit.name}.jsonl")

    def finish(self, unit: Unit, rows: Sequence[dict]):
        """Write the finished rows of a unit and take its part files away."""
        folder = self.of(unit.benchmark, unit.model)
        write_rows(folder / f"{unit.name}.jsonl", rows)
        for path in folder.glob(f"{unit.name}.process-*.jsonl"):
            path.unlink()

    def references(self, benchmark: str, model: str) -> list[dict] | None:
        """The rows of the references' likelihood, or None."""
        return read_rows(self.folder / benchmark / model / "references.jsonl")

    def calibration(self, benchmark: str, model: str) -> Calibration:
        """The model's confidence in the references' tokens."""
        path = self.folder / benchmark / model / "calibration.json"
        return Calibration.from_dict(json.loads(path.read_text(encoding="utf-8")))

    def sort_replies(self):
        """Put a judge's replies, which came as they came, into an order."""
        path = self.folder / JUDGE_CACHE
        if path.exists():
            sort_rows(path)

    def note_time(self, **entry):
        """Add a line to the timings."""
        with open(self.folder / "timings.jsonl", "a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")


def _flat(value, name=""):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
