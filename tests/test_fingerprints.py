"""Models and tokenizers are told apart."""

import hashlib

import pytest
import toys
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoTokenizer

from distilllens.evaluate.benchmarks import Example
from distilllens.evaluate.models import Candidate
from distilllens.evaluate.tasks import Task, check_shared
from distilllens.fingerprints import file_hashes
from distilllens.loading import check_tokenizers


def test_tokenizers_are_compared_by_what_they_do():
    """One vocabulary split in two ways is two tokenizers."""
    other = toys.tokenizer()
    check_tokenizers(toys.tokenizer(), other)
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(",", "isolated")
    with pytest.raises(ValueError, match=r"share a vocabulary but split .* differently"):
        check_tokenizers(toys.tokenizer(), other)


def grown(*tokens):
    """The toys' tokenizer, of 22 tokens, with special tokens added."""
    made = toys.tokenizer()
    made.add_special_tokens({"additional_special_tokens": list(tokens)})
    return made


ADDED = {
    "a <pad>": (("<pad>",), (), {22}),
    "of the teacher": ((), ("<pad>",), {22}),
    "one number, two tokens": (("<pad>",), ("<extra_id_0>",), {22}),
    "one token, two numbers": (("<pad>", "<x>"), ("<x>", "<pad>"), {22, 23}),
    "some are shared": (("<x>", "<y>"), ("<x>",), {23}),
    "none": (("<x>",), ("<x>",), set()),
}


@pytest.mark.parametrize("name", ADDED)
def test_added_tokens_that_no_text_has_are_no_difference(name):
    """Whoever has them, and whatever their number; a text that has one is refused by name."""
    ours, theirs, ids = ADDED[name]
    readers = grown(*ours), grown(*theirs)
    unshared = check_tokenizers(*readers)
    assert unshared.tokens.keys() == ids and bool(unshared) is bool(ids)
    written = {token for pair in unshared.tokens.values() for token in pair if token is not None}
    for reader in readers:
        unshared.check(reader(["the cat", "a mat <eos>"])["input_ids"], reader, ["a", "b"])
        for token in written & reader.get_vocab().keys():
            rows = reader(["the cat", f"the {token} cat"])["input_ids"]
            with pytest.raises(ValueError, match=f"token 2.*'{token}'.*, and b has it"):
                unshared.check(rows, reader, ["a", "b"])


def test_a_text_may_have_the_other_ones_token_in_pieces(shared):
    """GPT-2 without <|im_start|> writes it in seven tokens, which its teacher never does."""
    student, teacher = (AutoTokenizer.from_pretrained(shared / "tokenizers" / "gpt2") for _ in "st")
    teacher.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    unshared = check_tokenizers(student, teacher)
    rows = student(["<|im|>", "a <|im_start|>user"])["input_ids"]
    assert 50257 not in rows[1]
    with pytest.raises(
        ValueError, match=r"token 50257 is missing for the student and '<\|im_start"
    ):
        unshared.check(rows, student, ["a", "b"])
    unshared.check(rows[:1], student, ["a"])


def test_an_evaluation_is_searched_for_them():
    """Prompts and references, before anything is answered."""
    student = Candidate("student", "student", grown("<x>"), None, {})
    unshared = check_tokenizers(student.tokenizer, toys.tokenizer())
    asked = ("the cat", "the cat", ("sat",))
    sound = Task(None, {0: Example("dolly example 0", *asked, "sat")}, {})
    check_shared(unshared, student, [sound])
    for prompt, completion in (("the <x>", "sat"), ("the cat", "<x> sat")):
        example = Example("dolly example 3", prompt, *asked[1:], completion)
        with pytest.raises(
            ValueError, match=r"'<x>' for the student .* and dolly example 3 has it"
        ):
            check_shared(unshared, student, [sound, Task(None, {3: example}, {})])


@pytest.mark.parametrize("words", [toys.WORDS[:-1], [*toys.WORDS, "fox"], ["fox", *toys.WORDS[1:]]])
def test_other_tokens_are_another_tokenizer(words):
    """Ordinary tokens that one of them lacks may be in any text, whatever else was added."""
    other = toys.tokenizer(words)
    other.add_special_tokens({"additional_special_tokens": ["<pad>"]})
    for pair in ((other, toys.tokenizer()), (toys.tokenizer(), other)):
        with pytest.raises(ValueError, match="have different tokenizers: token"):
            check_tokenizers(*pair)


def test_hashes_are_of_the_files_that_decide(tmp_path):
    """Weights, configuration and tokenizer count; what a trainer leaves beside them does not."""
    toys.llama().save_pretrained(tmp_path)
    toys.tokenizer().save_pretrained(tmp_path)
    for name in ("training_args.bin", "optimizer.pt", "run.json", "README.md"):
        (tmp_path / name).write_text("x")
    hashes = file_hashes(str(tmp_path), AutoConfig.from_pretrained(tmp_path))
    weights = (tmp_path / "model.safetensors").read_bytes()
    assert hashes["model.safetensors"] == hashlib.sha256(weights).hexdigest()
    assert {"config.json", "generation_config.json", "tokenizer.json"} < hashes.keys()
    assert not {"training_args.bin", "optimizer.pt", "run.json", "README.md"} & hashes.keys()


def test_a_name_of_the_hub_has_a_commit():
    """There is no folder to read; the commit says which weights."""
    config = toys.llama().config
    config._commit_hash = "abc"
    assert file_hashes("someone/model", config) == {"commit": "abc"}
