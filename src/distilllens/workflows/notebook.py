"""``show``: the inspector's page as an interactive cell of a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from html import escape
from os import PathLike
from pathlib import Path

import torch

from distilllens.data.encode import encode_text
from distilllens.lens.logit_lens import LogitLens
from distilllens.lens.probe import undisturbed
from distilllens.lens.reading import Inspection, Passage, inspect_models
from distilllens.loading import positions_of
from distilllens.names import shortest_names
from distilllens.report.canvas import require_plotting
from distilllens.report.inspector import inspector_sections
from distilllens.report.page import render_page
from distilllens.report.tokens import token_text
from distilllens.workflows.inspect import pairs_of
from distilllens.workflows.outputs import write_page

# The page may run scripts and save CSV files, but cannot access the rest of the notebook.
_SANDBOX = "allow-scripts allow-downloads"


@dataclass(frozen=True)
class NotebookPage:
    """A page that Jupyter (or any reader of ``_repr_html_``) displays as a cell's result.

    Args:
        html: the page, self-contained.
        title: of the page.
        height: of the cell, in pixels; the page scrolls inside.
    """

    html: str = field(repr=False)
    title: str
    height: int = 800

    def save(self, path: str | PathLike) -> None:
        """Write the page to a file, atomically; of existing files, only our pages are replaced.

        Raises:
            ValueError: another file, a folder or a link, or a file in a folder that does not exist.
            OSError: the file cannot be written.
        """
        write_page(Path(path), self.html, "path")

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
    """Read models at every depth and display the page that ``distilllens inspect`` writes.

    Equals ``inspect_models`` with every token of ``text`` as a position, then ``render_page`` of
    its ``inspector_sections``. Models are read on their own device with dropout off, and left
    unchanged. The page is stored in the notebook's output: about 0.2 MB to 3 MB.

    Args:
        teacher: a causal LM or its LogitLens; without students, this is the classic logit lens. Or
            an Inspection, which contains its students, texts and pairs.
        students: causal LMs or LogitLenses that share the teacher's tokens.
        tokenizer: of all models, from transformers.
        text: one text or several for the models to read.
        names: of the teacher, then of the students; default: the folders or hub names they were
            loaded from if these differ, else "teacher" and "student".
        lens_layers: the depth pairs used in training, which the page marks: "auto", a number, or
            "2:8,4:16".
        height: of the cell, in pixels.

    Raises:
        ValueError: no text, a token that a model does not have, depth pairs that do not fit the
            models, a model that the lens cannot read, or more or fewer names than models.
        ImportError: matplotlib is missing; the message says how to install it.
    """
    require_plotting()
    if isinstance(teacher, Inspection):
        if students or text is not None:
            raise ValueError("an Inspection already has its students and texts; pass no others")
        inspection = teacher
        models = [None] * (1 + len(inspection.students))
    else:
        if text is None:
            raise ValueError('text is missing; pass one to read, such as text="Once upon a time"')
        models = [m if isinstance(m, LogitLens) else LogitLens(m) for m in (teacher, *students)]
        passages = _passages(text, tokenizer, models)
        inspection = _inspect(models, passages, lens_layers)
    names = _names(models) if names is None else list(names)
    if len(names) != len(models):
        raise ValueError(f"{len(names)} names for {len(models)} models: {names}")
    others = ", ".join(names[1:])
    title = f"{others} beside {names[0]}" if others else f"Logit lens of {names[0]}"
    sections = inspector_sections(inspection, names, partial(token_text, tokenizer))
    return NotebookPage(render_page(title, _lead(inspection), sections), title, height)


def _inspect(lenses, passages, lens_layers):
    trained = [pairs_of(lens_layers, student, lenses[0]) for student in lenses[1:]]
    with ExitStack() as stack:
        for lens in lenses:
            stack.enter_context(undisturbed(lens.model))
        return inspect_models(lenses[0], passages, lenses[1:], trained=trained)


def _passages(text, tokenizer, lenses):
    """The texts as passages, with every token as a position."""
    texts = [text] if isinstance(text, str) else list(text)
    if not texts:
        raise ValueError("text is an empty list; pass at least one text")
    passages = []
    for number, each in enumerate(texts, 1):
        ids = torch.tensor(encode_text(each, tokenizer), dtype=torch.long)
        if len(ids) == 0:
            raise ValueError(f"text {number}, {each!r}, has no token; pass a text with words")
        for lens in lenses:
            _check_fit(lens.model, ids)
        passages.append(Passage(ids, torch.arange(len(ids))))
    return passages


def _check_fit(model, ids):
    rows = model.get_input_embeddings().weight.shape[0]
    if int(ids.max()) >= rows:
        raise ValueError(
            f"the text has token {int(ids.max())}, but {_role(model)} has only {rows} embeddings: "
            "the tokenizer belongs to another model"
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
    """The last parts of the models' names if these are distinct, else their roles."""
    paths = [lens.model.name_or_path if lens else "" for lens in models]
    if all(paths) and len(set(names := shortest_names(paths))) == len(names):
        return names
    many = len(models) > 2
    students = [f"student {n}" if many else "student" for n in range(1, len(models))]
    return ["teacher" if students else "model", *students]


def _lead(inspection):
    num = len(inspection.passages)
    pairs = [",".join(f"{s}:{t}" for s, t in each) for each in inspection.trained]
    pairs = " and ".join(dict.fromkeys(filter(None, pairs)))
    read = "Read from one text." if num == 1 else f"Read from {num} texts."
    return f"{read} Paired depths, student:teacher: {pairs}." if pairs else read
