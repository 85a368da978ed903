"""The notebooks of examples/ are valid, have no outputs, and run with toy models."""

import ast
import json
import re
from pathlib import Path

import pytest
import toys

pytest.importorskip("matplotlib")

from distilllens.workflows.notebook import NotebookPage

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.rglob("*.ipynb"))


def cells_of(path, kind="code"):
    """The cells of a kind, in order, as text."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == kind]


def run(cells):
    """Run cells in one namespace, as Jupyter does: the value of each last expression, or None."""
    names, values = {"__name__": "__main__"}, []
    for number, source in enumerate(cells):
        tree = ast.parse(source)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        where = f"cell {number}"
        exec(compile(tree, where, "exec"), names)
        values.append(last and eval(compile(ast.Expression(last.value), where, "eval"), names))
    return names, values


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_whole_and_clean(path):
    """nbformat 4.5: every cell has its keys and a unique id, and no outputs."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    for cell in notebook["cells"]:
        keys = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            keys |= {"execution_count", "outputs"}
            assert cell["execution_count"] is None and cell["outputs"] == []
        assert cell.keys() == keys and cell["metadata"] == {}
        assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", cell["id"])
        assert all(line.endswith("\n") for line in cell["source"][:-1])
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids) > 0


def test_read_a_model_runs(tmp_path, monkeypatch, capsys):
    """With toy models instead of the demo's, it shows three pages and prints every depth."""
    monkeypatch.chdir(tmp_path)
    settings = {
        "TEACHER": "big",
        "STUDENTS": ["plain", "lens"],
        "TEXT": "the cat sat on a",
    }
    for seed, (name, layers) in enumerate({"big": 4, "plain": 3, "lens": 3}.items()):
        toys.llama(layers, vocab=22, seed=seed).save_pretrained(name)
        toys.tokenizer().save_pretrained(name)
    first, *cells = cells_of(EXAMPLES / "read_a_model.ipynb")
    assert {target.id for node in ast.parse(first).body for target in node.targets} == set(settings)
    names, values = run(["\n".join(f"{k} = {v!r}" for k, v in settings.items()), *cells])
    shown = [value for value in values if isinstance(value, NotebookPage)]
    titles = ["Logit lens of big", "plain, lens beside big", "plain, lens beside big"]
    assert [page.title for page in shown] == titles and shown[2].height == 600
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == names["page"].html
    said = capsys.readouterr().out
    assert len(re.findall(r"^(?:plain|lens) +\d:\d   JSD 0\.\d{4} nats$", said, re.M)) == 8
    assert len(re.findall(r"^\w+ +settles at \d\.\d of [34] blocks$", said, re.M)) == 3
    assert len(re.findall(r"^\d(?:   '[\w<>]*' 0\.\d\d){3}$", said, re.M)) == 5
