"""Analytic gradients on a block of rows: autograd of the definition, -inf and one-hot included."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from distilllens.divergence import divergence, parameters
from distilllens.linear_divergence import gradients
from distilllens.linear_divergence.gradients import DIVERGENCES, cross_entropy

INF = float("inf")


def by_autograd(name, student, teacher):
    student = student.clone().requires_grad_()
    value = divergence(name)(student, teacher)
    return value.detach(), torch.autograd.grad(value.sum(), student)[0]


def by_formula(name, student, teacher):
    student, teacher = student.clone(), teacher.clone()
    work = torch.full((2, *student.shape), float("nan"), dtype=student.dtype).unbind()
    value = DIVERGENCES[name](student, teacher, work, True, **parameters(name, {}))
    return value, student


@pytest.mark.parametrize("name", DIVERGENCES)
@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_equals_autograd(name, data):
    """Any logits, some of them -inf in both models: the same value and gradient in float64."""
    size = data.draw(st.integers(2, 6))
    rows = st.lists(st.floats(-40, 40), min_size=size, max_size=size)
    student, teacher = (torch.tensor([data.draw(rows)], dtype=torch.float64) for _ in "qp")
    gone = data.draw(st.lists(st.integers(1, size - 1)))
    student[:, gone] = teacher[:, gone] = -INF
    if name == "total_variation":  # a tie has a gradient on either side
        q, p = student.softmax(-1), teacher.softmax(-1)
        near = (q - p).abs() <= 1e-9 * q
        assume(torch.equal(student, teacher) or not (near & student.isfinite()).any())
    for found, expected in zip(
        by_formula(name, student, teacher), by_autograd(name, student, teacher), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extremes(name, dtype, waits, monkeypatch):
    """One-hot rows, equal rows, tokens that only one model has: the same value, inf included.

    So too as on an accelerator, where -inf is not looked for but always masked.
    """
    monkeypatch.setattr(gradients, "reading_waits", lambda tensor: waits)
    spread = torch.tensor([1e3, 0.0, -1e3, 2.0, 1.0], dtype=dtype)
    holed = torch.tensor([0.0, -INF, 1.0, 2.0, -INF], dtype=dtype)
    flat = torch.zeros(5, dtype=dtype)
    student = torch.stack([spread, spread.flip(0), spread, holed, flat, holed, holed])
    teacher = torch.stack([spread.flip(0), spread, spread, flat, holed, holed, spread])
    value, gradient = by_formula(name, student, teacher)
    expected, expected_gradient = by_autograd(name, student, teacher)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    finite = expected.isfinite()
    torch.testing.assert_close(gradient[finite], expected_gradient[finite], rtol=1e-4, atol=1e-6)
    # 0, but for the smallest float that keeps ratios finite.
    assert (gradient[finite][student[finite] == -INF].abs() < 1e-35).all()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_without_a_gradient_the_value_is_the_same(name):
    """``wants_gradient`` changes cost, never the value."""
    student, teacher = torch.randn(3, 47), torch.randn(3, 47)
    work = torch.empty(2, 3, 47).unbind()
    value = DIVERGENCES[name](student.clone(), teacher.clone(), work, False, **parameters(name, {}))
    assert torch.equal(value, by_formula(name, student, teacher)[0])


def test_jsd_of_equal_models_is_zero():
    """To float32 rounding at GPT-2's vocabulary, where log(m + 1e-8) gives -5.0e-4 (method 5.3)."""
    for logits in (torch.zeros(1, 50257), torch.randn(3, 50257) * 3):
        value, gradient = by_formula("jsd", logits, logits)
        assert (value.abs() < 1e-7).all() and (gradient.abs() < 1e-7).all()


def test_cross_entropy_of_a_token_the_student_lacks():
    """+inf, and the gradient of the others stays finite."""
    student = torch.tensor([[0.0, -INF, 1.0]])
    value = cross_entropy(student, (torch.tensor([1]), None), None, True)
    assert value.item() == INF and student.isfinite().all()
