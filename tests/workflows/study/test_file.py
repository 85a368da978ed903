"""A study file: what it means, and its mistakes, each told with file and line."""

import pytest

from distilllens.workflows.study.file import read_study

STUDY = """\
base:
  model_name_or_path: student
  teacher_model_name_or_path: teacher
  train_file: train.jsonl
  eval_file: train.jsonl
  max_steps: 2
methods:
  kd: {lens_weight: 0}
  lens:
    lens_weight: 2.0
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Writes study.yaml beside what looks like models and data, and reads it."""
    monkeypatch.chdir(tmp_path)
    for name in ("student", "teacher"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "train.jsonl").write_text('{"instruction": "a", "output": "b"}\n')

    def read(text):
        (tmp_path / "study.yaml").write_text(text)
        return read_study("study.yaml")

    return read


def test_defaults(study):
    """Three seeds, the first method as baseline, equal steps, no learning rates."""
    found = study(STUDY)
    assert found.seeds == {"kd": (1, 2, 3), "lens": (1, 2, 3)}
    assert (found.baseline, found.equal, found.learning_rates) == ("kd", "steps", ())
    assert found.recipe("lens")["lens_weight"] == 2.0
    assert found.recipe("kd")["max_steps"] == 2
    assert found.recipe("kd")["report"] is False


def test_a_method_may_have_fewer_seeds(study):
    """They are taken out of its recipe."""
    found = study(STUDY.replace("lens_weight: 2.0", "seeds: [2, 5]") + "seeds: [1, 2, 5]\n")
    assert found.seeds == {"kd": (1, 2, 5), "lens": (2, 5)}
    assert found.methods["lens"] == {}
    assert found.all_seeds == (1, 2, 5)


def test_the_base_as_it_is_is_a_method(study):
    """``{}`` is a method; so is nothing at all."""
    found = study(STUDY.replace("lens:\n    lens_weight: 2.0", "lens: {}"))
    assert found.methods["lens"] == {}
    assert study(STUDY.replace("\n    lens_weight: 2.0", "")).methods["lens"] == {}


def test_learning_rates(study):
    """Numbers, chosen by cross-entropy unless told otherwise."""
    found = study(STUDY + "learning_rates: [1.0e-3, 2]\nchoose_by: kl\n")
    assert found.learning_rates == (1e-3, 2.0)
    assert found.choose_by == "kl"


BAD = {
    "no base": (STUDY[STUDY.index("methods") :], "study.yaml: base is missing"),
    "base is a list": ("base: [1]\n", "study.yaml:1: base must be"),
    "no methods": (STUDY[: STUDY.index("methods")], "study.yaml: methods is missing"),
    "no method": (STUDY[: STUDY.index("methods")] + "methods: {}\n", "methods is missing"),
    "methods as a list": (
        STUDY[: STUDY.index("methods")] + "methods: [kd]\n",
        "study.yaml:7: methods must be",
    ),
    "a method that is a word": (
        STUDY.replace("{lens_weight: 0}", "plain"),
        "study.yaml:8: method kd must be a mapping of recipe fields, got 'plain'",
    ),
    "an unknown field of a method": (
        STUDY.replace("lens_weight: 2.0", "lens_wieght: 2.0"),
        "study.yaml:10: unknown field 'lens_wieght'; did you mean lens_weight?",
    ),
    "an unknown field of the base": (
        STUDY.replace("max_steps", "max_step"),
        "study.yaml:6: unknown field 'max_step'; did you mean max_steps?",
    ),
    "an unknown field of the study": (STUDY + "seed: 3\n", "study.yaml:11: unknown field 'seed'"),
    "a text for a number": (
        STUDY.replace("lens_weight: 2.0", "lens_weight: high"),
        "study.yaml:10: lens_weight must be a number, got the text 'high'",
    ),
    "a number below its range": (
        STUDY.replace("lens_weight: 2.0", "warmup_steps: -1"),
        "study.yaml:10: warmup_steps",
    ),
    "an unknown divergence": (
        STUDY.replace("lens_weight: 2.0", "lens_divergence: jds"),
        "study.yaml:10: lens_divergence: unknown divergence 'jds'",
    ),
    "a baseline that is no method": (
        STUDY + "baseline: len\n",
        "study.yaml:11: baseline 'len' is none of the methods (kd, lens); did you mean lens?",
    ),
    "no seed": (STUDY + "seeds: []\n", "study.yaml:11: seeds needs at least one"),
    "0 seeds": (STUDY + "seeds: 0\n", "study.yaml:11: seeds needs at least one"),
    "a seed twice": (STUDY + "seeds: [1, 2, 1]\n", "study.yaml:11: seeds names 1 twice"),
    "a negative seed": (STUDY + "seeds: [-1]\n", "a seed is a whole number from 0"),
    "a seed of its own": (
        STUDY.replace("lens_weight: 2.0", "seeds: [9]"),
        "study.yaml:10: method lens has seed 9, which is none of the study's (1, 2, 3)",
    ),
    "a baseline with fewer seeds": (
        STUDY.replace("{lens_weight: 0}", "{lens_weight: 0, seeds: [1]}"),
        "the baseline kd does not have seed 2, which another method has",
    ),
    "a folder for a name": (STUDY.replace("kd:", "a/b:"), "study.yaml:8: a method's name is"),
    "a number for a name": (STUDY.replace("kd:", "7:"), "study.yaml:8: a method's name is"),
    "names of one folder": (
        STUDY.replace("lens:\n", "KD:\n"),
        "study.yaml:9: methods kd and KD would share a folder",
    ),
    "a method twice": (STUDY.replace("lens:\n", "kd:\n"), "study.yaml:9: kd is given twice"),
    "an output_dir": (
        STUDY.replace("max_steps: 2", "output_dir: runs"),
        "study.yaml:6: base sets output_dir, which the study sets for every run",
    ),
    "a seed in a method": (
        STUDY.replace("lens_weight: 2.0", "seed: 2"),
        "study.yaml:10: method lens sets seed, which the study sets",
    ),
    "no development set": (
        STUDY.replace("  eval_file: train.jsonl\n", ""),
        "study.yaml:1: base needs eval_file",
    ),
    "another development set": (
        STUDY.replace("lens_weight: 2.0", "eval_file: train.jsonl"),
        "study.yaml:10: method lens sets eval_file: all methods share it",
    ),
    "other steps": (
        STUDY.replace("lens_weight: 2.0", "max_steps: 9"),
        "study.yaml:10: method lens sets max_steps: all runs have the same steps",
    ),
    "other batches": (
        STUDY.replace("lens_weight: 2.0", "per_device_train_batch_size: 2"),
        "study.yaml:10: method lens sets per_device_train_batch_size: equal: steps wants",
    ),
    "another student": (
        STUDY.replace("lens_weight: 2.0", "model_name_or_path: teacher"),
        "study.yaml:10: method lens sets model_name_or_path: all methods share it",
    ),
    "a rate and a list of rates": (
        STUDY.replace("max_steps: 2", "learning_rate: 1.0") + "learning_rates: [1]\n",
        "study.yaml:6: base sets learning_rate, and each method's is chosen",
    ),
    "a rate of a method beside a list": (
        STUDY.replace("lens_weight: 2.0", "learning_rate: 1.0") + "learning_rates: [1]\n",
        "study.yaml:10: method lens sets learning_rate: each method's is chosen",
    ),
    "a rate twice": (STUDY + "learning_rates: [1, 1.0]\n", "learning_rates names 1 twice"),
    "a rate of 0": (STUDY + "learning_rates: [0]\n", "a learning rate must be above 0, got 0"),
    "a rate as text": (
        STUDY + "learning_rates: [1e-3]\n",
        "study.yaml:11: learning_rates must be a list of numbers, got '1e-3' in it: YAML reads it",
    ),
    "one rate": (
        STUDY + "learning_rates: 0.001\n",
        "study.yaml:11: learning_rates must be a list of numbers such as [0.1, 0.2], got 0.001",
    ),
    "seeds that are none": (
        STUDY + "seeds: true\n",
        "seeds must be a whole number or a list of whole numbers such as [1, 2], got True",
    ),
    "blocks of several teachers": (
        STUDY.replace("model_name_or_path: student", "student_blocks: 2").replace(
            "lens_weight: 2.0", "teacher_model_name_or_path: other"
        ),
        "student_blocks are of the teacher, and the methods have several (teacher, other)",
    ),
    "terms that do not exist": (STUDY + "equal: time\n", "study.yaml:11: equal must be one of"),
    "an upload": (
        STUDY.replace("base:\n", "base:\n  push_to_hub: true\n", 1),
        "push_to_hub is not for a study",
    ),
    "a score that does not exist": (STUDY + "choose_by: loss\n", "choose_by must be one of"),
    "KL without a teacher": (
        STUDY.replace("  teacher_model_name_or_path: teacher\n", "") + "choose_by: kl\n",
        "study.yaml:10: choose_by kl needs one teacher with the student's tokenizer",
    ),
    "no hours": (STUDY + "max_hours: 0\n", "study.yaml:11: max_hours must be above 0, got 0"),
    "answers to nothing": (
        STUDY + "evaluate: {limit: 3}\n",
        "study.yaml:11: evaluate has no benchmarks",
    ),
    "an unknown field of evaluate": (
        STUDY + "evaluate:\n  benchmark: x\n",
        "study.yaml:12: unknown field 'benchmark'; did you mean benchmarks?",
    ),
    "a decoding seed twice": (
        STUDY + "evaluate: {benchmarks: train.jsonl, seeds: [1, 1]}\n",
        "study.yaml:11: seeds names 1 twice",
    ),
    "a number of decoding seeds": (
        STUDY + "evaluate: {benchmarks: train.jsonl, seeds: 3}\n",
        "study.yaml:11: seeds must be a list of whole numbers such as [1, 2], got 3",
    ),
    "data that are not there": (
        STUDY.replace("train_file: train.jsonl", "train_file: gone.jsonl"),
        "gone.jsonl",
    ),
    "a teacher that is not there": (
        STUDY.replace("path: teacher", "path: ./gone"),
        "study.yaml: method kd: cannot load the teacher './gone': no such folder",
    ),
    "no YAML": ("base: {", "study.yaml:1: broken YAML"),
    "no mapping": ("- base\n", "must be a mapping"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_line(study, case):
    """With file and line, what was found, and what would be right."""
    text, message = BAD[case]
    with pytest.raises(ValueError) as caught:
        study(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file():
    """A study file that is not there."""
    with pytest.raises(ValueError, match=r"gone\.yaml does not exist"):
        read_study("gone.yaml")
