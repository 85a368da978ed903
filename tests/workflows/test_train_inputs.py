"""What is encoded before there is a trainer is encoded as in it."""

import json

import pytest
import toys
from data import tool_records

from distilllens.cli import main
from distilllens.loading import with_chat_template

EVALUATED = {
    "eval_file": "train.jsonl",
    "eval_generate": True,
    "eval_generate_kwargs": {"max_new_tokens": 4},
    "eval_strategy": "steps",
    "eval_steps": 2,
}


@pytest.fixture
def chats(workshop):
    """A workshop whose data are conversations and whose tokenizers have no chat template."""
    for name in ("student", "teacher"):
        toys.tokenizer([*toys.WORDS, "user", "assistant"]).save_pretrained(workshop / name)
        toys.llama(3).save_pretrained(workshop / name)
    rows = tool_records.conversations()
    (workshop / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (workshop / "chat.jinja").write_text(tool_records.TEMPLATE)
    return workshop


@pytest.mark.parametrize("command", ["train", "cache"])
def test_a_template_by_path_serves_what_comes_before_the_trainer(chats, capsys, command):
    """Long prompts are counted and answers checked with it; without it, one line says how."""
    settings = {"teacher_cache": "states"} if command == "cache" else EVALUATED
    toys.recipe(chats, max_prompt_length=9, **settings)
    assert main([command, "--config", "recipe.yaml"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert "has no chat template; set chat_template_path" in said[-1]
    toys.recipe(chats, max_prompt_length=9, chat_template_path="chat.jinja", **settings)
    assert main([command, "--config", "recipe.yaml"]) == 0
    assert "leaving out 1 of 4 train records" in capsys.readouterr().err


def test_a_template_of_another_model_brings_its_tokens(tmp_path):
    """Template, added tokens and end of sequence, as TRL clones them, into a copy."""
    source = tool_records.tokenizer()
    source.add_special_tokens({"eos_token": "<|end|>"})
    source.save_pretrained(tmp_path)
    own = toys.tokenizer()
    made = with_chat_template(own, str(tmp_path))
    assert made.chat_template == tool_records.TEMPLATE and made.eos_token == "<|end|>"
    assert made("<|end|>")["input_ids"] == [len(own)]
    assert own.chat_template is None and own.eos_token == "<eos>" and len(own) == 22


def test_a_template_that_is_not_there_is_said(tmp_path):
    """One line each."""
    toys.tokenizer().save_pretrained(tmp_path)
    for path, message in (
        (str(tmp_path), "its tokenizer has no chat template"),
        (str(tmp_path / "none.jinja"), "chat_template_path .*none.jinja"),
    ):
        with pytest.raises(ValueError, match=message):
            with_chat_template(toys.tokenizer(), path)
