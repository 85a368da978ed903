"""What was done of a study, and of what: values, files and models that must still be the same."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from distilllens.data import data_files
from distilllens.files import sha256
from distilllens.fingerprints import fingerprint
from distilllens.loading import load_config
from distilllens.stored import read_stored
from distilllens.workflows.study.matrix import Study
from distilllens.workflows.study.measures import files_of
from distilllens.workflows.study.runs import TRAIN, Folders, Task
from distilllens.workflows.study.terms import Terms

_MODELS = ("model_name_or_path", "teacher_model_name_or_path")


class Note(TypedDict):
    """What a task was made of; ``diverged``: why a candidate for the learning rate is none."""

    values: dict[str, Any]
    files: dict[str, str]
    models: NotRequired[dict[str, dict[str, str]]]
    diverged: NotRequired[str]


class Notes:
    """Makes notes on tasks, and compares those that are there with the study as it is now."""

    def __init__(self, study: Study, folders: Folders, terms: Terms):
        self.study, self.folders, self.terms = study, folders, terms
        self._known: dict[str, Any] = {}

    def of(self, task: Task) -> Note:
        """The note of a task that is done."""
        return read_stored(self.folders.note(task), Note)

    def made_of(self, task: Task) -> Note:
        """What decides the outcome of a task, as a note has it."""
        study, models = self.study, {}
        if task.kind == TRAIN:
            values = self.terms.applied(task.run.method, study.recipe(task.run.method))
            names = [*files_of(values.get("train_file") or []), *files_of(values["eval_file"])]
            trusted = bool(values.get("trust_remote_code"))
            named = {n: values[n] for n in _MODELS if values.get(n)}
            for number, entry in enumerate(values.get("teachers") or [], 1):
                named |= {f"teacher {number}": entry["model"]} if entry.get("model") else {}
            models = {role: self._model(name, trusted) for role, name in named.items()}
        else:
            values, names = dict(study.evaluate), study.evaluate["benchmarks"]
        there = [name for name in names if Path(name).exists()]
        files = [str(file) for file in data_files(there, warn=False)] if there else []
        hashes = {file: self._once(file, lambda file=file: sha256(file)) for file in files}
        return json.loads(json.dumps({"values": values, "files": hashes, "models": models}))

    def begun(self, task: Task) -> Note:
        """The note of a task that begins now, of files and models as they are now.

        Raises:
            ValueError: one that is no longer what it was when the study was started.
        """
        known = self.made_of(task)
        now = Notes(self.study, self.folders, self.terms).made_of(task)
        if found := _difference(known, now):
            raise ValueError(
                f"{self.folders.output}: {task.run.name} was not begun: {found}, changed while the "
                "study ran; put it back, or start again with another --output"
            )
        return now

    def _model(self, name, trusted):
        def read():
            return fingerprint(name, load_config("model", name, trust_remote_code=trusted))

        return self._once(f"model {name}", read)

    def _once(self, key, read):
        if key not in self._known:
            self._known[key] = read()
        return self._known[key]

    def check(self, tasks: Iterable[Task]):
        """Refuse what was done with other values, files or models than the study has now.

        Raises:
            ValueError: with the first difference.
        """
        for task in tasks:
            if not task.is_done(self.folders):
                continue
            if found := _difference(self.of(task), self.made_of(task)):
                raise ValueError(
                    f"{self.folders.output}: {task.run.name} was done with another study: {found}; "
                    f"name another --output, or remove {self.folders.run(task.run)} and "
                    f"{self.folders.note(task).parent}"
                )


def _difference(was, now):
    """The first difference of two notes, in words; None if there is none."""
    for part in ("values", "files", "models"):
        old, new = was.get(part, {}), now[part]
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) == new.get(name):
                continue
            if part == "values":
                return f"{name} was {old.get(name)!r} and is now {new.get(name)!r}"
            return f"{name} is another {part.removesuffix('s')} now"
    return None
