"""Models that do not fit are refused by their files, before a weight is read."""

import json
import re
import shutil

import pytest
import toys

from distilllens.cli import main

ONE = {"teacher_model_name_or_path": None}
REFUSED = {
    "tokenizer": (
        {"teacher_model_name_or_path": "foreign"},
        "different tokenizers: .*; cross_tokenizer: shared compares what both read",
    ),
    "tokenizer of one of several": (
        ONE
        | {
            "teachers": [
                {"model": "teacher", "weight": 1},
                {"model": "foreign", "weight": 1},
            ]
        },
        r"entry 2 of teachers \(foreign\): student and teacher .*; distil between models that sha",
    ),
    "weights of pairs": (
        {"lens_pair_weights": [1, 2, 3, 4, 5]},
        "lens_pair_weights must be one for each of the 2 pairs .*, got 5",
    ),
    "tokens without an embedding": (
        {"model_name_or_path": "small", "lens_layers": "1:2"},
        "the data hold token .*, but the student has only 8 embeddings: its tokenizer is another",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_files_alone(workshop, capsys, name):
    """The weights are no longer there; of several teachers no other way is offered."""
    shutil.copytree("teacher", "foreign")
    toys.tokenizer(toys.WORDS[::-1]).save_pretrained("foreign")
    toys.llama(3, 16, vocab=8).save_pretrained("small")
    toys.tokenizer().save_pretrained("small")
    for each in ("student", "teacher", "foreign", "small"):
        (workshop / each / "model.safetensors").unlink()
    changes, message = REFUSED[name]
    toys.recipe(workshop, **changes)
    assert main(["train", "--config", "recipe.yaml"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.search(message, said), said
    assert "teachers" not in said or "cross_tokenizer" not in said
    assert not (workshop / "out").exists()


def test_tokens_of_a_template_get_embeddings(workshop):
    """A base student takes the template of a chat teacher, whose tokens it does not have yet."""
    base, chat = toys.tokenizer(), toys.tokenizer()
    size = len(base)
    chat.add_tokens(["<im>"], special_tokens=True)
    chat.chat_template = (
        "{% for m in messages %}<im> {{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}<im> {% endif %}"
    )
    for name, tokenizer in (("student", base), ("teacher", chat)):
        toys.llama(3, 16, vocab=len(tokenizer)).save_pretrained(name)
        tokenizer.save_pretrained(name)
    rows = [{"instruction": "the cat", "output": "sat on"}] * 4
    (workshop / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"chat": True, "chat_template_path": "teacher", "lens_layers": "1:1"}
    toys.recipe(workshop, max_steps=1, **fields)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    config = json.loads((workshop / "out" / "config.json").read_text())
    assert config["vocab_size"] > size


def test_processes_are_not_started_for_what_files_tell(workshop, capfd):
    """Depths, tokenizers and pairs are checked once, before any process starts."""
    toys.recipe(workshop, lens_layers="1:9")
    assert main(["train", "--config", "recipe.yaml", "--num_processes", "2"]) == 2
    said = capfd.readouterr().err.splitlines()
    assert "teacher depth 9, but the teacher has depths 0 to 4" in said[-1]
    assert not any(line.startswith("starting") for line in said)


SAME = {
    "one": ({}, True),
    "a copy": ({"teacher_model_name_or_path": "copy"}, True),
    "several, all of them": (
        ONE | {"teachers": [{"model": "student", "weight": 1}, {"model": "copy", "weight": 2}]},
        True,
    ),
    "several, one of them": (
        ONE | {"teachers": [{"model": "student", "weight": 1}, {"model": "teacher", "weight": 2}]},
        False,
    ),
    "learns against noise": ({"neftune_noise_alpha": 5}, False),
    "held near its start": ({"cross_entropy_weight": 1}, False),
    "taught by its own last depth": ({"lens_layers": "exits"}, False),
    "without the lens": ({"lens_layers": "exits", "lens_weight": 0}, True),
    "another": ({"teacher_model_name_or_path": "teacher"}, False),
}


@pytest.mark.parametrize("name", SAME)
def test_a_student_that_is_its_teacher_is_told(workshop, caplog, name):
    """Where every loss is 0 from the start; the run goes on."""
    changes, told = SAME[name]
    shutil.copytree("student", "copy")
    fields = {"teacher_model_name_or_path": "student", "max_steps": 1, "report": False}
    toys.recipe(workshop, **(fields | changes))
    with caplog.at_level("WARNING", "distilllens"):
        assert main(["train", "--config", "recipe.yaml"]) == 0
    lines = [r.getMessage() for r in caplog.records if "the same model" in r.getMessage()]
    assert len(lines) == told
