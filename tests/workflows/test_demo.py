"""The demo's parts that need no training: its measure of answers, and its checks from Python."""

from types import SimpleNamespace

import pytest
import toys

from distilllens.evaluate.exact import exact_match
from distilllens.workflows import demo


def test_exact_answers_are_not_exact_match(monkeypatch):
    """Character for character; evaluate's metric normalises first."""
    answers = ["the cat", "The cat.", "a dog", "the cat"]
    examples = [{"prompt": "the", "completion": "the cat"}] * 4

    class Backend:
        def __init__(self, model, tokenizer, decoding):
            assert decoding.greedy and decoding.max_new_tokens == 3  # two words and the end

        def encode(self, prompts):
            return prompts

        def generate(self, prompts, seed):
            return [SimpleNamespace(text=text) for text in answers]

    monkeypatch.setattr(demo, "TransformersBackend", Backend)
    found = demo.right_answers(None, examples, toys.tokenizer())
    assert found == [True, False, False, True]
    assert [exact_match(answer, ["the cat"]) for answer in answers] == [100, 100, 0, 100]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "--steps must be at least 1, got 0"),
        ({"seed": -1}, "--seed must be between 0 and"),
    ],
)
def test_arguments_are_checked(tmp_path, settings, message):
    """As those of the command are, and nothing is written."""
    with pytest.raises(ValueError, match=message):
        demo.run_demo("teacher", tmp_path / "new", **settings)
    assert not (tmp_path / "new").exists()
