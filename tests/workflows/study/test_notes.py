"""What a study is made of must not change while it runs."""

import pytest
import toys

from distilllens.workflows.study.conductor import Conductor
from distilllens.workflows.study.file import read_study
from distilllens.workflows.study.runs import TRAIN, Folders, Run, Task

STUDY = """\
base:
  model_name_or_path: student
  teacher_model_name_or_path: teacher
  train_file: train.jsonl
  eval_file: dev.jsonl
  max_steps: 4
  max_length: 64
  use_cpu: true
methods: {kd: {lens_weight: 0}, lens: {lens_weight: 1.0}}
seeds: 2
"""


@pytest.fixture
def notes(tmp_path, monkeypatch):
    """The notes of a study that has read its files once."""
    monkeypatch.chdir(tmp_path)
    for name, width in (("student", 16), ("teacher", 24)):
        toys.llama(3, width).save_pretrained(name)
        toys.tokenizer().save_pretrained(name)
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "a", "completion": " b"}\n')
    (tmp_path / "study.yaml").write_text(STUDY)
    notes = Conductor(read_study("study.yaml"), Folders(tmp_path / "out"), 1).notes
    notes.made_of(TASK)
    return notes


TASK = Task(Run("kd", 2, None), TRAIN)


def test_a_run_begins_with_what_the_study_began_with(notes):
    assert notes.begun(TASK) == notes.made_of(TASK)


@pytest.mark.parametrize("name", ["train", "dev"])
def test_data_that_changed_while_the_study_ran_are_refused(notes, tmp_path, name):
    (tmp_path / f"{name}.jsonl").write_text('{"prompt": "a", "completion": " c"}\n')
    with pytest.raises(ValueError, match=f"kd/seed-2 was not begun: .*{name}.jsonl is another"):
        notes.begun(TASK)


def test_a_model_that_changed_while_the_study_ran_is_refused(notes):
    toys.llama(3, 24, seed=5).save_pretrained("teacher")
    with pytest.raises(ValueError, match="teacher_model_name_or_path is another model now, chang"):
        notes.begun(TASK)
