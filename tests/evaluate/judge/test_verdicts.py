"""From scores of both orders to verdicts, and from verdicts to totals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilllens.evaluate.judge.verdicts import Estimate, Totals, Verdict, totals, verdict_of

SCORES = st.floats(1, 10)
PAIRS = st.tuples(SCORES, SCORES)


def test_means_over_both_orders():
    """Score 6 and 8, reference 6 and 9: a tie and a loss."""
    assert verdict_of([(6.0, 6.0), (8.0, 9.0)]) == Verdict(7.0, 7.5, 0.25)


@pytest.mark.parametrize("orders", [[], [None, None], [(1.0, 2.0), None], [None, (1.0, 2.0)]])
def test_an_order_that_is_unread_leaves_no_verdict(orders):
    """A single order would favour a position."""
    assert verdict_of(orders) == Verdict(None, None, None)


@given(first=PAIRS, second=PAIRS)
def test_answer_and_reference_trade_places(first, second):
    """Exchanging the roles exchanges the scores, and a win becomes a loss."""
    verdict, other = verdict_of([first, second]), verdict_of([first[::-1], second[::-1]])
    assert (verdict.score, verdict.reference_score) == (other.reference_score, other.score)
    assert verdict.win == 1 - other.win
    assert verdict.win in (0, 0.25, 0.5, 0.75, 1)


def test_totals():
    """(4 + 6) / (8 + 8) is 62.5 %; a case without a verdict counts in nothing but its number."""
    verdicts = [Verdict(4.0, 8.0, 0.0), Verdict(None, None, None), Verdict(6.0, 8.0, 0.5)]
    found = totals(verdicts)
    assert found == Totals(3, 1, 5.0, 8.0, 0.25, 62.5)
    assert str(found) == (
        "score 5.00, reference 8.00, ratio 62.5 %, wins 25.0 %; 1 of 3 cases have no verdict"
    )
    assert "no verdict" not in str(totals(verdicts[:1]))


@pytest.mark.parametrize("count", [0, 2])
def test_totals_of_nothing(count):
    """No figure is made up where no case has a verdict."""
    found = totals([Verdict(None, None, None)] * count)
    assert found == Totals(count, count, None, None, None, None)
    assert "\n" not in str(found)


def test_an_estimate_is_one_line():
    """Calls, tokens and cost; an estimate has "about"."""
    assert str(Estimate(10, 4, 5000, 800, 0.00123)) == (
        "10 calls (4 judgments are in the cache), about 5000 prompt and 800 completion tokens, "
        "about 0.0012 USD"
    )
    assert str(Estimate(10, 0, 5000, 800, None, measured=True)) == (
        "10 calls, 5000 prompt and 800 completion tokens, price not known"
    )
