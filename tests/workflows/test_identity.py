"""What identifies a run's tokens and rows."""

import pytest
import toys
from tokenizers import Tokenizer, normalizers
from tokenizers.processors import TemplateProcessing

from distilllens.workflows.identity import rows_identity, tokenizer_identity


def bos_in_front(tokenizer):
    backend = tokenizer.backend_tokenizer
    token = tokenizer.convert_ids_to_tokens(1)
    backend.post_processor = TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A $B", special_tokens=[(token, 1)]
    )


def replaced(tokenizer):
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("Reverse", "reverse")


def other_end(tokenizer):
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(2)


def other_template(tokenizer):
    tokenizer.chat_template = "{{ messages }}"


@pytest.mark.parametrize("change", [bos_in_front, replaced, other_end, other_template])
def test_whatever_changes_tokens_is_another_tokenizer(change):
    """Not only its vocabulary; using it changes nothing."""
    before, tokenizer = tokenizer_identity(toys.tokenizer()), toys.tokenizer()
    assert isinstance(tokenizer.backend_tokenizer, Tokenizer)
    tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=2)
    assert tokenizer_identity(tokenizer) == before
    change(tokenizer)
    assert tokenizer_identity(tokenizer) != before


def test_rows_are_identified_by_contents_and_order():
    """Equal rows are equal however they were built."""
    rows = [{"text": "a", "n": None}, {"text": "b"}]
    assert rows_identity(rows) == rows_identity([dict(reversed(row.items())) for row in rows])
    assert rows_identity(rows) != rows_identity(rows[::-1])
    assert rows_identity(rows) != rows_identity([{"text": "a"}, {"text": "b"}])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("1:9", "teacher depth 9, but the teacher has depths 0 to 4"),
        ("7:1", "student depth 7, but the student has depths 0 to 3"),
        ("4", "4 evenly spread pairs do not fit 3 student and 4 teacher blocks"),
        ("1:9 from a cache", "teacher depth 9, but the teacher has depths 0 to 4"),
        ("1:9 of a random student", "teacher depth 9, but the teacher has depths 0 to 4"),
    ],
)
@pytest.mark.parametrize("command", ["train", "cache"])
def test_depths_are_refused_before_weights_are_loaded(workshop, capsys, command, spec, message):
    """By the configurations or the cache's manifest: the weights are no longer there."""
    from distilllens.cli import main

    spec, _, source = spec.partition(" ")
    changes = {"teacher_cache": "cache"}
    if source == "from a cache":
        toys.recipe(workshop, lens_layers="1:2", **changes)
        assert main(["cache", "--config", "recipe.yaml"]) == 0
        if command == "train":
            changes["teacher_model_name_or_path"] = None
    if source == "of a random student":
        shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
        changes |= {"model_name_or_path": None, "student_config": {"model_type": "gpt2", **shape}}
        changes["tokenizer_name_or_path"] = "student"
    for name in ("student", "teacher"):
        (workshop / name / "model.safetensors").unlink()
    toys.recipe(workshop, lens_layers=spec, **changes)
    assert main([command, "--config", "recipe.yaml"]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (workshop / "out").exists()
