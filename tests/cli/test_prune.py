"""``distilllens prune``: typed by a user; bad input is one line."""

import pytest
import toys
from transformers import AutoModelForCausalLM

from distilllens.cli import main

IMPORTANCE = ["--by", "importance", "--data", "train.jsonl"]
PRUNE = ["prune", "--model", "teacher", "--output", "made"]


def test_a_table_and_a_folder(workshop, capsys):
    """Numbers on standard output, the rest on standard error."""
    data = ["--by", "importance", "--data", "train.jsonl"]
    assert main([*PRUNE, "--blocks", "3", *data]) == 0
    out, err = capsys.readouterr()
    rows = out.splitlines()
    assert len(rows) == 5 and rows[0].split() == ["block", "change"]
    assert rows[1].endswith("kept") and rows[4].endswith("kept")
    assert sum(row.endswith("kept") for row in rows) == 3
    assert "wrote made: 3 of 4 blocks (0, " in err
    assert AutoModelForCausalLM.from_pretrained("made").config.num_hidden_layers == 3


def test_a_link_is_not_replaced(workshop, capsys):
    """Nothing is loaded for it either."""
    (workshop / "empty").mkdir()
    (workshop / "made").symlink_to("empty")
    assert main([*PRUNE, "--blocks", "2"]) == 2
    assert "--output made is a symbolic link" in capsys.readouterr().err
    assert (workshop / "made").is_symlink()


BAD = {
    "no model": (["prune", "--blocks", "2", "--output", "made"], "--model is missing"),
    "no blocks": (PRUNE, "--blocks is missing"),
    "no output": (["prune", "--model", "teacher", "--blocks", "2"], "--output is missing"),
    "none": ([*PRUNE, "--blocks", "0"], "--blocks must be at least 1 block, got 0"),
    "words": ([*PRUNE, "--blocks", "half"], "--blocks 'half': write how many blocks to keep"),
    "a range": ([*PRUNE, "--blocks", "0-2"], "--blocks '0-2': write how many"),
    "too many": ([*PRUNE, "--blocks", "5"], "5 blocks cannot be kept: the model has 4"),
    "out of range": ([*PRUNE, "--blocks", "0,4"], "block 4 does not exist: the model has blocks 0"),
    "repeated": (
        [*PRUNE, "--blocks", "1,1"],
        "--blocks must rise, each once, but 1 is given twice",
    ),
    "falling": ([*PRUNE, "--blocks", "2,1"], "--blocks must rise, each once, but 1 follows 2"),
    "no data": (
        [*PRUNE, "--blocks", "2", "--by", "importance"],
        "--by importance needs --data, texts on which the blocks are measured",
    ),
    "missing data": (
        [*PRUNE, "--blocks", "2", "--by", "importance", "--data", "none.jsonl"],
        "none.jsonl",
    ),
    "chosen twice": (
        [*PRUNE, "--blocks", "0,3", "--by", "importance", "--data", "train.jsonl"],
        "--by importance chooses the blocks itself",
    ),
    "data for nothing": (
        [*PRUNE, "--blocks", "2", "--data", "train.jsonl"],
        "--data and --drop_ends belong to --by importance",
    ),
    "an end must go": (
        [*PRUNE, "--blocks", "1", "--by", "importance", "--data", "train.jsonl"],
        "--blocks must be at least 2, or set --drop_ends",
    ),
    "no limit": (
        [*PRUNE, "--blocks", "2", "--by", "importance", "--data", "train.jsonl", "--limit", "0"],
        "--limit must be at least 1, got 0",
    ),
    "no length": (
        [*PRUNE, "--blocks", "2", *IMPORTANCE, "--max_length", "-1"],
        "--max_length must be at least 1, got -1",
    ),
    "two kinds of data": (
        [*PRUNE, "--blocks", "2", *IMPORTANCE, "--data", "talk.jsonl"],
        "talk.jsonl:1: a 'messages' record, but train.jsonl:1 is a",
    ),
    "no chat template": (
        [*PRUNE, "--blocks", "2", "--by", "importance", "--data", "talk.jsonl"],
        "talk.jsonl:1: the tokenizer cannot write these messages: it has no chat template",
    ),
    "unknown rule": ([*PRUNE, "--blocks", "2", "--by", "luck"], "luck"),
    "no such model": (
        ["prune", "--model", "./none", "--blocks", "2", "--output", "made"],
        "cannot load the model './none': no such folder",
    ),
    "foreign content": (
        ["prune", "--model", "teacher", "--blocks", "2", "--output", "student"],
        "--output student exists and is not empty; name another folder",
    ),
    "a file": (
        ["prune", "--model", "teacher", "--blocks", "2", "--output", "train.jsonl"],
        "train.jsonl is a file",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, workshop, capsys):
    """Status 2, and nothing is written."""
    words, message = BAD[case]
    (workshop / "talk.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
    before = sorted(path.name for path in workshop.rglob("*"))
    assert main(words) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(said) == 1 and message in said[0]
    assert sorted(path.name for path in workshop.rglob("*")) == before


def test_a_model_whose_lens_is_not_closed_is_refused(workshop, capsys):
    """With the reason, after its weights are there: only a forward shows it."""
    from transformers import BertConfig, BertLMHeadModel

    config = BertConfig(
        vocab_size=24,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        is_decoder=True,
    )
    BertLMHeadModel(config).save_pretrained("bert")
    toys.tokenizer().save_pretrained("bert")
    assert main(["prune", "--model", "bert", "--blocks", "2", "--output", "made"]) == 2
    assert "cannot be cut: its lens is not closed (mode 'head')" in capsys.readouterr().err
    assert not (workshop / "made").exists()


def test_an_empty_folder_is_taken(workshop):
    """As other commands do."""
    (workshop / "made").mkdir()
    assert main([*PRUNE, "--blocks", "2"]) == 0
    assert (workshop / "made" / "model.safetensors").is_file()


def test_an_interruption_while_it_writes_leaves_nothing(workshop, capsys, monkeypatch):
    """Ctrl-C after some of the files."""
    from transformers import PreTrainedTokenizerBase

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", stop)
    before = sorted(path.name for path in workshop.rglob("*"))
    assert main([*PRUNE, "--blocks", "2"]) == 130
    assert sorted(path.name for path in workshop.rglob("*")) == before


def test_weights_that_are_not_finite_are_named(workshop, capsys):
    """And not taken for a model of unknown blocks, whose proof they fail."""
    model = AutoModelForCausalLM.from_pretrained("teacher")
    name, weight = list(model.named_parameters())[-1]
    weight.data.view(-1)[0] = float("nan")
    model.save_pretrained("teacher")
    assert main([*PRUNE, "--blocks", "2"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"the weights of the model are not finite: {name} holds nan" in error
