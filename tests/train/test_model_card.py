"""The card names what a model was made from, and how an adapter is loaded."""

import re

import pytest
import torch
import toys
import yaml

from distilllens.train.model_card import model_card


def card(student, **more):
    """The card of a run of plain SFT, and its metadata."""
    text = model_card("mine", student, None, None, True, **more)
    return text, yaml.safe_load(text.split("---")[1])


@pytest.mark.parametrize(
    ("student", "base"),
    [
        ("org/model", "org/model"),
        ("gpt2", "gpt2"),
        ("/models/mine", None),  # the hub refuses what is no id
        ("random weights, {'model_type': 'gpt2'}", None),
        ("a model object", None),
    ],
)
def test_the_base_model_is_one_of_the_hub(tmp_path, monkeypatch, student, base):
    """Folders and descriptions are in the table alone."""
    monkeypatch.chdir(tmp_path)
    text, head = card(student)
    assert head.get("base_model") == base and head["library_name"] == "transformers"
    assert student.split(",")[0] in text


def test_the_card_of_an_adapter_loads_it(tmp_path):
    """Its snippet runs, and gives the base model with the adapter."""
    toys.llama().save_pretrained(tmp_path / "base")
    from transformers import AutoModelForCausalLM

    student = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    trainer = toys.trainer(
        tmp_path / "out", student=student, peft_config=toys.lora(), max_steps=1, save_strategy="no"
    )
    trainer.train()
    trainer.save_model()
    (tmp_path / "out" / "README.md").unlink()
    trainer.create_model_card()
    text = (tmp_path / "out" / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["library_name"] == "peft" and str(tmp_path / "base") in text
    (snippet,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    found = {}
    exec(snippet, found)
    trained = {n: p.detach() for n, p in trainer.model.named_parameters() if "lora" in n}
    loaded = dict(found["model"].named_parameters())
    assert all(torch.equal(loaded[n], p) for n, p in trained.items())
