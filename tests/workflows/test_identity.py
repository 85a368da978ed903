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
