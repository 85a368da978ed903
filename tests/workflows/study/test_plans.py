"""What could not be scored is refused before anything is trained."""

import json

import pytest
from workflows.study.toy_study import STUDY, furnish

from distilllens.workflows.study.file import read_study
from distilllens.workflows.study.plans import check_plans

LONG = {"instruction": " ".join(["the"] * 80), "output": "cat"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A study that can be scored."""
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(text):
    """Read a study and check it."""
    with open("study.yaml", "w") as file:
        file.write(text)
    check_plans(read_study("study.yaml"))


def test_a_study_that_can_be_scored(folder):
    """Nothing is said, and nothing made."""
    before = sorted(folder.rglob("*"))
    check(STUDY)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[test.jsonl]", "[gone.jsonl]", "study.yaml: evaluate: .*gone.jsonl"),
        ("[test.jsonl]", "[test.jsonl, test.jsonl]", "study.yaml: evaluate: .*test"),
        ("max_new_tokens: 4", "max_new_tokens: 0", "study.yaml: evaluate: .*max_new_tokens"),
        ("max_new_tokens: 4", "temperature: -1.0", "study.yaml: evaluate: .*temperature"),
        ("max_new_tokens: 4", "top_p: 5.0", "study.yaml: evaluate: .*top_p"),
        ("max_new_tokens: 4", "limit: 0", "study.yaml: evaluate: .*limit"),
        ("max_new_tokens: 4", "dtype: float64", "study.yaml: evaluate: .*dtype"),
        ("max_new_tokens: 4", "max_new_tokens: 4000", "study.yaml: evaluate: .*test example"),
        ("[test.jsonl]", "[long.jsonl]", "study.yaml: evaluate: long example 1"),
        ("dev.jsonl", "long.jsonl", "study.yaml: eval_file: long example 1: the prompt fills"),
        ("dev.jsonl", "empty.jsonl", "study.yaml: eval_file: .*empty"),
        (
            "model_name_or_path: student\n",
            "bf16: false\n",
            "study.yaml: method kd: .*model_name_or",
        ),
    ],
)
def test_what_cannot_be_scored(folder, old, new, message):
    """One line with the part of the study that is wrong."""
    short = json.loads((folder / "dev.jsonl").read_text().splitlines()[0])
    rows = {"long": [short, LONG], "empty": [short, {"instruction": "the", "output": ""}]}
    for name, part in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    assert old in STUDY
    with pytest.raises(ValueError, match=message) as error:
        check(STUDY.replace(old, new))
    assert "\n" not in str(error.value)
