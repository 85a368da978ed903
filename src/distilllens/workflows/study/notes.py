"""What was done of a study, and of what: values, files and models that must still be the same."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable
from typing import Any, NotRequired, TypedDict

from distilllens.stored import read_stored
from distilllens.workflows.study.materials import Materials, data_of, files_of
from distilllens.workflows.study.matrix import Study
from distilllens.workflows.study.runs import TRAIN, Folders, Task
from distilllens.workflows.study.terms import Terms

logger = logging.getLogger(__name__)


class Note(TypedDict):
    """What a task was made of.

    Args:
        teacher: from which the distance was measured, whatever trained the student.
        diverged: why a candidate for the learning rate is none.
    """

    values: dict[str, Any]
    files: dict[str, str]
    models: NotRequired[dict[str, dict[str, str]]]
    teacher: NotRequired[str | None]
    diverged: NotRequired[str]


class Notes:
    """Makes notes on tasks, and compares those that are there with the study as it is now."""

    def __init__(self, study: Study, folders: Folders, terms: Terms):
        self.study, self.folders, self.terms = study, folders, terms
        self.materials = Materials()

    def of(self, task: Task) -> Note:
        """The note of a task that is done."""
        return read_stored(self.folders.note(task), Note)

    def made_of(self, task: Task) -> Note:
        """What decides the outcome of a task, as a note has it."""
        study = self.study
        if task.kind == TRAIN:
            values = self.terms.applied(task.run.method, study.recipe(task.run.method))
            note = {
                "values": values,
                "files": self.materials.files([*data_of(values), *files_of(values["eval_file"])]),
                "models": self.materials.models(values),
                "teacher": study.common_teacher,
            }
        else:
            files = self.materials.files(files_of(study.evaluate["benchmarks"]))
            note = {"values": dict(study.evaluate), "files": files, "models": {}}
        return json.loads(json.dumps(note))

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

    def forget_other_teachers(self, tasks: Iterable[Task]):
        """Forget the scores of runs that were measured against another teacher than now.

        A method that was added or removed may have changed the one teacher that all methods have.
        The runs stay; they are scored again.

        Args:
            tasks: that ``check`` has passed.
        """
        for task in tasks:
            if task.kind != TRAIN or not task.is_done(self.folders):
                continue
            note = self.of(task)
            # Before it was noted, each student was measured against its own teacher.
            before = note.get("teacher", note["values"].get("teacher_model_name_or_path"))
            if before != self.study.common_teacher and "diverged" not in note:
                self.folders.note(task).unlink()
                shutil.rmtree(self.folders.dev(task.run), ignore_errors=True)
                self.folders.depths(task.run).unlink(missing_ok=True)
                logger.info(
                    "%s is scored again: the teacher that all methods share has changed",
                    task.run.name,
                )

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
                    f"name another --output, or remove {self._made_by(task)}"
                )

    def _made_by(self, task):
        """What a task has made, in words: with it removed, the task is done again."""
        if task.kind == TRAIN:
            return f"{self.folders.run(task.run)} and {self.folders.note(task).parent}"
        return f"{self.folders.answers(task.run)} and {self.folders.note(task)}"


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
