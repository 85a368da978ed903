"""A recipe with on-policy steps, as its user meets it: refused early, or told and reported."""

import json
import logging

import pytest
import toys
from transformers import AutoModelForCausalLM

from distilllens.cli import main
from distilllens.train.on_policy_checks import check_prompts

ON = {"on_policy_fraction": 0.5, "on_policy_from": 0.25, "on_policy_max_new_tokens": 5}
REFUSED = {
    "packing": ({"packing": True}, "does not go with packing"),
    "cache": ({"teacher_cache": "cache"}, "does not go with teacher_cache"),
    "no teacher": (
        {"teacher_model_name_or_path": None, "cross_entropy_weight": 1},
        "0.5 needs a teacher to compare the student's answers with; set teacher_model_name_or_pa",
    ),
    "cross-entropy alone": (
        {"output_weight": 0, "lens_weight": 0, "cross_entropy_weight": 1},
        "leaves nothing to learn from in its steps",
    ),
    "out of range": ({"on_policy_temperature": -1}, "on_policy_temperature must be above 0"),
    "targets alone": ({"completion_only_loss": False}, "nothing is left to answer"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_recipe_is_refused_before_torch_is_imported(workshop, capsys, monkeypatch, what):
    """One line with file and line of the recipe, status 2, and no folder."""
    changes, said = REFUSED[what]
    toys.recipe(workshop, **ON, **changes)
    monkeypatch.setattr("distilllens.cli.train.stage", lambda text: pytest.fail(text))
    assert main(["train", "--config", "recipe.yaml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and "recipe.yaml:" in line
    assert not (workshop / "out").exists()


@pytest.mark.parametrize("kind", ["texts", "conversations"])
def test_data_without_prompts_are_refused_before_a_model_is_loaded(
    workshop, capsys, monkeypatch, kind
):
    """Texts, and conversations of which every token is a target."""
    (workshop / "texts.txt").write_text("the cat sat<|endoftext|>a dog ran")
    turns = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]
    (workshop / "turns.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    (workshop / "template.jinja").write_text("{% for m in messages %}{{ m.content }} {% endfor %}")
    file = "texts.txt" if kind == "texts" else "turns.jsonl"
    toys.recipe(workshop, **ON, train_file=file, chat_template_path="template.jinja")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("no"))
    assert main(["train", "--config", "recipe.yaml"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    said = "every token of these training data" if kind == "texts" else "of conversations every"
    assert said in last and not (workshop / "out").exists()


@pytest.mark.parametrize("name", ["lmbda", "max_new_tokens", "max_completion_length"])
def test_names_of_trl_are_understood(workshop, capsys, name):
    """Those of GKDConfig and DistillationConfig lead to ours."""
    toys.recipe(workshop)
    assert main(["train", "--config", "recipe.yaml", f"--{name}", "1"]) == 2
    ours = "on_policy_fraction" if name == "lmbda" else "on_policy_max_new_tokens"
    assert f"did you mean --{ours}?" in capsys.readouterr().err


def test_a_run_tells_and_reports_it(workshop, caplog, capsys):
    """In the block before the first step, the log, the report and the model's card."""
    toys.recipe(workshop, **ON, max_steps=8, report=True)
    with caplog.at_level(logging.INFO):
        assert main(["train", "--config", "recipe.yaml"]) == 0
    (opening,) = [m for m in caplog.messages if m.startswith("student ")]
    told = "0.5 of the steps after the first 0.25 of them: answers of the student, up to 5 tokens,"
    assert told in " ".join(opening.split())
    log = json.loads((workshop / "out" / "trainer_state.json").read_text())["log_history"]
    assert [row["on_policy_steps"] for row in log[:2]] == [0, 0]
    assert sum(row.get("on_policy_steps", 0) for row in log) > 0
    page = (workshop / "out" / "report.html").read_text()
    for text in (told, "Answers of the student in training", "Their mean length"):
        assert text in page
    assert "| steps on the student's own answers | 0.5 of all |" in (
        workshop / "out" / "README.md"
    ).read_text().replace("\\", "")
    # The same command resumes, and finds nothing to do.
    assert main(["train", "--config", "recipe.yaml"]) == 0
    assert "nothing to do" in capsys.readouterr().err


def test_plain_runs_do_not_mention_it(workshop, caplog):
    """Neither in their block nor in their log."""
    toys.recipe(workshop, max_steps=1)
    with caplog.at_level(logging.INFO):
        assert main(["train", "--config", "recipe.yaml"]) == 0
    assert not any("policy" in message for message in caplog.messages)


TEXT, IDS = {"text": "the cat"}, {"input_ids": [2, 3]}
FIRST_ROWS = [
    ({"prompt": "the", "completion": "cat"}, True),
    ({"instruction": "the", "output": "cat"}, True),
    ({**TEXT, "prompt": "the", "completion": "cat"}, True),
    ({**IDS, "labels": [-100, 3]}, True),
    ({**IDS, "completion_mask": [0, 1]}, True),
    (TEXT, False),
    ({**TEXT, "prompt": "the", "completion": None}, False),
    (IDS, False),
]


@pytest.mark.parametrize(("row", "is_prompted"), FIRST_ROWS)
def test_which_rows_have_a_prompt(tmp_path, row, is_prompted):
    """By the fields that hold something; what is unknown is left to the trainer."""
    args = toys.config(tmp_path, **ON)
    if is_prompted:
        check_prompts(args, "teacher", [row])
        return
    with pytest.raises(ValueError, match="needs prompts for the student to answer"):
        check_prompts(args, "teacher", [row])
