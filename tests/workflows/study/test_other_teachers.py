"""Studies whose students cannot all be measured against one teacher: they are scored without."""

import json

import pytest
import toys
from train.two_tokenizers import pair_in, student_tokenizer
from workflows.study.test_command import run

from distilllens.cli import main

BASE = """\
base:
  model_name_or_path: student
  train_file: train.jsonl
  eval_file: dev.jsonl
  max_steps: 2
  per_device_train_batch_size: 2
  max_length: 128
  save_strategy: "no"
  use_cpu: true
  report_to: none
"""
TWO_TOKENIZERS = f"""\
{BASE}  teacher_model_name_or_path: teacher
  cross_tokenizer: shared
methods:
  sft: {{output_weight: 0.0, lens_weight: 0.0, cross_entropy_weight: 1.0}}
  kd: {{lens_weight: 0.0}}
  uld: {{lens_weight: 0.0, cross_tokenizer: uld}}
seeds: 1
evaluate: {{benchmarks: [dev.jsonl], seeds: [10], max_new_tokens: 2}}
"""
TWO_TEACHERS = f"""\
{BASE}methods:
  one: {{teacher_model_name_or_path: teacher, lens_layers: "2:2"}}
  other: {{teacher_model_name_or_path: second, lens_layers: "2:2"}}
  both: {{teachers: [{{model: teacher, weight: 1.0}}, {{model: second, weight: 2.0}}]}}
seeds: 1
"""


def furnish(folder, study):
    """A student and the teachers, rows and the study."""
    pair = pair_in(folder / "teacher")
    if "second" in study:
        toys.llama(4, 24, vocab=300, positions=256, seed=1).save_pretrained(folder / "teacher")
        toys.llama(3, 24, vocab=300, positions=256, seed=2).save_pretrained(folder / "second")
        for name in ("teacher", "second"):
            student_tokenizer().save_pretrained(folder / name)
    pair.student().save_pretrained(folder / "student")
    pair.student_words.save_pretrained(folder / "student")
    rows = [
        {"instruction": e["prompt"], "output": e["completion"].strip()} for e in toys.examples(14)
    ]
    for name, part in {"train": rows[:8], "dev": rows[8:]}.items():
        text = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(text)
    (folder / "study.yaml").write_text(study)


@pytest.mark.parametrize(
    ("text", "caches"),
    [(TWO_TOKENIZERS, 2), (TWO_TEACHERS, 2)],
    ids=["two tokenizers", "two teachers"],
)
def test_a_study_without_one_common_teacher(tmp_path, text, caches):
    """Likelihood and answers, and a line that says what is not measured; each teacher runs once."""
    furnish(tmp_path, text)
    found = run("--config", "study.yaml", "--output", "out", folder=tmp_path)
    assert found.returncode == 0, found.stderr
    said = (
        "The methods do not share one teacher with the students' tokenizer, so neither KL(teacher"
    )
    assert (
        found.stdout.count("KL(teacher") == found.stdout.count(said) == 1
        and "by depth\n" not in found.stdout
    )
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert len(scores["methods"]) == 3
    for one in scores["methods"].values():
        metrics = {each["metric"] for each in one["scores"]}
        assert "log_perplexity" in metrics and "kl" not in metrics
    assert len([p for p in (tmp_path / "out/caches").iterdir() if p.is_dir()]) == caches
    assert not list((tmp_path / "out/results").rglob("depths.json"))


def test_another_of_several_teachers_is_another_study(tmp_path):
    """What was done with the old one is not taken for it."""
    furnish(tmp_path, TWO_TEACHERS.replace("  other:", "  #"))
    words = ("--config", "study.yaml", "--output", "out")
    found = run(*words, folder=tmp_path)
    assert found.returncode == 0, found.stderr
    toys.llama(3, 24, vocab=300, positions=256, seed=3).save_pretrained(tmp_path / "second")
    found = run(*words, folder=tmp_path)
    assert found.returncode == 2
    assert "both/seed-1 was done with another study: teacher 2 is another model" in found.stderr


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        (TWO_TOKENIZERS, "choose_by: kl\n", "choose_by kl needs one teacher with the student's"),
        (TWO_TEACHERS, "choose_by: kl\n", "choose_by kl needs one teacher with the student's"),
        (TWO_TOKENIZERS, "equal: flops\n", "does not go with cross_tokenizer (method sft)"),
        (TWO_TEACHERS, "equal: flops\n", "does not go with teachers (method both)"),
    ],
)
def test_what_needs_one_teacher_is_refused(tmp_path, monkeypatch, capsys, text, more, message):
    """A choice by KL, and flops that are not counted."""
    furnish(tmp_path, text + more)
    monkeypatch.chdir(tmp_path)
    assert main(["study", "--config", "study.yaml", "--output", "out"]) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "study.yaml" in one]
    assert message in line


def test_a_method_less_may_give_all_one_teacher(tmp_path):
    """What is trained is scored again, whatever the hours, and not trained again."""
    one = "seeds: 1\nmax_hours: 1.0\n"
    text = TWO_TEACHERS.replace("seeds: 1\n", one)
    text = "\n".join(line for line in text.split("\n") if "both:" not in line)
    furnish(tmp_path, text + "# second\n")
    words = ("--config", "study.yaml", "--output", "out")
    assert run(*words, folder=tmp_path).returncode == 0
    text = "\n".join(line for line in text.split("\n") if "other:" not in line)
    (tmp_path / "study.yaml").write_text(text.replace("max_hours: 1.0", "max_hours: 1.0e-9"))
    weights = tmp_path / "out/runs/one/seed-1/model.safetensors"
    before = weights.stat().st_mtime_ns
    found = run(*words, folder=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "one/seed-1 is scored again" in found.stderr and "KL(teacher" in found.stdout
    assert weights.stat().st_mtime_ns == before
