"""Where a row's prompt ends."""

import pytest

from distilllens.targets import prompt_length

NO = -100


@pytest.mark.parametrize(
    ("labels", "length"),
    [
        ([NO, NO, 3, 4], 2),
        ([NO, NO, 3, NO], 2),  # something behind the answer
        ([NO, 3, NO, NO, 5, 6, NO], 4),  # of two answers, the last
        ([3, 4], 0),
        ([3, 4, NO], 0),
        ([NO, NO], 0),
        ([], 0),
    ],
)
def test_a_prompt_ends_where_the_last_answer_begins(labels, length):
    """0 stands for a row that begins with its answer, or has none."""
    assert prompt_length(labels) == length
