"""The text of a token is visible, in whatever form the vocabulary stores it."""

import pytest
import toys
from transformers import AutoTokenizer

from distilllens.report.tokens import token_text, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" the", "␣the"),
        ("\n\t\r", "⏎⇥␍"),
        ("a b", "a␣b"),
        ("\x00", "⟨U+0000⟩"),
        ("\u202e", "⟨U+202E⟩"),  # would turn the line round
        ("\u00a0", "⟨U+00A0⟩"),
        ("\u0301", "◌\u0301"),
        ("<script>", "<script>"),
        ("é日", "é日"),
        ("", ""),
    ],
)
def test_blanks_and_controls_are_visible(text, shown):
    """Each becomes a symbol or its code point; all other text stays the same."""
    assert visible(text) == shown


def test_words_and_padding_of_the_vocabulary():
    """A word stays the same; an id without a token is in brackets."""
    tokenizer = toys.tokenizer()
    assert token_text(tokenizer, 2) == "the"
    assert token_text(tokenizer, 0) == "<eos>"
    assert token_text(tokenizer, 5000) == "[5000]"


def test_fragments_of_characters_stay_as_the_vocabulary_has_them(shared):
    """Whole characters of byte tokens are shown, and parts of a character are kept."""
    gpt2 = AutoTokenizer.from_pretrained(shared / "tokenizers" / "gpt2")
    (the,) = gpt2(" the")["input_ids"]
    assert token_text(gpt2, the) == "␣the"
    pieces = [token_text(gpt2, i) for i in gpt2("😀")["input_ids"]]
    assert len(pieces) > 1 and all(piece and "\ufffd" not in piece for piece in pieces)
    llama = AutoTokenizer.from_pretrained(shared / "tokenizers" / "llama2-32k")
    assert token_text(llama, llama.convert_tokens_to_ids("▁the")) == "␣the"
    assert token_text(llama, llama.convert_tokens_to_ids("<0x0A>")) == "⏎"
    assert token_text(llama, llama.convert_tokens_to_ids("<0xE2>")) == "<0xE2>"


def test_every_token_of_a_vocabulary_says_something(shared):
    """No token of 32000 is empty or contains an invisible character."""
    llama = AutoTokenizer.from_pretrained(shared / "tokenizers" / "llama2-32k")
    texts = [token_text(llama, i) for i in range(0, len(llama), 7)]
    assert all(text and visible(text) == text for text in texts)
