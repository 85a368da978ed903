"""The scores of runs as a study reads them."""

import numpy as np
import pytest

from distilllens.evaluate.scores import Samples, score
from distilllens.evaluate.table import ResultTable
from distilllens.workflows.study.results import DEV, development_samples


def samples(totals, counts):
    """One value an example, of one seed."""
    columns = (np.array(column, dtype=float)[:, None] for column in (totals, counts))
    return Samples(np.arange(len(totals)), *columns)


def test_a_development_set_of_two_files_is_one():
    """The mean over the tokens of both, and each example once."""
    both = {"a": samples([2.0, 4.0], [1, 3]), "b": samples([9.0, 1.0, 2.0], [5, 1, 2])}
    table = ResultTable("x", {}, {f: {"m": {"kl": one}} for f, one in both.items()}, {}, {})
    found = development_samples(table)
    assert found.keys() == {(DEV, "kl")}
    assert found[DEV, "kl"].examples.tolist() == [0, 1, 2, 3, 4]
    assert score("kl", found[DEV, "kl"]).mean == pytest.approx(18 / 12)
