"""``distilllens inspect`` on encoder-decoders, masked LMs, and models that read no text."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
import toys

pytest.importorskip("matplotlib")
sys.path.insert(0, str(Path(__file__).parents[1] / "lens"))
import model_kinds as kinds

from distilllens.cli import main
from distilllens.lens import trajectory
from distilllens.loading import load_model
from distilllens.workflows.inspect import write_inspection

ROW = {"prompt": "the cat sat", "completion": " on a mat"}


def tokenizer_of(name):
    """The toys' tokenizer; masked LMs have a mask token among its words."""
    tokenizer = toys.tokenizer([*toys.WORDS[:-1], "[MASK]"])
    if name in kinds.MASKED:
        tokenizer.mask_token = "[MASK]"
    return tokenizer


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A teacher of each kind, saved with a tokenizer, and a student of other weights."""
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text(json.dumps(ROW) + "\n", encoding="utf-8")

    def save(name):
        for role, factor in (("teacher", 1.0), ("student", 1.4)):
            model = kinds.ALL[name].build()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(factor)
            model.save_pretrained(role)
            tokenizer_of(name).save_pretrained(role)

    return save


def page():
    """The lens table in the page's own data, and the page."""
    text = Path("page.html").read_text(encoding="utf-8")
    pattern = r'<script type="application/json" id="data">(.*?)</script>'
    (block,) = re.findall(pattern, text, re.S)
    return json.loads(block)["lens"], text


def words(table, name):
    """The lists of a text of the table, as words."""
    return [None if i is None else table["words"][i] for i in table["documents"][0][name]]


def top(table, name, depth):
    """The first of the top tokens of the teacher at a depth, as words."""
    return [table["words"][row[0]] for row in table["documents"][0]["cells"][0][depth][0]]


PAIR = {"teacher": "teacher", "students": ["student"]}


@pytest.mark.parametrize("name", ["Qwen2-VL", "Gemma 3", "SmolVLM"])
def test_a_vision_language_model_is_read_on_text(name, folders):
    """Loaded as the class that its files name, and read as the trajectory of its own text."""
    folders(name)
    write_inspection("page.html", **PAIR, prompt="the cat sat", lens_layers="1:2")
    table, text = page()
    assert words(table, "read") == ["the", "cat", "sat"]
    assert words(table, "next") == ["cat", "sat", None]
    model = load_model("teacher", "teacher").eval()
    assert type(model).__name__ == kinds.ALL[name].cls
    tokenizer = tokenizer_of(name)
    ids = tokenizer("the cat sat", return_tensors="pt").input_ids
    path = trajectory(model, input_ids=ids)
    for depth in (0, kinds.DEPTH):
        found = tokenizer.convert_ids_to_tokens(path.tokens[depth, 0, :, 0])
        assert [w for w in top(table, "teacher", depth) if w in toys.WORDS] == [
            w for w in found if w in toys.WORDS
        ]
    assert "Each position predicts" not in text and table["own"] is False


@pytest.mark.parametrize("name", ["BERT", "ModernBERT"])
def test_a_masked_model_predicts_each_token_in_its_place(name, folders):
    """Of a prompt every token, of a record its response; the page says so."""
    folders(name)
    write_inspection("page.html", **PAIR, prompt="the [MASK] sat")
    table, text = page()
    assert table["own"] is True
    assert words(table, "read") == words(table, "next") == ["the", "[MASK]", "sat"]
    assert "Each position predicts the token in its own place" in text
    write_inspection("page.html", **PAIR, data=["rows.jsonl"])
    table, _ = page()
    assert words(table, "read") == words(table, "next") == ["on", "a", "mat", "<eos>"]


@pytest.mark.parametrize("name", ["T5", "BART"])
def test_an_encoder_decoder_reads_a_prompt_and_a_response(name, folders):
    """The decoder's tokens are those of the response, predicted from the one that starts it."""
    folders(name)
    write_inspection("page.html", **PAIR, data=["rows.jsonl"])
    table, text = page()
    assert words(table, "next")[:3] == ["on", "a", "mat"]
    assert words(table, "read")[1:] == words(table, "next")[:-1]
    assert "The texts shown are the decoder" in text
    assert table["own"] is False


@pytest.mark.parametrize("name", ["T5", "BART"])
def test_an_encoder_decoder_answers_a_prompt(name, folders):
    """What is read is what the teacher's own generate writes; its last depth says the same."""
    folders(name)
    write_inspection("page.html", model="teacher", prompt="the cat sat")
    table, _ = page()
    model, tokenizer = load_model("m", "teacher", every_kind=True).eval(), tokenizer_of(name)
    ids = tokenizer("the cat sat", return_tensors="pt").input_ids
    new = 63 if name == "BART" else 64  # of BART's 64 positions one is the start
    written = model.generate(input_ids=ids, max_new_tokens=new, use_cache=False)[0]
    assert len(words(table, "next")) == len(written) - 1
    assert words(table, "next") == top(table, "teacher", kinds.DEPTH)


@pytest.mark.parametrize(
    ("name", "read"),
    [("Whisper", "input_features"), ("ViT", "pixel_values"), ("BEiT", "pixel_values")],
)
def test_a_model_without_text_is_refused_in_one_line(name, read, folders, capsys):
    """Before its weights are loaded, with what reads it."""
    folders(name)
    flags = ["--model", "teacher", "--prompt", "the cat", "--output", "page.html"]
    assert main(["inspect", *flags]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"the model 'teacher' reads {read}, and inspect has only text" in line
    assert "distilllens.lens.trajectory" in line
    assert not Path("page.html").exists()


def test_models_of_two_kinds_are_refused(folders):
    """An encoder-decoder beside a masked LM: before their weights are loaded."""
    folders("T5")
    kinds.ALL["BERT"].build().save_pretrained("student")
    with pytest.raises(ValueError, match="'teacher' is an encoder-decoder, and 'student' is none"):
        write_inspection("page.html", **PAIR, prompt="the cat")
    kinds.ALL["Qwen2-MoE"].build().save_pretrained("teacher")
    with pytest.raises(ValueError, match=r"\(causal\) and BertForMaskedLM \(bidirectional\)"):
        write_inspection("page.html", **PAIR, prompt="the cat")


def test_a_record_without_a_prompt_is_refused(folders):
    """An encoder-decoder needs a text for its encoder; the record is named."""
    folders("T5")
    Path("rows.jsonl").write_text('{"text": "the cat sat"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="record 1 is no prompt with a response"):
        write_inspection("page.html", **PAIR, data=["rows.jsonl"])
