"""A divergence that is one entry in ``divergence.py`` works in every engine, by autograd."""

import importlib

import pytest
import torch
from linear_divergence import problems
from linear_divergence.problems import BUDGET, assert_within_budget, problem, results

from distilllens import Objective, linear_divergence
from distilllens.linear_divergence import gradients

formulas = importlib.import_module("distilllens.divergence")


def renyi(log_q, log_p, *, order=0.5):
    """Rényi's divergence of p from q, written for this test."""
    return torch.logsumexp(order * log_p + (1 - order) * log_q, -1) / (order - 1)


@pytest.fixture(autouse=True)
def entry(monkeypatch):
    """The one entry."""
    new = formulas._Divergence(renyi, {"order": formulas._Share()})
    monkeypatch.setitem(formulas._DIVERGENCES, "renyi", new)
    monkeypatch.setitem(problems.DIVERGENCES, "renyi", {"order": 0.3})


@pytest.mark.parametrize("dtype", BUDGET)
def test_equals_the_reference(dtype):
    """Value and every gradient, in chunks of 3 of 47, over a shared prefix."""
    assert "renyi" not in gradients.DIVERGENCES
    given = problem(47, 31, 23, dtype=dtype, scale=0.7, softcap=3.0)
    expected = results(given, "renyi", impl="reference", temperature=1.3)
    found = results(given, "renyi", impl="chunked", temperature=1.3, chunk_size=3)
    assert_within_budget(found, expected, dtype)


def test_gradcheck():
    """Finite differences in float64."""
    given = problem(3, 11, 9, scale=0.7)

    def loss(student):
        return linear_divergence(
            student,
            given.student_head,
            given.teacher,
            given.teacher_head,
            divergence="renyi",
            chunk_size=2,
            order=0.3,
        )[0]

    assert torch.autograd.gradcheck(loss, [given.student])


def test_its_parameters_are_checked():
    """Defaults come from the formula, ranges from the entry; the objective takes it by name."""
    assert formulas.parameters("renyi", {}) == {"order": 0.5}
    with pytest.raises(ValueError, match="order of renyi must lie strictly between 0 and 1"):
        formulas.parameters("renyi", {"order": 1.0})
    assert Objective(lens_divergence="renyi").lens_divergence == "renyi"


def test_without_a_gradient_nothing_is_recorded():
    """A frozen student: the value alone, and no graph."""
    given = problem(5)
    with torch.no_grad():
        total, nats = given.run("renyi", impl="chunked")
    assert not total.requires_grad and torch.isfinite(nats).all()
