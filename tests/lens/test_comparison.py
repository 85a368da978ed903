"""Student against teacher, token by token, compared with textbook sums over the vocabulary."""

import math

import pytest
import torch

from distilllens import LayerMap, divergence
from distilllens.lens.comparison import (
    DECADES,
    MEASURES,
    NUM_BINS,
    PENALTIES,
    compare_rows,
    partners,
    penalties,
)


def rows(num=7, vocab=31, seed=0, scale=3.0):
    """Log-probabilities of student and teacher in float64."""
    generator = torch.Generator().manual_seed(seed)
    pair = torch.randn(2, num, vocab, generator=generator, dtype=torch.float64) * scale
    return pair.log_softmax(-1).unbind()


def compared(log_q, log_p, top_k=3):
    """The parts by name."""
    names = ("divergences", "over", "under", "penalties", "ratios")
    found = compare_rows(log_q, log_p, log_p.topk(top_k).indices)
    return dict(zip(names, found, strict=True))


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 30.0])
def test_divergences_are_those_of_training(scale):
    """From equal to nearly one-hot distributions, they equal ``divergence`` of the rows."""
    log_q, log_p = rows(scale=scale)
    found = compared(log_q, log_p)["divergences"]
    for at, name in enumerate(MEASURES):
        expected = divergence(name)(log_q, log_p)
        torch.testing.assert_close(found[:, at], expected, rtol=1e-9, atol=1e-12)


def test_penalties_are_the_generators_on_either_side():
    """p f(q / p), written out from the paper's f, summed where q < p and where not."""
    log_q, log_p = rows()
    q, p = log_q.exp(), log_p.exp()
    r = q / p
    generators = {
        "forward_kl": r - 1 - r.log(),
        "reverse_kl": r * r.log() - r + 1,
        "jeffreys": (r - 1) * r.log(),
        "jsd": 0.5 * (r * r.log() - (1 + r) * ((1 + r) / 2).log()),
    }
    found = compared(log_q, log_p)["penalties"]
    for at, name in enumerate(PENALTIES):
        charged = p * generators[name]
        expected = torch.stack([charged[r < 1].sum(), charged[r >= 1].sum()])
        torch.testing.assert_close(found[at], expected)


def test_the_generators_push_where_the_paper_says():
    """As r -> 0, forward KL has no bound, reverse KL's is 1, JSD's is ln(2) / 2; all are 0 at 1."""
    log_r = torch.tensor([-50.0, 0.0, 3.0], dtype=torch.float64)
    found = penalties(log_r.exp(), torch.ones(3, dtype=torch.float64), log_r)
    assert found["forward_kl"][0] == pytest.approx(49)
    assert found["reverse_kl"][0] == pytest.approx(1)
    assert found["jsd"][0] == pytest.approx(math.log(2) / 2)
    assert all(float(f[1]) == 0 for f in found.values())
    assert found["reverse_kl"][2] > found["forward_kl"][2] > found["jsd"][2]


def test_over_and_under_are_the_total_variation():
    """Both models' probabilities sum to 1, so excess and shortfall are equal."""
    log_q, log_p = rows()
    found = compared(log_q, log_p, top_k=4)
    q, p = log_q.exp(), log_p.exp()
    expected = divergence("total_variation")(log_q, log_p)
    torch.testing.assert_close(found["over"].sum(-1), expected)
    torch.testing.assert_close(found["under"].sum(-1), expected)
    for row, best in enumerate(p.topk(4).indices):
        over = (q - p)[row].clamp_min(0)
        assert found["over"][row, 0] == pytest.approx(float(over[best].sum()))
        under = (p - q)[row].clamp_min(0)
        assert found["under"][row, 0] == pytest.approx(float(under[best].sum()))


def test_the_histogram_holds_all_probability_by_ratio():
    """Each bin has the tokens whose ratio falls in it; the outermost include everything beyond."""
    log_q, log_p = rows(scale=6.0)
    ratios = compared(log_q, log_p)["ratios"]
    torch.testing.assert_close(ratios.sum(1), torch.full((2,), 7.0, dtype=torch.float64))
    edges = torch.linspace(-DECADES, DECADES, NUM_BINS + 1, dtype=torch.float64)
    place = (log_q - log_p) / math.log(10)
    for k in (0, 38, 39, 40, 41, NUM_BINS - 1):
        low = -math.inf if k == 0 else edges[k]
        high = math.inf if k == NUM_BINS - 1 else edges[k + 1]
        inside = (place >= low) & (place < high)
        assert ratios[0, k] == pytest.approx(float(log_p.exp()[inside].sum()))
        assert ratios[1, k] == pytest.approx(float(log_q.exp()[inside].sum()))
    assert ratios[0, 0] > 0 and ratios[1, -1] > 0  # the test reaches the outermost bins


def test_unequal_vocabularies_share_their_prefix():
    """The shared columns are renormalised; a top token beyond them does not count."""
    log_q, log_p = rows()
    wide = torch.cat([log_p + math.log(0.3), torch.full((7, 1), math.log(0.7)).double()], -1)
    assert (wide.argmax(-1) == 31).any()
    narrow, padded = compared(log_q, log_p, top_k=2), compared(log_q, wide, top_k=3)
    torch.testing.assert_close(padded["divergences"], narrow["divergences"])
    torch.testing.assert_close(padded["over"].sum(-1), narrow["over"].sum(-1))
    same = (wide.topk(3).indices[:, 0] == 31) & (wide.topk(3).indices[:, 1] != 31)
    torch.testing.assert_close(padded["over"][same], narrow["over"][same])


def test_a_probability_of_zero_is_no_nan():
    """All numbers are finite even if one model, or both, give tokens zero probability."""
    log_q, log_p = (x.clone() for x in rows())
    log_q[:, 0], log_p[:, 0] = -math.inf, -math.inf
    log_q[:, 1], log_p[:, 2] = -math.inf, -math.inf
    found = compared(log_q.log_softmax(-1), log_p.log_softmax(-1))
    assert all(part.isfinite().all() for part in found.values())
    assert (found["divergences"][:, 1] > 1).all()


def test_depths_meet_their_partner_of_training_or_the_nearest():
    """Trained pairs first, else the nearest relative depth, the shallower of two."""
    assert partners(4, 8) == (0, 2, 4, 6, 8)
    assert partners(2, 5) == (0, 2, 5)  # 1/2 lies between 2/5 and 3/5
    assert partners(5, 2) == (0, 0, 1, 1, 2, 2)
    paper = LayerMap.evenly(5, 12, 48)
    assert all(partners(12, 48, paper)[s] == t for s, t in paper)
    assert partners(3, 6, [(1, 1), (2, 5)]) == (0, 1, 5, 6)
