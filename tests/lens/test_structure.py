"""Finding and replacing floating-point tensors in inputs and outputs of modules."""

from collections import namedtuple

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from distilllens.lens.structure import first_float, floats, ratio, rebuild, same, with_first, worst

A, B, IDS = torch.randn(2, 3), torch.randn(4), torch.tensor([1, 2])
Pair = namedtuple("Pair", "left right")
FORMS = [
    (A, IDS, None, B),
    [IDS, [A], {"x": B}],
    Pair(A, (None, B)),
    {"ids": IDS, "first": A, 3: B},
    BaseModelOutput(last_hidden_state=A, hidden_states=(B,)),
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: type(form).__name__)
def test_replaces_the_first_tensor_and_keeps_the_form(form):
    """Only the first floating tensor changes; types, other tensors and None stay."""
    assert [id(t) for t in floats(form)] == [id(A), id(B)]
    new = torch.zeros(1)
    changed = with_first(form, new)
    assert type(changed) is type(form)
    assert first_float(changed) is new
    assert list(floats(changed))[1] is B
    assert [id(t) for t in floats(rebuild(form, lambda i, t: t))] == [id(A), id(B)]


def test_nothing_floating_is_nothing():
    """Integer tensors are not a stream."""
    assert first_float((IDS, None, "text")) is None


def test_same_looks_through_a_cast():
    """Equal numbers in two dtypes are the same tensor; a view of another shape is not."""
    half = A.bfloat16()
    assert same(A, half) and same(half, A) and same(half.float(), half)
    assert not same(A, A + 0.1) and not same(A, A[:1])


def test_ratio_finds_a_constant_or_nothing():
    """``a = c b`` gives c; anything else None."""
    assert ratio(A * 0.3, A) == pytest.approx(0.3)
    assert ratio(A.bfloat16() / 3, A.bfloat16()) == pytest.approx(1 / 3, rel=4e-3)
    assert ratio(A + 1, A) is None
    assert ratio(A, torch.zeros_like(A)) is None


def test_worst_is_relative_to_the_largest_logit():
    """Equal infinities count as equal; NaN and other shapes give an infinite error."""
    truth = torch.tensor([2.0, -4.0, -torch.inf])
    assert worst(truth, truth) == 0
    assert worst(truth + torch.tensor([0.1, 0.0, 0.0]), truth) == pytest.approx(0.025, rel=1e-5)
    assert worst(torch.full((3,), torch.nan), truth) == float("inf")
    assert worst(truth[:2], truth) == float("inf")
    assert worst(torch.tensor([2.0, -4.0, 0.0]), truth) == float("inf")
