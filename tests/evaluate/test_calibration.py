"""The calibration error against a program that looks at one prediction at a time."""

import json
import math

import pytest
import torch

from distilllens.evaluate.calibration import Calibration


def predictions(count, *, seed=0):
    """Confidences over the whole range; low ones are right too often, high ones too seldom."""
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(count, generator=generator)
    return confidence, torch.rand(count, generator=generator) < confidence.sqrt() * 0.8


def brute_force(confidence, correct):
    """Error, its part from bins that are too sure, and from those that are not sure enough."""
    parts = {True: 0.0, False: 0.0}
    pairs = list(zip(confidence.tolist(), correct.tolist(), strict=True))
    for bin in range(15):
        low, high = bin / 15, (bin + 1) / 15
        inside = [(c, r) for c, r in pairs if low <= c < high or (bin == 14 and c == 1.0)]
        if inside:
            mean = math.fsum(c for c, _ in inside) / len(inside)
            accuracy = sum(r for _, r in inside) / len(inside)
            parts[mean > accuracy] += len(inside) / len(pairs) * abs(mean - accuracy)
    return sum(parts.values()), parts[True], parts[False]


@pytest.mark.parametrize("count", [1, 3, 47, 5000])
def test_agrees_with_brute_force(count):
    """Error and both parts, to 1e-12; the parts add up."""
    confidence, correct = predictions(count)
    found = Calibration().add(confidence, correct)
    expected = brute_force(confidence, correct)
    assert (found.ece, found.overconfidence, found.underconfidence) == pytest.approx(
        expected, abs=1e-12
    )
    assert found.ece == found.overconfidence + found.underconfidence
    assert sum(found.count) == count and sum(found.correct) == int(correct.sum())
    if count > 3:
        assert min(expected) > 0.01  # both kinds of bin occur


def test_parts_merge():
    """Any split of the predictions, added or merged in any order, gives the same."""
    confidence, correct = predictions(400)
    whole = Calibration().add(confidence, correct)
    first = Calibration().add(confidence[:150], correct[:150])
    rest = Calibration().add(confidence[150:], correct[150:])
    for merged in (first + rest, rest + first, first.add(confidence[150:], correct[150:])):
        assert merged.count == whole.count and merged.correct == whole.correct
        assert merged.confidence == pytest.approx(whole.confidence, abs=1e-12)
    assert first + Calibration() == first


def test_sure_and_wrong_unsure_and_right():
    """All overconfident, all underconfident, and half of each."""
    sure_and_wrong = Calibration().add(torch.full((4,), 0.9), torch.zeros(4, dtype=torch.bool))
    assert sure_and_wrong.overconfidence == pytest.approx(0.9)
    assert sure_and_wrong.underconfidence == 0
    unsure_and_right = Calibration().add(torch.full((4,), 0.1), torch.ones(4, dtype=torch.bool))
    assert unsure_and_right.underconfidence == pytest.approx(0.9)
    assert unsure_and_right.overconfidence == 0
    both = sure_and_wrong + unsure_and_right
    assert both.overconfidence == pytest.approx(0.45) == both.underconfidence
    assert both.ece == pytest.approx(0.9)


def test_a_bin_is_judged_as_a_whole():
    """Three of four right at 0.75: no error, though each prediction alone is off."""
    found = Calibration().add(torch.full((4,), 0.75), torch.tensor([True, True, False, True]))
    assert found.ece == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("confidence", "expected"),
    [(0.0, 0), (1 / 30, 0), (0.0667, 1), (0.2, 3), (0.6, 9), (0.9333, 13), (0.9334, 14), (1.0, 14)],
)
def test_bins(confidence, expected):
    """Bins hold their lower bound; the last one 1.0 as well."""
    confidence = torch.tensor([confidence], dtype=torch.float64)
    found = Calibration().add(confidence, torch.tensor([True]))
    assert found.count.index(1) == expected and len(found.count) == 15


@pytest.mark.parametrize("empty", [Calibration(), Calibration().add(torch.rand(0), torch.rand(0))])
def test_nothing_is_zero(empty):
    """No prediction: counts of 0, and no NaN."""
    assert sum(empty.count) == 0
    assert (empty.ece, empty.overconfidence, empty.underconfidence) == (0, 0, 0)


def test_survives_json():
    """What comes back from JSON is equal."""
    found = Calibration().add(*predictions(60))
    assert Calibration.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize("broken", [{}, {"count": [0] * 15}, {"confidence": [0.0] * 15}])
def test_refuses_other_dictionaries(broken):
    """A file with other content is refused."""
    with pytest.raises(ValueError, match="15 numbers each by count, confidence, correct, got"):
        Calibration.from_dict(broken)
    short = Calibration().to_dict() | {"count": [0] * 10}
    with pytest.raises(ValueError, match="'count': 10"):
        Calibration.from_dict(short)


@pytest.mark.parametrize("confidence", [1.5, -0.1, math.nan])
def test_refuses_what_is_no_probability(confidence):
    """The number is named."""
    with pytest.raises(ValueError, match=f"0 to 1, got {confidence}"):
        Calibration().add(torch.tensor([confidence], dtype=torch.float64), torch.tensor([True]))
