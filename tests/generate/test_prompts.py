"""Prompts are encoded as in training, and padded on the left."""

import pytest
import torch
import toys
from data import tool_records
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from distilllens.data import encode_example
from distilllens.generate.prompts import encode_prompts, end_tokens, left_padded, up_to_end


def tokenizer(template):
    """The toy tokenizer that surrounds texts with <eos> as the template says; its id is 0."""
    made = toys.tokenizer()
    if template:
        made.backend_tokenizer.post_processor = TemplateProcessing(
            single=template, special_tokens=[("<eos>", 0)]
        )
    return made


@pytest.mark.parametrize("template", [None, "<eos> $A", "$A <eos>", "<eos> $A <eos>"])
def test_prompts_are_the_beginnings_of_training_rows(template, tmp_path, monkeypatch):
    """They equal the tokens that SFTTrainer does not count as completion."""
    made = tokenizer(template)
    monkeypatch.setattr(toys, "tokenizer", lambda: made)
    examples = toys.examples(8)
    rows = toys.trainer(tmp_path, teacher=None, cross_entropy_weight=1.0).train_dataset
    found = encode_prompts(made, [example["prompt"] for example in examples])
    for row, ids in zip(rows, found, strict=True):
        targets = [label != -100 for label in row["labels"]]
        assert row["input_ids"][: targets.index(True)] == ids
    assert (found[0][0] == 0) == (template or "").startswith("<eos>")


def test_special_tokens_of_the_text_itself_stay():
    """A prompt may end in one; only special tokens that the template appends are left out."""
    assert encode_prompts(tokenizer("$A <eos>"), ["the cat <eos>", ""]) == [[2, 3, 0], [0]]
    assert encode_prompts(tokenizer(None), []) == []


def test_prompts_are_written_with_their_tools():
    """Each prompt has its record's tools and template settings, as in a training row."""
    made, records = tool_records.tokenizer(), tool_records.conversations()
    found = encode_prompts(made, [record["prompt"] for record in records], records)
    for ids, record, written in zip(found, records, tool_records.WRITTEN, strict=True):
        assert made.decode(ids).startswith(f"{written} user".strip())
        row, start = encode_example(record, made)
        assert row[:start] == ids


def test_a_prompt_that_cannot_be_written_is_named():
    """By its number from 1, or by the name that it was given."""
    made = tool_records.tokenizer()
    made.chat_template = "{{ raise_exception('no') }}"
    for names, message in ((None, "^prompt 2: .*says 'no'"), (["a", "b"], "^b: .*says 'no'")):
        with pytest.raises(ValueError, match=message):
            encode_prompts(made, ["the", tool_records.turns(0)[:1]], names=names)


@pytest.mark.parametrize("name", ["tokenizers/gpt2", "tokenizers/llama2-32k", "models/stories260K"])
def test_real_tokenizers(shared, name):
    """The tokenizer's own ids, since none of these appends anything to a text."""
    real = AutoTokenizer.from_pretrained(shared / name)
    texts = ["### Instruction:\nSay it.\n\n### Response:\n", "Once upon a time", " x" * 3000]
    found = encode_prompts(real, texts)
    assert found == [real(text, verbose=False)["input_ids"] for text in texts]
    assert real.eos_token_id not in {ids[-1] for ids in found}


def test_padding_is_on_the_left_and_masked():
    """Ids and mask of two prompts."""
    ids, mask = left_padded([[1, 2, 3], [4]], 9, torch.device("cpu"))
    assert ids.tolist() == [[1, 2, 3], [9, 9, 4]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_ends():
    """Ids, lists and None are merged in order without repeats; an answer ends at the first."""
    assert end_tokens(None, 3, [4, 3], None, (5,)) == [3, 4, 5] and end_tokens(None) == []
    assert up_to_end([1, 2, 3, 4, 3], [4, 3]) == [1, 2, 3] and up_to_end([1], []) == [1]
