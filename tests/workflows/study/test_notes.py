"""What a study is made of must not change while it runs."""

import json

import pytest
import toys

from distilllens.workflows.study.conductor import Conductor
from distilllens.workflows.study.file import read_study
from distilllens.workflows.study.runs import ANSWER, TRAIN, Folders, Run, Task

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


OTHER = "teacher_model_name_or_path: student"
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


def test_runs_that_were_measured_against_another_teacher_are_scored_again(notes):
    """Their scores go, their weights stay; before it was noted, it was each run's own teacher."""
    folders = notes.folders
    notes_of = ({}, {"teacher": "gone"}, {"teacher": "gone", "diverged": "at step 1"})
    for seed, teacher in enumerate(notes_of, 1):
        task = Task(Run("kd", seed, None), TRAIN)
        note = {name: value for name, value in notes.made_of(task).items() if name != "teacher"}
        folders.dev(task.run).mkdir(parents=True)
        folders.run(task.run).mkdir(parents=True)
        folders.note(task).write_text(json.dumps(note | teacher))
        (folders.dev(task.run) / "scores.json").write_text("{}")
    notes.forget_other_teachers([Task(Run("kd", seed, None), TRAIN) for seed in (1, 2, 3, 4)])
    left = [Run("kd", seed, None) for seed in (1, 2, 3)]
    assert [folders.dev(run).exists() for run in left] == [True, False, True]
    assert [Task(run, TRAIN).is_done(folders) for run in left] == [True, False, True]
    assert all(folders.run(run).is_dir() for run in left)


def test_other_questions_cost_the_answers_alone(notes):
    """The advice names what was answered, not the trained student."""
    task = Task(Run("kd", 1, None), ANSWER)
    object.__setattr__(notes.study, "evaluate", {"benchmarks": ["dev.jsonl"], "limit": 3})
    notes.folders.note(task).parent.mkdir(parents=True)
    notes.folders.note(task).write_text(json.dumps(notes.made_of(task)))
    notes.check([task])
    object.__setattr__(notes.study, "evaluate", {"benchmarks": ["dev.jsonl"], "limit": 4})
    with pytest.raises(ValueError, match=r"limit was 3 and is now 4") as error:
        notes.check([task])
    assert "remove" in str(error.value) and "/runs/" not in str(error.value)
    assert str(error.value).endswith("results/kd/seed-1/answer.json")


def test_two_runs_do_not_fill_one_cache_at_once(notes):
    """Which a recipe names; when a run is done, the cache holds what the others read."""
    text = STUDY.replace("max_steps: 4", "max_steps: 4\n  teacher_cache: given")
    with open("named.yaml", "w") as file:
        file.write(text)
    conductor = Conductor(read_study("named.yaml"), notes.folders, 2)
    (first,) = conductor._next()
    notes.folders.note(first).parent.mkdir(parents=True)
    notes.folders.note(first).write_text(json.dumps(conductor.notes.made_of(first)))
    assert len(conductor._next()) == 2


def test_another_teacher_in_the_file_is_refused_and_nothing_forgotten(notes):
    """A slip of the pen costs no scores."""
    task = Task(Run("kd", 1, None), TRAIN)
    folders = notes.folders
    folders.dev(task.run).mkdir(parents=True)
    folders.note(task).write_text(json.dumps(notes.made_of(task)))
    with open("other.yaml", "w") as file:
        file.write(STUDY.replace("teacher_model_name_or_path: teacher", OTHER))
    with pytest.raises(ValueError, match="teacher_model_name_or_path was 'teacher' and is now"):
        Conductor(read_study("other.yaml"), folders, 1)()
    assert task.is_done(folders) and folders.dev(task.run).is_dir()
