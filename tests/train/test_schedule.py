"""The weight of the lens by step, and of each pair, as the formulas of the documentation."""

import math

import pytest

from distilllens import LayerMap
from distilllens.train.schedule import SCHEDULES, lens_share, pair_weights

FORMULAS = {
    "constant": lambda way: 1,
    "linear": lambda way: 1 - way,
    "cosine": lambda way: (1 + math.cos(math.pi * way)) / 2,
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("until", "num_steps"), [(1.0, 7), (0.5, 10), (0.3, 10), (0.01, 5)])
def test_the_weight_falls_as_the_formula(name, until, num_steps):
    """1 in the first step, never rising, and exactly 0 from ``until`` on."""
    found = [lens_share(name, until, step, num_steps) for step in range(num_steps)]
    assert found[0] == 1 and found == sorted(found, reverse=True)
    for step, share in enumerate(found):
        way = step / (until * num_steps)
        if round(way, 9) < 1:
            assert share == pytest.approx(FORMULAS[name](way), abs=1e-12) and share > 0
        else:
            assert share == 0


@pytest.mark.parametrize("num_steps", [10, 30, 70, 100, 1000, 12345])
def test_a_decimal_share_ends_at_its_step(num_steps):
    """0.1 of 30 steps are 3, though 0.1 * 30 is above 3 in binary."""
    for percent in range(1, 100):
        steps = [lens_share("linear", percent / 100, step, num_steps) for step in range(num_steps)]
        assert sum(share > 0 for share in steps) == math.ceil(num_steps * percent / 100 - 1e-6)


def test_outside_of_training_the_weight_is_whole():
    """Before ``train()`` there are no steps to have a share of."""
    assert lens_share("cosine", 0.5, 0, 0) == 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("uniform", None),
        (None, None),
        ("depth", (0.5, 1.0, 1.5)),
        ([1, 1, 4], (0.5, 0.5, 2.0)),
        ([0, 0.0, 7e300], (0.0, 0.0, 3.0)),
    ],
)
def test_pairs_weigh_1_on_average(given, expected):
    """Proportional to what is given, or to the student's depth."""
    found = pair_weights(given, LayerMap([(2, 5), (4, 5), (6, 9)]))
    assert found == (expected if expected is None else pytest.approx(expected))
    assert pair_weights(given, None) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1, 2], "one for each of the 1 pairs 0:3, got 2"),
        ([0], r"lens_pair_weights \[0\] are 0 for all pairs 0:3"),
        ("depth", "lens_pair_weights 'depth' are 0 for all pairs 0:3"),
    ],
)
def test_weights_that_do_not_fit_the_pairs(given, message):
    """What only the map of the models tells."""
    with pytest.raises(ValueError, match=message):
        pair_weights(given, LayerMap([(0, 3)]))
