"""The most likely tokens of a model that is elsewhere, and one column for all others."""

import torch

from distilllens.top_predictions import TopPredictions

LOGITS = torch.tensor([[1.0, 2.0, 0.5, -1.0, 0.0, 3.0], [0.0, -2.0, 1.0, 4.0, 0.5, 0.25]])


def top(k, **kwargs):
    logs, ids = LOGITS.log_softmax(-1).topk(k)
    return TopPredictions.of(ids, logs, **kwargs)


def test_columns_and_folds_add_up_to_one():
    """Of both sides, and the last is what the others leave."""
    found = top(2)
    columns = found.columns(slice(None), 6, torch.float64)
    folded = found.fold(LOGITS.double(), slice(None)).log_softmax(-1)
    assert torch.allclose(columns.exp().sum(-1), torch.ones(2, dtype=torch.float64), atol=1e-7)
    assert torch.allclose(columns, folded, atol=1e-6), "a model against itself"
    assert found.columns(slice(1, 2), 6, torch.float64).shape == (1, 3)


def test_a_token_that_the_student_lacks_is_no_column():
    """Token 5, the first row's likeliest, beyond a student of five tokens."""
    columns = top(2).columns(slice(None), 5, torch.float32)
    folded = top(2).fold(LOGITS[:, :5], slice(None))
    assert columns[0, 0] == folded[0, 0] == float("-inf")
    rest = LOGITS[0, [0, 2, 3, 4]].logsumexp(-1)
    assert torch.allclose(folded[0, 1:], torch.stack([LOGITS[0, 1], rest]))
    assert torch.isfinite(folded[1]).all()


def test_there_is_no_rest_where_all_tokens_are_listed():
    """By the student's vocabulary, or by the server's word."""
    assert top(6).width(6) == 6 and top(6).width(8) == 7
    assert top(6, whole=True).width(8) == 6
    assert top(6, whole=True).tail.tolist() == [0, 0]


def test_what_rounding_hides_is_not_nothing():
    """A tail of 0 would make KL(student || teacher) infinite."""
    certain = TopPredictions.of(torch.tensor([[3]]), torch.tensor([[0.0]]))
    assert certain.tail.item() == torch.tensor(1e-6).item()
    assert torch.isfinite(certain.columns(slice(None), 6, torch.float32)).all()
