"""Models and tokenizers are told apart."""

import hashlib

import pytest
import toys
from tokenizers import pre_tokenizers
from transformers import AutoConfig

from distilllens.fingerprints import file_hashes
from distilllens.loading import check_tokenizers


def test_tokenizers_are_compared_by_what_they_do():
    """One vocabulary split in two ways is two tokenizers."""
    other = toys.tokenizer()
    check_tokenizers(toys.tokenizer(), other)
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(",", "isolated")
    with pytest.raises(ValueError, match=r"share a vocabulary but split .* differently"):
        check_tokenizers(toys.tokenizer(), other)


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
