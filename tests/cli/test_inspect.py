"""``distilllens inspect`` as a user types it."""

import json
import re
import sys

import pytest
import torch
import toys

pytest.importorskip("matplotlib")

from distilllens.cli import main
from distilllens.lens import trajectory

PAIR = ["--teacher", "teacher", "--student", "student"]
ALONE = ["--model", "teacher"]
PROMPT = ["--prompt", "the cat sat on a mat"]


@pytest.fixture(autouse=True)
def somewhere(workshop):
    """Every test runs in a folder with a student, a teacher and train.jsonl."""
    toys.gpt2(2, seed=3).save_pretrained(workshop / "deep" / "student")
    toys.tokenizer().save_pretrained(workshop / "deep" / "student")


def inspect(*flags, output="page.html"):
    """The exit status."""
    return main(["inspect", *flags, "--output", output])


def data(folder, name="page.html"):
    """The page's own data."""
    page = (folder / name).read_text(encoding="utf-8")
    (block,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(block)


def test_a_prompt_makes_a_page(workshop, capsys):
    """Every token of the prompt counts, and the top tokens are the models' own."""
    from transformers import AutoModelForCausalLM

    assert inspect(*PAIR, *PROMPT, "--lens_layers", "1:2") == 0
    found = data(workshop)
    ids = toys.tokenizer()(PROMPT[1], return_tensors="pt")["input_ids"]
    lens = found["lens"]
    (text,) = lens["documents"]
    assert [lens["words"][i] for i in text["read"]] == PROMPT[1].split()
    assert lens["trained"] == [[1]] and lens["pairs"] == [[[0, 0], [1, 2], [2, 3], [3, 4]]]
    for name, cells in zip(("teacher", "student"), text["cells"], strict=True):
        truth = trajectory(AutoModelForCausalLM.from_pretrained(name), top_k=10, input_ids=ids)
        for depth, cell in enumerate(cells):
            if cell is not None:
                torch.testing.assert_close(
                    torch.tensor(cell[1]), truth.probabilities[depth, 0], rtol=1e-3, atol=1e-6
                )
    said = capsys.readouterr().err
    assert "wrote page.html (0." in said
    assert sorted(path.name for path in workshop.glob("page*")) == ["page.html"]


def test_data_are_read_as_in_training(workshop):
    """Only responses count, with their end token; the page states --limit and --max_length."""
    assert inspect(*ALONE, "--data", "train.jsonl", "--limit", "3") == 0
    texts = data(workshop)["lens"]["documents"]
    words = data(workshop)["lens"]["words"]
    for text, example in zip(texts, toys.examples(3), strict=True):
        assert [words[i] for i in text["next"]] == [*example["completion"].split(), "<eos>"]
    page = (workshop / "page.html").read_text()
    assert "the first 3 of 8 records, 64 tokens at most" in page
    lengths = [len(text["read"]) for text in texts]
    assert inspect(*ALONE, "--data", "train.jsonl", "--limit", "3", "--max_length", "33") == 0
    assert [len(t["read"]) for t in data(workshop)["lens"]["documents"]] != lengths


def test_one_model_alone(workshop):
    """The classic logit lens, at every depth."""
    assert inspect("--model", "teacher", *PROMPT) == 0
    lens = data(workshop)["lens"]
    assert lens["pairs"] == [] and lens["models"] == [{"name": "teacher", "depths": 5}]
    assert "Logit lens of teacher" in (workshop / "page.html").read_text()


def test_several_students_and_figures(workshop, capsys):
    """Students of one name are told apart by their folders; every figure is a PNG and an SVG."""
    flags = [*PAIR, "--student", "deep/student", *PROMPT, "--figures", "paper/figures"]
    assert inspect(*flags) == 0
    names = [model["name"] for model in data(workshop)["lens"]["models"]]
    assert names == ["teacher", "student", "deep/student"]
    files = {path.name for path in (workshop / "paper" / "figures").iterdir()}
    assert {"divergence-JSD.png", "divergence-JSD.svg", "entropy.svg", "settled.png"} <= files
    assert {"penalty-student.png", "penalty-deep-student.png", "reliability.svg"} <= files
    assert len(files) == 2 * (3 + 3 + 2 + 1 + 2)
    assert "and the figures into paper/figures" in capsys.readouterr().err


def test_a_prompt_of_one_token(workshop):
    """It has no next token; everything that needs none is shown."""
    assert inspect(*PAIR, "--prompt", "cat") == 0
    assert "reliability" not in data(workshop)["tables"]
    assert data(workshop)["lens"]["documents"][0]["next"] == [None]


def test_half_precision(workshop):
    """The models are read in the dtype asked for, and the page says so."""
    assert inspect(*ALONE, *PROMPT, "--dtype", "bfloat16") == 0
    assert "in bfloat16" in (workshop / "page.html").read_text()


# What is wrong: (flags, what the one line says).
BAD = {
    "nothing": ([], "name --teacher and at least one --student, or --model alone"),
    "no student": (["--teacher", "teacher", *PROMPT], "at least one --student"),
    "no teacher": (["--student", "student", *PROMPT], "name --teacher"),
    "both": (["--model", "teacher", *PAIR, *PROMPT], "--model stands alone"),
    "no text": (PAIR, "either --prompt or --data"),
    "two texts": ([*PAIR, *PROMPT, "--data", "train.jsonl"], "either --prompt or --data"),
    "empty": ([*PAIR, "--prompt", ""], "--prompt is empty; give it a value"),
    "blank": ([*PAIR, "--prompt", " \n"], "--prompt is empty"),
    "long": ([*PAIR, "--prompt", "cat " * 65], "65 tokens, beyond the 64 positions"),
    "limit": ([*PAIR, "--data", "train.jsonl", "--limit", "0"], "--limit must be at least 1"),
    "length": ([*PAIR, "--data", "train.jsonl", "--max_length", "-1"], "--max_length must be"),
    "short": ([*PAIR, "--data", "train.jsonl", "--max_length", "5"], "none of the 8 records has"),
    "no data": ([*PAIR, "--data", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
    "dtype": ([*PAIR, *PROMPT, "--dtype", "int4"], "argument --dtype: invalid choice: 'int4'"),
    "depth": ([*PAIR, *PROMPT, "--lens_layers", "1:9"], "teacher depth 9, but the teacher has"),
    "pairs": ([*PAIR, *PROMPT, "--lens_layers", "all"], "cannot read the layer map 'all'"),
    "missing": (["--model", "nowhere", *PROMPT], "cannot load the model 'nowhere'"),
    "flag": ([*PAIR, *PROMPT, "--colour", "red"], "unrecognized arguments: --colour red"),
    "figures": ([*PAIR, *PROMPT, "--figures", "train.jsonl"], "train.jsonl is a file"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_status_2(workshop, capsys, name):
    """One line on standard error, status 2, and nothing written."""
    flags, message = BAD[name]
    before = sorted(workshop.rglob("*"))
    assert inspect(*flags) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1 and message in lines[0]
    assert sorted(workshop.rglob("*")) == before


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("teacher", "--output teacher is a folder; name a file in it"),
        ("nowhere/page.html", "there is no folder nowhere; create it first"),
        ("train.jsonl/page.html", "there is no folder train.jsonl; create it first"),
    ],
)
def test_an_output_that_cannot_be_written(workshop, capsys, output, message):
    """Known before any model is loaded."""
    assert inspect(*PAIR, *PROMPT, output=output) == 2
    said = capsys.readouterr().err
    assert message in said and "loading" not in said


def test_no_output_is_said(workshop, capsys):
    """--output has no default."""
    assert main(["inspect", *PAIR, *PROMPT]) == 2
    assert "--output is missing" in capsys.readouterr().err


def test_models_that_do_not_fit(workshop, capsys):
    """Other tokens, no tokenizer anywhere, no weights, a model that no lens can read."""
    toys.tokenizer([*toys.WORDS[:-1], "other"]).save_pretrained("student")
    assert inspect(*PAIR, *PROMPT) == 2
    assert "token 21 is 'other' for the student and 'of'" in capsys.readouterr().err
    for name in ("student", "teacher"):
        for file in (workshop / name).glob("tokenizer*"):
            file.unlink()
    assert inspect(*PAIR, *PROMPT) == 2
    assert "no tokenizer found for 'teacher'" in capsys.readouterr().err
    (workshop / "deep" / "student" / "model.safetensors").write_bytes(b"")
    assert inspect("--model", "deep/student", *PROMPT) == 2
    assert "cannot load the model 'deep/student'" in capsys.readouterr().err


def test_a_student_without_a_tokenizer_takes_the_teachers(workshop):
    """A folder of weights alone can be looked at."""
    for file in (workshop / "student").glob("tokenizer*"):
        file.unlink()
    assert inspect(*PAIR, *PROMPT) == 0


def test_the_old_page_stays_when_the_new_one_fails(workshop, capsys, monkeypatch):
    """A disk that fills up while the page is written leaves the page that was there."""
    assert inspect(*ALONE, *PROMPT) == 0
    before = (workshop / "page.html").read_bytes()

    def full(part):
        part.write_bytes(part.read_bytes()[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("distilllens.files.flush", full)
    assert inspect(*ALONE, "--prompt", "the dog") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert (workshop / "page.html").read_bytes() == before


def test_without_matplotlib_the_extra_is_named(workshop, capsys, monkeypatch):
    """Before anything is loaded."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert inspect(*PAIR, *PROMPT) == 2
    said = capsys.readouterr().err
    assert "pip install 'distilllens[plot]'" in said and "loading" not in said


def test_help_has_examples(capsys):
    """With and without a teacher."""
    with pytest.raises(SystemExit) as done:
        main(["inspect", "--help"])
    assert done.value.code == 0
    said = capsys.readouterr().out
    assert "distilllens inspect --teacher demo/teacher --student demo/kd" in said
    assert "distilllens inspect --model" in said and "--lens_layers" in said


def test_files_of_others_are_not_replaced(workshop, capsys):
    """Neither by the page nor by a figure; then the page is not written either."""
    data_before = (workshop / "train.jsonl").read_bytes()
    assert inspect(*ALONE, *PROMPT, output="train.jsonl") == 2
    assert "train.jsonl exists and is no page of distilllens" in capsys.readouterr().err
    assert (workshop / "train.jsonl").read_bytes() == data_before
    (workshop / "paper").mkdir()
    (workshop / "paper" / "entropy.png").write_bytes(b"\x89PNG mine")
    assert inspect(*ALONE, *PROMPT, "--figures", "paper") == 2
    assert "--figures paper: entropy.png exists there" in capsys.readouterr().err
    assert [path.name for path in (workshop / "paper").iterdir()] == ["entropy.png"]
    assert not (workshop / "page.html").exists()
    for _ in range(2):  # our own may be replaced
        assert inspect(*ALONE, *PROMPT, "--figures", "figures") == 0


def test_figures_of_models_with_any_name(workshop):
    """A dollar sign makes no formula of it."""
    for name in ("$\\frac$", "_x{y}"):
        (workshop / "student").rename(workshop / name)
        flags = ["--teacher", "teacher", "--student", name]
        assert inspect(*flags, *PROMPT, "--figures", "figures") == 0
        assert name in (workshop / "figures" / "divergence-JSD.svg").read_text()
        (workshop / name).rename(workshop / "student")
