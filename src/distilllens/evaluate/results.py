"""A results folder, written row by row so that an interrupted evaluation can resume.

    evaluation.json                    settings, hashes, versions and the command
    BENCHMARK/MODEL/seed-10.jsonl      one answer per line, with its metrics
    BENCHMARK/MODEL/greedy.jsonl       the same of greedy decoding, which has no seeds
    BENCHMARK/MODEL/references.jsonl   the likelihood of the references, one example per line
    BENCHMARK/MODEL/calibration.json   the model's confidence in the references' tokens
    scores.json, scores.md             the tables
    judge.jsonl                        a judge's replies
    timings.jsonl                      seconds; the only file that differs from run to run

During an evaluation, the answers are in ``seed-10.process-0.jsonl`` and so on.
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
# Settings of metrics that can be added to an evaluation later.
ADDABLE = ("teacher", "sbert", "judge")
# Settings that are recorded but not compared. Hashes identify models and files, not their names.
_NOTES = ("names", "batch_size", "device", "versions")


@dataclass(frozen=True)
class Unit:
    """One model on one benchmark with one seed (None: greedy)."""

    benchmark: str
    model: str
    seed: int | None

    @property
    def name(self) -> str:
        """The name of its files."""
        return "greedy" if self.seed is None else f"seed-{self.seed}"


class Results:
    """The files of an evaluation."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def check(self, settings: dict):
        """Refuse a folder that holds anything but this evaluation, unfinished or finished.

        A metric may be added to an evaluation that was made without it. Names of models and files,
        the batch size, the device and the versions of libraries may differ.

        Raises:
            ValueError: the folder is a file, holds something else, or an evaluation with other
                settings (the message names the first that differs).
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
        """Record the settings, and the command if it is the first or adds a metric."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for part in self.folder.rglob("*.part"):  # left by a process that was killed
            part.unlink()
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
        """Whether any row has the metric of a teacher, an sbert model or a judge."""
        key = {"teacher": "kl"}.get(name, name)
        for path in self.folder.glob("*/*/*.jsonl"):
            rows = read_rows(path) if ".process-" not in path.name else None
            if rows and any(row.get(key) is not None for row in rows):
                return True
        return False

    def of(self, benchmark: str, model: str) -> Path:
        """The folder of one model on one benchmark; created if it is missing."""
        folder = self.folder / benchmark / model
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def append(self, unit: Unit, rank: int, rows: Sequence[dict]):
        """Append answers to the part file of a process; they are on disk on return."""
        folder = self.of(unit.benchmark, unit.model)
        append_rows(folder / f"{unit.name}.process-{rank}.jsonl", rows)

    def parts(self, unit: Unit) -> dict[int, dict]:
        """example -> row, from all part files of a unit; torn lines are left out."""
        rows = {}
        folder = self.of(unit.benchmark, unit.model)
        for path in sorted(folder.glob(f"{unit.name}.process-*.jsonl")):
            rows |= {row["example"]: row for row in whole_rows(path) if "example" in row}
        return rows

    def answers(self, unit: Unit) -> list[dict] | None:
        """The finished rows of a unit, or None."""
        return read_rows(self.folder / unit.benchmark / unit.model / f"{unit.name}.jsonl")

    def finish(self, unit: Unit, rows: Sequence[dict]):
        """Write the finished rows of a unit and delete its part files."""
        folder = self.of(unit.benchmark, unit.model)
        write_rows(folder / f"{unit.name}.jsonl", rows)
        for path in folder.glob(f"{unit.name}.process-*.jsonl"):
            path.unlink()

    def references(self, benchmark: str, model: str) -> list[dict] | None:
        """The rows of the likelihood of the references, or None."""
        return read_rows(self.folder / benchmark / model / "references.jsonl")

    def calibration(self, benchmark: str, model: str) -> Calibration:
        """The model's confidence in the references' tokens."""
        path = self.folder / benchmark / model / "calibration.json"
        return Calibration.from_dict(json.loads(path.read_text(encoding="utf-8")))

    def sort_replies(self):
        """Sort the lines of a judge's replies, which were written in order of arrival."""
        path = self.folder / JUDGE_CACHE
        if path.exists():
            sort_rows(path)

    def note_time(self, **entry):
        """Append a line to the timings."""
        with open(self.folder / "timings.jsonl", "a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")


def _flat(value, name=""):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
