"""Head: what a model's read-out computes, and what it refuses."""

import pytest
import torch

from distilllens.head import Head


def test_logits_by_hand():
    """W h + b, then the scale, then the cap: by hand on a head of two tokens."""
    head = Head(torch.eye(2), torch.tensor([1.0, 0.0]), scale=2.0, softcap=5.0)
    expected = 5 * torch.tanh(torch.tensor([2 * (3.0 + 1), 2 * -1.0]) / 5)
    torch.testing.assert_close(head(torch.tensor([3.0, -1.0])), expected)


@pytest.mark.parametrize("shape", [(0, 7), (1, 7), (3, 2, 7)])
def test_any_leading_shape(shape):
    """Hidden ``[..., D]`` -> logits ``[..., V]``; a plain head is a linear layer to the bit."""
    layer = torch.nn.Linear(7, 31)
    hidden = torch.randn(shape)
    head = Head(layer.weight, layer.bias)
    assert head(hidden).shape == (*shape[:-1], head.vocab_size) and head.vocab_size == 31
    assert torch.equal(head(hidden), layer(hidden))


def test_holds_the_models_own_parameters():
    """No copy: a step of the model's optimiser is a step of the head's, gradients included."""
    layer = torch.nn.Linear(3, 5)
    head = Head(layer.weight, layer.bias)
    head(torch.ones(3)).sum().backward()
    assert head.weight is layer.weight and layer.weight.grad is not None
    assert layer.bias.grad is not None


def test_cap_bounds_and_keeps_the_dtype():
    """Capped logits stay within the cap, in the model's dtype."""
    logits = Head(torch.full((3, 2), 100.0, dtype=torch.bfloat16), softcap=30.0)(
        torch.ones(2, dtype=torch.bfloat16)
    )
    assert logits.dtype == torch.bfloat16 and (logits.abs() <= 30).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": torch.ones(3)}, r"must be \[V, D\], got shape \[3\]"),
        ({"bias": torch.ones(2)}, r"must be \[3\] like the weight's rows, got shape \[2\]"),
        ({"scale": 0.0}, "finite and not 0, got 0.0"),
        ({"scale": float("inf")}, "finite and not 0, got inf"),
        ({"softcap": 0.0}, "above 0, got 0.0"),
        ({"softcap": float("nan")}, "above 0, got nan"),
    ],
)
def test_heads_that_are_refused(arguments, message):
    """Each message holds the value and what would be right."""
    with pytest.raises(ValueError, match=message):
        Head(**{"weight": torch.ones(3, 2), **arguments})
