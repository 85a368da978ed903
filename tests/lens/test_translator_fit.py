"""Fitted translators are the least-squares answer, and their steps on KL lower it."""

import pytest
import torch
from torch import nn

from distilllens.head import Head
from distilllens.lens.translator_fit import TranslatorFit


def made(rows=400, width=6, noise=0.0, seed=0):
    """A stream whose last state is an affine map of the first, and what reads it."""
    torch.manual_seed(seed)
    first = torch.randn(rows, width) * torch.tensor([9.0, 1, 1, 0.5, 1, 2]) + 3
    last = first @ torch.randn(width, width) + torch.randn(width)
    last = last + noise * torch.randn(rows, width).abs() ** 3
    norm, head = nn.LayerNorm(width), Head(torch.randn(30, width))
    for parameter in norm.parameters():
        nn.init.normal_(parameter, 1.0)
    return first, last, norm, head


def fitted(first, last, norm, head, *, parts=1, **kwargs):
    fit = TranslatorFit([3], first.shape[1])
    for a, b in zip(first.chunk(parts), last.chunk(parts), strict=True):
        fit.add({3: a, 7: b}, b, norm(b).detach())
    return fit.solve(norm, head, **kwargs)


def kl(translators, first, last, norm, head):
    """KL(output || lens) in nats per row, from torch.distributions."""
    with torch.no_grad():
        p, q = (
            torch.distributions.Categorical(logits=head(norm(state)).double())
            for state in (last, translators(3, first))
        )
        return float(torch.distributions.kl_divergence(p, q).mean())


def test_it_is_ridge_regression():
    """That of numpy's least squares on rows that the penalty appends."""
    first, last, norm, head = made(noise=0.5)
    found = fitted(first, last, norm, head, refine=False)
    x, y = first.double() - first.double().mean(0), last.double() - last.double().mean(0)
    penalty = (0.01 * x.square().sum(0).mean()).sqrt() * torch.eye(6, dtype=torch.float64)
    rows = torch.cat([x, penalty]), torch.cat([y, torch.zeros(6, 6, dtype=torch.float64)])
    linear = torch.linalg.lstsq(*rows).solution
    bias = last.double().mean(0) - first.double().mean(0) @ linear
    weight = found.weight[0].double() + torch.eye(6)
    assert torch.allclose(weight, linear.T, atol=1e-5)
    assert torch.allclose(found.bias[0].double(), bias, atol=1e-4)


def test_a_map_that_is_there_is_found():
    """Then the lens predicts what the output predicts; the raw stream does not."""
    first, last, norm, head = made()
    found = fitted(first, last, norm, head)
    new = TranslatorFit([3], 6).translators
    assert kl(found, first, last, norm, head) < 0.01 < 0.5 < kl(new, first, last, norm, head)


def test_steps_on_kl_lower_it():
    """Where no affine map fits, least squares are not the answer of least KL."""
    world = made(rows=2000, noise=1.0)
    plain, refined = (fitted(*world, refine=each) for each in (False, True))
    assert kl(refined, *world) < 0.99 * kl(plain, *world)


def test_parts_of_the_rows_may_be_of_any_size():
    """The sums do not depend on the batches; and the same rows give the same bits."""
    world = made(noise=0.5)
    whole, again, parts = fitted(*world), fitted(*world), fitted(*world, parts=7)
    assert torch.equal(whole.weight, again.weight)
    assert torch.allclose(whole.weight, parts.weight, atol=1e-5)
    assert torch.allclose(whole.bias, parts.bias, atol=1e-4)


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_rows(rows):
    """A variance needs two."""
    fit = TranslatorFit([0], 4)
    state = torch.randn(rows, 4)
    fit.add({0: state}, state, state)
    with pytest.raises(ValueError, match=f"at least 2 tokens, got {rows}"):
        fit.solve(nn.Identity(), Head(torch.randn(5, 4)))


def test_fewer_rows_than_directions():
    """The penalty makes the answer finite, and unique."""
    first, last, norm, head = made(rows=3)
    found = fitted(first, last, norm, head)
    assert all(torch.isfinite(p).all() for p in found.parameters())
