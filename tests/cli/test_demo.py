"""The demo refuses bad input in one line, ships a working teacher, and prints what it measured."""

import builtins
import html
import json
import shlex
from pathlib import Path

import pytest

from distilllens.cli import main
from distilllens.cli.demo import TEACHER, table
from distilllens.workflows.demo_folder import MARKER


def refused(capsys, argv, message):
    """The command ends with status 2 and one line on standard error; returns nothing else."""
    assert main(["demo", *map(str, argv)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1 and message in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--steps", "-3"], "--steps must be at least 1, got -3"),
        (["--steps", "many"], "must be a whole number, got 'many'"),
        (["--seed", "-1"], "--seed must be between 0 and"),
        (["--step", "3"], "unrecognized arguments: --step 3"),
    ],
)
def test_bad_numbers_are_refused_before_anything_is_written(tmp_path, capsys, argv, message):
    """A value that means nothing ends in one line, status 2 and no folder."""
    refused(capsys, ["--output", tmp_path / "new", *argv], message)
    assert not (tmp_path / "new").exists()


def test_bad_outputs_are_refused(tmp_path, capsys):
    """A file, a place below a file, and a folder of other things are no output; nothing changes."""
    file = tmp_path / "file"
    file.write_text("mine")
    refused(capsys, ["--output", file], "is a file; name a folder")
    refused(capsys, ["--output", file / "demo"], "cannot be written: Not a directory")
    refused(capsys, ["--output", tmp_path], "is not empty and holds no earlier demo")
    (tmp_path / MARKER).write_text("[]")
    refused(capsys, ["--output", tmp_path], "is not empty and holds no earlier demo")
    (tmp_path / MARKER).write_text('{"finished": true}')
    (tmp_path / "report.html").write_text("mine")
    refused(capsys, ["--output", tmp_path], "report.html exists and is no page of distilllens")
    assert file.read_text() == (tmp_path / "report.html").read_text() == "mine"


def test_the_table_says_what_was_measured():
    """Every number of a result is in its row; "-" stands where there is nothing to measure."""
    blank = {"cross_entropy": 0.25, "kl": None, "jsd": [], "exact_match": 0.875, "seconds": None}
    student = {"cross_entropy": 1.5, "kl": 0.75, "jsd": [0.125, 0.0625], "exact_match": 0.5}
    rows = [{"name": "teacher", **blank}, {"name": "plain KD", **student, "seconds": 31.4}]
    result = {"pairs": ["1:2", "4:6"], "steps": 7, "seed": 3, "questions": 256, "rows": rows}
    text = table(result)
    assert "256 held-out questions, 7 steps, seed 3" in text
    head, teacher, kd = (line.split() for line in text.splitlines()[-3:])
    assert head[-7:] == ["JSD", "1:2", "JSD", "4:6", "exact", "answers", "seconds"]
    assert teacher == ["teacher", "0.2500", "-", "-", "-", "87.5", "%", "-"]
    assert kd == ["plain", "KD", "1.5000", "0.7500", "0.1250", "0.0625", "50.0", "%", "31"]


def test_the_shipped_teacher_answers_and_is_small():
    """At most 4 MB, read exactly by the lens, and right on most held-out questions."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from distilllens import LogitLens
    from distilllens.data import to_training_examples
    from distilllens.data.synthetic import synthetic_records
    from distilllens.data.synthetic_tokenizer import synthetic_tokenizer
    from distilllens.workflows.demo import right_answers

    assert (TEACHER / "model.safetensors").stat().st_size <= 4_000_000
    model = AutoModelForCausalLM.from_pretrained(TEACHER)
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    assert tokenizer.get_vocab() == synthetic_tokenizer().get_vocab()
    model.float()
    assert LogitLens(model).mode == "closed"
    examples = to_training_examples(synthetic_records(128, split="held_out", seed=1))
    # tools/make_demo_teacher.py measured 0.93 on 1024 questions.
    assert sum(right_answers(model, examples, tokenizer)) >= 0.8 * len(examples)


def test_a_thinned_model_keeps_the_blocks_it_names():
    """Embeddings, norm and the named blocks are the model's own, in order; all are copies."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from distilllens.workflows.demo import thinned

    size = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=3, tie_word_embeddings=True))
    ids = torch.tensor([[1, 2, 3, 4]])
    assert thinned(model, (1, 2, 3))(ids).logits.equal(model(ids).logits)
    thin = thinned(model, (1, 3))
    del model.model.layers[1]
    model.config.num_hidden_layers = 2
    model.model.layers[1].self_attn.layer_idx = 1
    assert thin(ids).logits.equal(model(ids).logits)
    ours, theirs = dict(thin.named_parameters()), dict(model.named_parameters())
    assert all(ours[name].data_ptr() != theirs[name].data_ptr() for name in ours)


@pytest.mark.slow
def test_a_short_demo_leaves_models_figure_and_numbers(tmp_path, capsys, monkeypatch):
    """Three steps write everything, the rows hold what they should, and a second run may follow."""
    from transformers import AutoModelForCausalLM

    from distilllens.workflows import demo as demo_run

    monkeypatch.setattr(demo_run, "NUM_HELD_OUT", 32)

    argv = ["demo", "--steps", "3", "--output", str(tmp_path / "demo")]
    assert main(argv) == 0
    first = json.loads((tmp_path / "demo" / MARKER).read_text())
    assert main(argv) == 0
    again = json.loads((tmp_path / "demo" / MARKER).read_text())
    for row, twin in zip(first["rows"], again["rows"], strict=True):
        assert {**row, "seconds": 0} == {**twin, "seconds": 0}  # the seed decides everything
    assert first["finished"] is True
    names = [row["name"] for row in first["rows"]]
    assert names == ["teacher", "student at start", "plain KD", "DistillLens"]
    teacher, start, *students = first["rows"]
    assert teacher["kl"] is None and teacher["jsd"] == []
    for row in (start, *students):
        assert row["kl"] > 0 and len(row["jsd"]) == len(first["pairs"])
        assert row["cross_entropy"] > teacher["cross_entropy"]
    for name in ("teacher", "kd", "distilllens"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "demo" / name)
    assert (tmp_path / "demo" / "divergence_by_depth.png").read_bytes().startswith(b"\x89PNG")
    assert first["verdict"].startswith("On these 32 questions DistillLens ")
    assert " ".join(capsys.readouterr().out.split()).count(first["verdict"]) == 2  # of two runs
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert f"{teacher['cross_entropy']:.4g}" in page and "left out" not in page
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    curves = [row[0] for row in data["tables"]["divergence"]["rows"]]
    assert list(dict.fromkeys(curves)) == ["student at start", "plain KD", "DistillLens"]
    assert page.count("<h4>DistillLens</h4>") == page.count("<h4>reference</h4>") == 8
    assert f"<p>{first['verdict']}</p>" in page
    assert page.count('<p class="mark ') == 4 * 8  # every answer of every model
    for name in ("train.jsonl", "test.jsonl"):
        rows = [json.loads(row) for row in (tmp_path / "demo" / name).read_text().splitlines()]
        assert len(rows) == (96 if name == "train.jsonl" else 32)
        assert all(row.keys() == {"instruction", "input", "output"} for row in rows)


@pytest.mark.slow
def test_the_next_commands_work(tmp_path, capsys, monkeypatch):
    """Each command of the page, on the folder that a demo leaves."""
    from distilllens.workflows import demo as demo_run
    from distilllens.workflows.demo_page import next_commands

    monkeypatch.setattr(demo_run, "NUM_HELD_OUT", 32)
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--steps", "1", "--output", "my demo"]) == 0
    page = html.unescape((tmp_path / "my demo" / "report.html").read_text(encoding="utf-8"))
    text = next_commands(Path("my demo"))
    assert text in page
    lines = text.replace("\\\n", " ").splitlines()
    commands = [shlex.split(line) for line in lines if line and line[0] != "#"]
    assert [words[1] for words in commands] == ["evaluate", "inspect", "train", "train"]
    for program, *words in commands:
        words = ["2" if word == "20" else word for word in words]  # steps
        assert program == "distilllens" and main(words) == 0
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"my demo", "my demo-results", "my demo-depths.html", "my demo-runs"}


@pytest.mark.slow
def test_without_matplotlib_the_table_is_still_printed(tmp_path, capsys, monkeypatch):
    """A missing plot extra costs the figure and says how to get it; the status stays 0."""
    real = builtins.__import__

    def without_matplotlib(name, *args, **kwargs):
        if name.split(".")[0] == "matplotlib":
            raise ImportError("No module named 'matplotlib'")
        return real(name, *args, **kwargs)

    from distilllens.workflows import demo as demo_run

    monkeypatch.setattr(demo_run, "NUM_HELD_OUT", 32)
    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    assert main(["demo", "--steps", "1", "--output", str(tmp_path / "demo")]) == 0
    out, err = capsys.readouterr()
    assert "pip install 'distilllens[plot]'" in err
    assert "exact answers" in out
    assert not list((tmp_path / "demo").glob("*.png"))
    assert "report.html" in err and "report.html" not in out
    assert not (tmp_path / "demo" / "report.html").exists()
