"""The inspector's page inside a notebook: models and a text, one call, an interactive cell."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from html import escape
from os import PathLike
from pathlib import Path

import torch

from distilllens.files import write_atomically
from distilllens.layer_map import LayerMap
from distilllens.lens.logit_lens import LogitLens
from distilllens.lens.probe import undisturbed
from distilllens.lens.reading import Inspection, Passage, inspect_models
from distilllens.loading import positions_of, shortest_names
from distilllens.report.canvas import require_plotting
from distilllens.report.inspector import inspector_sections
from distilllens.report.page import render_page
from distilllens.report.tokens import token_text

# Scripts run and CSV files are saved; the rest of the notebook stays out of the page's reach.
_SANDBOX = "allow-scripts allow-downloads"


@dataclass(frozen=True)
class NotebookPage:
    """A page that Jupyter, and whatever else reads ``_repr_html_``, displays as a cell's result.

    Args:
        html: the page: it needs no network and no other file.
        title: what it is called.
        height: of the cell, in pixels; the page scrolls inside.
    """

    html: str = field(repr=False)
    title: str
    height: int = 800

    def save(self, path: str | PathLike) -> None:
        """Write the page as a file for the browser, whole or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        write_atomically(Path(path), self.html)

    def _repr_html_(self) -> str:
        return (
            f'<iframe title="{escape(self.title)}" sandbox="{_SANDBOX}" '
            f'style="width:100%;height:{self.height}px;border:0" '
            f'srcdoc="{escape(self.html)}"></iframe>'
        )


def show(
    teacher,
    *students,
    tokenizer,
    text: str | Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    lens_layers: str | int = "auto",
    height: int = 800,
) -> NotebookPage:
    """Read models at every depth and display what ``distilllens inspect`` writes.

    Equals ``inspect_models`` with every token of ``text`` as a position, then ``render_page`` of
    its ``inspector_sections``. Models are read with dropout off, where they are, and stay as they
    were. The page is part of the notebook's output: some 0.2 MB to 3 MB.

    Args:
        teacher: a causal LM or its LogitLens; alone, this is the classic logit lens. Or an
            Inspection, which brings its students, its texts and its pairs.
        students: causal LMs or LogitLenses with the teacher's tokens.
        tokenizer: theirs, one of transformers.
        text: what they read, one text or several.
        names: of the teacher, then of the students; default: the folders or hub names they were
            loaded from where these differ, else teacher and student.
        lens_layers: the pairs of depths of training, to be marked: "auto", a number, or "2:8,4:16".
        height: of the cell, in pixels.

    Raises:
        ValueError: no text, a token that a model does not have, pairs of depths that do not fit, a
            model that the lens cannot read, names of another number than the models.
        ImportError: matplotlib is missing; the message says how to install it.
    """
    require_plotting()
    if isinstance(teacher, Inspection):
        if students or text is not None:
            raise ValueError("an Inspection has its own students and texts: give it alone")
        found = teacher
        models = [None] * (1 + len(found.students))
    else:
        if text is None:
            raise ValueError('text is missing: what the models read, such as text="Once upon a"')
        models = [m if isinstance(m, LogitLens) else LogitLens(m) for m in (teacher, *students)]
        documents = _documents(text, tokenizer, models)
        found = _inspect(models, documents, lens_layers)
    names = _names(models) if names is None else list(names)
    if len(names) != len(models):
        raise ValueError(f"{len(names)} names for {len(models)} models: {names}")
    others = ", ".join(names[1:])
    title = f"{others} beside {names[0]}" if others else f"Logit lens of {names[0]}"
    sections = inspector_sections(found, names, partial(token_text, tokenizer))
    return NotebookPage(render_page(title, _lead(found), sections), title, height)


def _inspect(lenses, documents, lens_layers):
    trained = [
        LayerMap.resolve_or_none(lens_layers, student.num_layers, lenses[0].num_layers) or ()
        for student in lenses[1:]
    ]
    with ExitStack() as stack:
        for lens in lenses:
            stack.enter_context(undisturbed(lens.model))
        return inspect_models(lenses[0], documents, lenses[1:], trained=trained)


def _documents(text, tokenizer, lenses):
    """Every token of every text is a position."""
    texts = [text] if isinstance(text, str) else list(text)
    if not texts:
        raise ValueError("text holds no text; give at least one")
    documents = []
    for number, each in enumerate(texts, 1):
        ids = torch.tensor(tokenizer(each, verbose=False)["input_ids"], dtype=torch.long)
        if len(ids) == 0:
            raise ValueError(f"text {number}, {each!r}, has no token; give it some words")
        for lens in lenses:
            _check_fit(lens.model, ids)
        documents.append(Passage(ids, torch.arange(len(ids))))
    return documents


def _check_fit(model, ids):
    rows = model.get_input_embeddings().weight.shape[0]
    if int(ids.max()) >= rows:
        raise ValueError(
            f"the text has token {int(ids.max())}, but {_role(model)} has only {rows} embeddings: "
            "its tokenizer is another one"
        )
    positions = positions_of(model.config)
    if positions and len(ids) > positions:
        raise ValueError(
            f"a text has {len(ids)} tokens, beyond the {positions} positions of {_role(model)}; "
            "shorten it"
        )


def _role(model):
    return f"the model {model.name_or_path!r}" if model.name_or_path else "a model"


def _names(models):
    """The last parts of the models' names where these tell them apart, else their roles."""
    paths = [lens.model.name_or_path if lens else "" for lens in models]
    if all(paths) and len(set(found := shortest_names(paths))) == len(found):
        return found
    many = len(models) > 2
    students = [f"student {n}" if many else "student" for n in range(1, len(models))]
    return ["teacher" if students else "model", *students]


def _lead(found):
    num = len(found.documents)
    pairs = [",".join(f"{s}:{t}" for s, t in each) for each in found.trained]
    pairs = " and ".join(dict.fromkeys(filter(None, pairs)))
    read = "Read from one text." if num == 1 else f"Read from {num} texts."
    return f"{read} Paired depths, student:teacher: {pairs}." if pairs else read
