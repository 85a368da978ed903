"""Means, quartiles and calibration, on small examples computed by hand."""

import numpy as np
import pytest
import torch

from distilllens.evaluate.calibration import Calibration
from distilllens.lens.reading import Reading
from distilllens.lens.summary import NUM_CONFIDENCE_BINS, band, reliability, settled_share


def reading(tokens, probabilities):
    """Of top tokens and their probabilities ``[K, N]``."""
    tokens, probabilities = torch.tensor(tokens), torch.tensor(probabilities)
    zeros = torch.zeros(tokens.shape)
    return Reading(tokens.unsqueeze(-1), probabilities.unsqueeze(-1), zeros, zeros)


def test_a_band_is_mean_and_quartiles():
    """As computed by numpy for each depth; for a single token all equal its value."""
    values = torch.randn(3, 11, generator=torch.Generator().manual_seed(0))
    found = band(values)
    quartiles = np.quantile(values.double().numpy(), [0.25, 0.5, 0.75], axis=1)
    for name, expected in zip(("lower", "median", "upper"), quartiles, strict=True):
        assert getattr(found, name) == pytest.approx(expected.tolist())
    assert found.mean == pytest.approx(values.double().mean(1).tolist())
    one = band(torch.tensor([[2.0]]))
    assert one.mean == one.lower == one.median == one.upper == (2.0,)


def test_settled_share_rises_to_one():
    """Of four tokens one is settled at once, two from depth 1, one at the end."""
    tokens = [[1, 9, 9, 9], [1, 2, 3, 9], [1, 2, 3, 4]]
    assert settled_share(reading(tokens, np.ones((3, 4)))) == (0.25, 0.75, 1.0)


def test_reliability_counts_what_is_right():
    """Two bins by hand: 0.55 and 0.57, one correct; 1.0, correct; unknown targets are skipped."""
    found = reliability(
        reading([[1, 2, 3, 4]], [[0.55, 0.57, 1.0, 0.9]]), torch.tensor([1, 7, 3, -1])
    )
    assert found.confidence == pytest.approx((0.56, 1.0))
    assert found.accuracy == pytest.approx((0.5, 1.0))
    assert found.counts == (2, 1)
    assert found.error == pytest.approx(2 / 3 * 0.06)


@pytest.mark.parametrize("count", [1, 47, 3000])
def test_the_calibration_error_is_that_of_evaluations(count):
    """The inspector's error and ``evaluate``'s, of the same predictions; 1.0 and 0.0 among them."""
    generator = torch.Generator().manual_seed(count)
    confidence = torch.rand(count, generator=generator)
    confidence[0], confidence[-1] = 0.0, 1.0
    top, targets = torch.randint(3, (2, count), generator=generator)
    found = reliability(reading([top.tolist()], [confidence.tolist()]), targets)
    expected = Calibration().add(confidence, top == targets)
    assert found.error == pytest.approx(expected.ece, abs=1e-12)
    assert found.counts == tuple(n for n in expected.count if n)
    assert NUM_CONFIDENCE_BINS == len(expected.count) == 15


def test_reliability_without_a_target_is_refused():
    """A mean over no tokens is undefined."""
    with pytest.raises(
        ValueError, match="reliability needs at least one position whose next token is known"
    ):
        reliability(reading([[1]], [[0.5]]), torch.tensor([-1]))
