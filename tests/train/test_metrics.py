"""Every logged mean is a sum over the tokens that it was measured on."""

import torch

from distilllens import LayerMap
from distilllens.objective import LossTerms
from distilllens.train.metrics import TermSums, named_terms

ONE, TWO = LayerMap([(1, 2)]), LayerMap([(2, 3)])


def terms(lens, by_pair, tokens, lens_tokens):
    """The terms of a batch whose total is 6 and whose cross-entropy is 4."""
    lens, by_pair = torch.tensor(lens), torch.tensor([by_pair])
    sums = {"cross_entropy": (torch.tensor(4.0), tokens), "lens": (lens, tokens)}
    return LossTerms(torch.tensor(6.0), sums, {"lens": (by_pair, lens_tokens)}, tokens)


def alone(sums):
    return sums


def test_a_pair_is_averaged_over_the_tokens_that_were_drawn():
    """Two of four and one of two tokens measured: the pair by 3, the terms of all tokens by 6."""
    sums = TermSums()
    sums.add(named_terms(terms(8.0, 4.0, 4, 2), ONE))
    sums.add(named_terms(terms(4.0, 2.0, 2, 1), ONE))
    expected = {"loss": 2.0, "cross_entropy": 8 / 6, "lens_loss": 2.0, "lens_loss/1:2": 2.0}
    assert sums.means(alone) == expected
    assert sums.num_tokens == 6
    assert sums.means(alone) == {}
    assert sums.num_tokens == 0


def test_a_name_without_a_token_is_left_out():
    """A pair that nobody measured is missing, one that another process measured is there."""
    sums = TermSums()
    sums.add(named_terms(terms(8.0, 4.0, 4, 2), ONE))
    sums.add(named_terms(terms(0.0, 0.0, 2, 0), TWO))
    assert "lens_loss/2:3" not in sums.means(alone)
    sums.add(named_terms(terms(0.0, 0.0, 2, 0), TWO))
    named = named_terms(terms(3.0, 1.5, 2, 1), TWO).values()
    other = torch.tensor([[float(value), count] for value, count in named]).T
    assert sums.means(lambda own: own + other)["lens_loss/2:3"] == 1.5
    assert sums.num_tokens == 4  # of both
