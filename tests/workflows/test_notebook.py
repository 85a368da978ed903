"""``show``: the inspector's page as the result of a notebook's cell."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import toys

pytest.importorskip("matplotlib")

import distilllens
import distilllens.report
from distilllens import LogitLens, show
from distilllens.lens import trajectory
from distilllens.report import inspector_sections
from distilllens.report.page import Plot, to_json

TEXT = "the cat sat on a mat"


class Frame(HTMLParser):
    """Parses the attributes of the frame in a cell."""

    def handle_starttag(self, tag, attributes):
        self.tag, self.attributes = tag, dict(attributes)


def frame(shown):
    """The attributes of the one element of a cell."""
    parser = Frame()
    parser.feed(shown._repr_html_())
    assert parser.tag == "iframe"
    return parser.attributes


def data(shown):
    """The page's own data."""
    (block,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', shown.html, re.S
    )
    return json.loads(block)


@pytest.fixture(scope="module")
def models():
    """A teacher and a student of toy size, as if loaded from folders."""
    found = toys.llama(4, 24, vocab=22, seed=1).eval(), toys.llama(3, 16, vocab=22).eval()
    for model, path in zip(found, ("runs/big", "runs/kd"), strict=True):
        model.name_or_path = path
    return found


@pytest.fixture(scope="module")
def tokenizer():
    """The models' tokenizer."""
    return toys.tokenizer()


@pytest.fixture(scope="module")
def shown(models, tokenizer):
    """Both on one text."""
    return show(*models, tokenizer=tokenizer, text=TEXT)


def test_show_has_two_names():
    """``distilllens.report.show`` is ``distilllens.show``; other names are refused."""
    assert distilllens.report.show is distilllens.show is show
    with pytest.raises(AttributeError, match="has no attribute 'shows'"):
        distilllens.report.shows  # noqa: B018


def test_the_alias_is_lazy():
    """Importing ``report`` loads neither transformers nor matplotlib; ``show`` loads the former."""
    heavy = ["transformers", "matplotlib", "distilllens.loading", "distilllens.workflows"]
    code = (
        "import json, sys, distilllens.report\n"
        f"loaded = lambda: [name for name in {heavy} if name in sys.modules]\n"
        "before = loaded(); distilllens.report.show\n"
        "print(json.dumps([before, loaded()]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    before, after = json.loads(done.stdout.splitlines()[-1])
    assert before == [] and {"transformers", "distilllens.workflows"} <= set(after)


def test_every_token_of_the_text_is_read(models, tokenizer, shown):
    """The lens table's top tokens are those of the models' own trajectories."""
    found = data(shown)["lens"]
    (document,) = found["documents"]
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    assert [found["words"][i] for i in document["read"]] == TEXT.split()
    for model, cells in zip(models, document["cells"], strict=True):
        tokens = trajectory(model, top_k=1, input_ids=ids).tokens[:, 0, :, 0]
        for depth, cell in enumerate(cells):
            if cell is not None:
                said = [found["words"][top[0]] for top in cell[0]]
                assert said == [tokenizer.decode([i]) for i in tokens[depth].tolist()]


def test_lenses_are_read_as_their_models(models, tokenizer, shown):
    """Models, or a LogitLens of each, give the same page; "auto" is the trainer's 1:1,2:3."""
    lenses = [LogitLens(model) for model in models]
    assert show(*lenses, tokenizer=tokenizer, text=[TEXT], lens_layers="1:1,2:3") == shown
    assert "Read from one text. Paired depths, student:teacher: 1:1,2:3." in shown.html


def test_an_inspection_is_shown_as_the_page_has_it(inspected, tokenizer):
    """An Inspection has its own texts, students and pairs; models without names get roles."""
    shown = show(inspected.found, tokenizer=tokenizer)
    names = ["teacher", "student 1", "student 2"]
    sections = inspector_sections(inspected.found, names, tokenizer.decode)
    parts = [part for section in sections for part in section.parts if isinstance(part, Plot)]
    expected = {p.name: {"columns": p.table.columns, "rows": p.table.rows} for p in parts}
    assert data(shown)["tables"] == json.loads(to_json(expected))
    assert "Read from 3 texts. Paired depths, student:teacher: 1:1,2:3." in shown.html
    assert shown.title == "student 1, student 2 beside teacher"


def test_the_cell_holds_the_whole_page(shown):
    """The frame may run scripts but cannot access the notebook."""
    found = frame(shown)
    assert found["srcdoc"] == shown.html
    assert found["sandbox"] == "allow-scripts allow-downloads"
    assert "height:800px" in found["style"]


def test_one_model_is_the_classic_lens(models, tokenizer):
    """No comparison figures; the model's name is escaped in the page and in the cell."""
    name = '"><script>alert(1)</script>'
    shown = show(models[0], tokenizer=tokenizer, text=TEXT, names=[name], height=300)
    assert "divergence" not in data(shown)["tables"] and "entropy" in data(shown)["tables"]
    assert frame(shown)["title"] == f"Logit lens of {name}"
    assert name not in shown._repr_html_() and name not in shown.html
    assert "height:300px" in frame(shown)["style"]


def test_save_writes_the_page(shown, tmp_path):
    """The file is the page; the repr is short."""
    shown.save(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == shown.html
    assert repr(shown) == "NotebookPage(title='kd beside big', height=800)"


def test_folders_of_one_name_are_told_apart_by_roles(models, tokenizer):
    """A folder names a model only if that distinguishes it from the others."""
    shown = show(models[0], models[0], tokenizer=tokenizer, text="the")
    assert shown.title == "student beside teacher"


def test_dropout_is_off_and_models_stay_as_they_were(tokenizer):
    """A model in training mode is read in evaluation mode and left in training mode."""
    model = toys.gpt2(2, dropout=0.5)
    expected = show(model.eval(), tokenizer=tokenizer, text=TEXT)
    model.train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    assert show(model, tokenizer=tokenizer, text=TEXT) == expected
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"text": None}, "text is missing"),
        ({"text": []}, "text is an empty list"),
        ({"text": ["the cat", ""]}, "text 2, '', has no token"),
        ({"text": "cat " * 65}, "65 tokens, beyond the 64 positions of the model 'runs/big'"),
        ({"names": ["a"]}, r"1 names for 2 models: \['a'\]"),
        ({"lens_layers": "1:9"}, "teacher depth 9, but the teacher has depths 0 to 4"),
    ],
)
def test_mistakes_are_told(models, tokenizer, settings, match):
    """The message names the mistake and its value."""
    with pytest.raises(ValueError, match=match):
        show(*models, **{"tokenizer": tokenizer, "text": TEXT} | settings)


def test_a_tokenizer_of_another_model_is_refused(models):
    """A token without an embedding is reported before a model reads it."""
    words = [f"w{i}" for i in range(40)]
    with pytest.raises(
        ValueError, match="token 41, but the model 'runs/big' has only 22 embeddings"
    ):
        show(*models, tokenizer=toys.tokenizer(words), text="w39")


def test_an_inspection_stands_alone(inspected, models, tokenizer):
    """Students or texts given with an Inspection would be ignored."""
    for beside in ({"text": TEXT}, {}):
        students = () if beside else models
        with pytest.raises(ValueError, match="already has its students and texts"):
            show(inspected.found, *students, tokenizer=tokenizer, **beside)
