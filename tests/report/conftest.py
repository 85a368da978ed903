"""A small inspection of toy models: a teacher, two students of different depth, three texts."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import toys

sys.path.insert(0, str(Path(__file__).parent))

from distilllens.lens import Passage, inspect_models

# Texts that a page must not take for anything but text; the others are words.
NASTY = {5: "</script><script>alert(1)</script>", 6: "<!--", 7: '"&amp;', 8: "␣a,b"}


@pytest.fixture(scope="session")
def inspected():
    """Models, passages, their inspection, names and the text of a token."""
    teacher = toys.llama(4, 24, seed=1).eval()
    students = [toys.llama(3, 16).eval(), toys.gpt2(2).eval()]
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(2, 22, (length,), generator=generator) for length in (12, 7, 30)]
    passages = [Passage(ids, torch.arange(len(ids))) for ids in texts[:2]]
    passages.append(Passage(texts[2], torch.arange(20, 29)))
    trained = [((1, 1), (2, 3)), ()]
    return SimpleNamespace(
        teacher=teacher,
        students=students,
        passages=passages,
        found=inspect_models(teacher, passages, students, trained=trained),
        names=["teacher & co", "<b>kd</b>", "shallow"],
        text_of=lambda token: NASTY.get(token, f"␣w{token}"),
    )
