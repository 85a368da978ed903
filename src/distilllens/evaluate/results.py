"""A results folder, written row by row so that an interrupted evaluation can resume.

    evaluation.json                    settings, hashes, versions and the command
    BENCHMARK/MODEL/seed-10.jsonl      one answer per line, with its metrics
    BENCHMARK/MODEL/greedy.jsonl       the same of greedy decoding, which has no seeds
    BENCHMARK/MODEL/references.jsonl   the likelihood of the references, one example per line
    BENCHMARK/MODEL/calibration.json   the model's confidence in the references' tokens
    TASK/MODEL/lm_eval.jsonl, .json    what lm-evaluation-harness said of a model
    scores.json, scores.md             the tables
    complete.json                      the SHA-256 of the settings and of the files of each
                                       benchmark, written last
    judge.jsonl                        a judge's replies
    timings.jsonl                      seconds; the only file that differs from run to run

During an evaluation, the answers are in ``seed-10.process-0.jsonl`` and so on.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from distilllens.evaluate.calibration import Calibration
from distilllens.evaluate.harness_samples import Asked, left_open, shared, write_task
from distilllens.evaluate.layout import (
    CALIBRATION,
    JUDGE_CACHE,
    REFERENCES,
    SETTINGS,
    TIMINGS,
    Unit,
    check_links,
    drop_remains,
    finished_files,
)
from distilllens.evaluate.rows import (
    AnswerRow,
    ReferenceRow,
    read_answers,
    read_parts,
    read_references,
)
from distilllens.evaluate.seal import check_settings, has_all, read_seal, unseal, write_seal
from distilllens.files import is_part_of, write_json
from distilllens.jsonl import append_rows, encode_rows, sort_rows, write_rows
from distilllens.stored import DamagedFile, flat, read_stored

# Settings of metrics that can be added to an evaluation later.
ADDABLE = ("teacher", "sbert", "judge")
# How answers are scored. Where a folder has none or another, its answers are scored again.
DEFINITIONS = {"text_metrics": "words of every script", "judge_reads": "whole conversations"}
# Settings that are recorded but not compared. Hashes identify models and files, not their names.
_NOTES = ("names", "batch_size", "device", "versions", "trivial", *DEFINITIONS)
_AGAIN = "delete the file and repeat this folder's distilllens evaluate, which makes it again"
_RESTORE = "restore the file, or evaluate into another folder"


class _Benchmark(TypedDict):
    sha256: str
    examples: int
    left_out: NotRequired[int]


class Settings(TypedDict):
    """What identifies an evaluation; version 0.1.0 did not record its ``DEFINITIONS``."""

    models: dict[str, dict[str, str]]  # label -> file -> SHA-256
    benchmarks: dict[str, _Benchmark]
    seeds: list[int | None]
    decoding: dict[str, Any]
    limit: int | None
    max_prompt_length: int | None
    chat: bool
    dtype: str
    backend: str
    teacher: dict[str, str] | None
    sbert: str | None
    judge: str | None
    references_only: NotRequired[bool]  # true or absent; then there are no seeds and no decoding
    text_metrics: NotRequired[str | None]
    judge_reads: NotRequired[str | None]
    lm_eval: NotRequired[Asked]
    trivial: NotRequired[dict[str, dict[str, dict[str, float]]]]  # as of trivial_scores


class _Evaluation(TypedDict):
    settings: Settings
    command: str


class _Bins(TypedDict):
    count: list[int]
    confidence: list[float]
    correct: list[int]


class Results:
    """The files of an evaluation.

    Every reading method raises ``DamagedFile`` for a file that does not hold what was written: one
    line with file, line or entry, and what to do.

    Attributes:
        is_complete: whether ``check`` found the evaluation finished and scored as it is now.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.is_complete = False

    def check(self, settings: dict):
        """Refuse a folder that holds anything but this evaluation, unfinished or finished.

        A metric may be added to an evaluation that was made without it. Names of models and files,
        the batch size, the device and the versions of libraries may differ.

        Raises:
            ValueError: the folder is a file, holds something else, an evaluation with other
                settings (the message names the first that differs), or a link where we write.
            DamagedFile: a finished file has changed.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"--output {self.folder} is a file; name a folder")
        if not self.folder.exists() or all(is_part_of(p, SETTINGS) for p in self.folder.iterdir()):
            return
        before = self.settings()
        if before is None:
            raise ValueError(
                f"--output {self.folder} is not empty and holds no evaluation; name another folder"
            )
        check_links(self.folder, before)
        now = json.loads(json.dumps(settings))
        scored_alike = all(before.get(k) == now[k] for k in DEFINITIONS if now.get(k))
        self.is_complete = self.is_sealed() and scored_alike
        for name in ADDABLE:
            if None in (before.get(name), now.get(name)) or not self._has_measured(name, before):
                before[name] = now[name] = None
        if unfinished := left_open(self.folder, before, now):
            raise ValueError(
                f"--output {self.folder} has the unfinished --lm_eval {','.join(unfinished)}; "
                "name it in this command, too"
            )
        before["lm_eval"], now["lm_eval"] = shared(self.folder, before, now)
        before, now = ({"references_only": False, **dict(flat(one))} for one in (before, now))
        # Without answers there is no decoding, which is no other decoding.
        for key in sorted(before.keys() | now.keys(), key=lambda k: (k != "references_only", k)):
            if key.split(".")[0] not in _NOTES and before.get(key) != now.get(key):
                raise ValueError(
                    f"--output {self.folder} holds an evaluation of other settings: {key} was "
                    f"{before.get(key)!r} and is now {now.get(key)!r}; name another folder"
                )

    def begin(self, settings: dict, command: str):
        """Record the settings, and the command if it is the first or adds a metric."""
        self.folder.mkdir(parents=True, exist_ok=True)
        before = self.settings() or settings
        drop_remains(self.folder, before)
        kept = {name: settings[name] or before.get(name) for name in ADDABLE}
        if asked := (before.get("lm_eval") or {}) | (settings.get("lm_eval") or {}):
            kept["lm_eval"] = asked
        if settings["teacher"] and not before.get("teacher"):
            names = before.get("names") or {}
            kept["names"] = names | {"teacher": (settings.get("names") or {}).get("teacher")}
        if not (self.folder / SETTINGS).exists() or {**before, **kept} != before:
            self._note({**before, **kept}, command)

    def note_definitions(self, judged: bool, trivial: Mapping[str, Mapping]):
        """Record how answers are scored now, when all of them are.

        Args:
            trivial: benchmark -> ``trivial_scores``.
        """
        settings = self.settings()
        new = {k: v for k, v in DEFINITIONS.items() if judged or k != "judge_reads"}
        new["trivial"] = trivial
        if settings | new != settings:
            self._note(settings | new, read_stored(self.folder / SETTINGS, _Evaluation)["command"])

    def close(self):
        """Record the SHA-256 of every finished file, when all else is written."""
        settings = self.settings()
        write_seal(self.folder, settings, finished_files(settings))

    def settings(self) -> Settings | None:
        """The settings in the folder, or None."""
        path = self.folder / SETTINGS
        if not path.is_file():
            return None
        with _advised(_RESTORE):
            settings = read_stored(path, _Evaluation)["settings"]
            has_answers = not settings.get("references_only")
            for name in ("models", "benchmarks", *["seeds"] * has_answers):
                if not settings[name] and not (name == "benchmarks" and settings.get("lm_eval")):
                    raise DamagedFile(f"{path}: the entry 'settings.{name}' is empty")
            if settings["seeds"] and not has_answers:
                text = "has seeds, but 'settings.references_only' says that there are no answers"
                raise DamagedFile(f"{path}: the entry 'settings.seeds' {text}")
            for at, seed in enumerate(settings["seeds"]):
                if seed in settings["seeds"][:at]:
                    text = f"the entry 'settings.seeds' has {json.dumps(seed)} twice"
                    raise DamagedFile(f"{path}: {text}; seeds must differ")
        return settings

    def is_sealed(self) -> bool:
        """Whether the evaluation is finished, and its files are as they were then."""
        settings = self.settings()
        with _advised(_AGAIN):
            seal = read_seal(self.folder)
        if settings is None or seal is None:
            return False
        with _advised(_RESTORE):
            check_settings(seal, settings, self.folder / SETTINGS)
        with _advised(_AGAIN):
            return has_all(self.folder, seal, finished_files(settings))

    def of(self, benchmark: str, model: str) -> Path:
        """The folder of one model on one benchmark; created if it is missing."""
        folder = self.folder / benchmark / model
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def append(self, unit: Unit, rank: int, rows: Sequence[Mapping]):
        """Append answers to the part file of a process; they are on disk on return."""
        folder = self.of(unit.benchmark, unit.model)
        append_rows(folder / f"{unit.name}.process-{rank}.jsonl", rows)

    def parts(self, unit: Unit) -> dict[int, AnswerRow]:
        """example -> row, from all part files of a unit; torn lines are left out."""
        rows = {}
        folder = self.of(unit.benchmark, unit.model)
        with _advised(_AGAIN):
            for path in sorted(folder.glob(f"{unit.name}.process-*.jsonl")):
                rows |= read_parts(path, unit.seed)
        return rows

    def answers(
        self, unit: Unit, examples: Collection[int] | None = None
    ) -> list[AnswerRow] | None:
        """The finished rows of a unit by example, or None.

        Args:
            examples: the numbers of those that must be there; None for any.
        """
        path = self.folder / unit.benchmark / unit.model / f"{unit.name}.jsonl"
        if not path.exists():
            return None
        with _advised(_AGAIN):
            return read_answers(path, unit.seed, examples)

    def finish(self, unit: Unit, rows: Sequence[Mapping]):
        """Write the finished rows of a unit and delete its part files."""
        folder = self.of(unit.benchmark, unit.model)
        path = folder / f"{unit.name}.jsonl"
        if not path.exists() or path.read_bytes() != encode_rows(rows):
            unseal(self.folder)
            write_rows(path, rows)
        for part in folder.glob(f"{unit.name}.process-*.jsonl"):
            part.unlink()

    def references(
        self, benchmark: str, model: str, examples: Collection[int] | None = None
    ) -> list[ReferenceRow] | None:
        """The rows of the likelihood of the references by example, or None.

        Args:
            examples: the numbers of those that must be there; None for any.
        """
        folder = self.folder / benchmark / model
        if not (folder / REFERENCES).exists() or not (folder / CALIBRATION).exists():
            return None
        with _advised(_AGAIN):
            return read_references(folder / REFERENCES, examples)

    def calibration(self, benchmark: str, model: str) -> Calibration:
        """The model's confidence in the references' tokens."""
        path = self.folder / benchmark / model / CALIBRATION
        with _advised(_AGAIN):
            bins = read_stored(path, _Bins)
            try:
                return Calibration.from_dict(bins)
            except ValueError as error:
                raise DamagedFile(f"{path}: {error}") from error

    def finish_references(
        self, benchmark: str, model: str, rows: Sequence[Mapping], calibration: Calibration
    ):
        """Write the likelihood of the references, and the confidence in their tokens before it."""
        unseal(self.folder)
        folder = self.of(benchmark, model)
        write_json(folder / CALIBRATION, calibration.to_dict())
        write_rows(folder / REFERENCES, rows)

    def finish_harness(self, task: str, model: str, rows: Sequence[Mapping], about: Mapping):
        """Write what lm-evaluation-harness said of a model, as of ``run_task``."""
        unseal(self.folder)
        write_task(self.of(task, model), rows, about)

    def sort_replies(self):
        """Sort the lines of a judge's replies, which were written in order of arrival."""
        path = self.folder / JUDGE_CACHE
        if path.exists():
            sort_rows(path)

    def note_time(self, **entry):
        """Append a line to the timings."""
        append_rows(self.folder / TIMINGS, [entry])

    def _note(self, settings, command):
        unseal(self.folder)
        write_json(self.folder / SETTINGS, {"settings": settings, "command": command})

    def _has_measured(self, name, settings):
        """Whether any row has the metric of a teacher, an sbert model or a judge."""
        for benchmark, model in product(settings["benchmarks"], settings["models"]):
            if name == "teacher":
                rows, key = self.references(benchmark, model), "kl"
            else:
                units = (Unit(benchmark, model, seed) for seed in settings["seeds"])
                rows, key = [r for unit in units for r in self.answers(unit) or ()], name
            if any(row.get(key) is not None for row in rows or ()):
                return True
        return False


@contextmanager
def _advised(advice) -> Iterator[None]:
    """Say what to do about a damaged file."""
    try:
        yield
    except DamagedFile as error:
        raise DamagedFile(f"{error}; {advice}") from error
