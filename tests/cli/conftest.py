"""A workshop for tests of commands that train."""

import json

import pytest
import toys


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    """A folder with a student, a teacher, data and a recipe; the tests run inside it."""
    toys.llama(3, 16).save_pretrained(tmp_path / "student")
    toys.llama(4, 24, seed=1).save_pretrained(tmp_path / "teacher")
    for name in ("student", "teacher"):
        toys.tokenizer().save_pretrained(tmp_path / name)
    (tmp_path / "teacher" / "trainer_state.json").write_text("{}")  # as if it were a checkpoint
    rows = [
        {"instruction": e["prompt"], "output": e["completion"].strip()} for e in toys.examples(8)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISTILLLENS_DEBUG", raising=False)
    return tmp_path
