"""A metric that decides the best checkpoint is one that these models have."""

import pytest
import toys

from distilllens.workflows.best_metric import check_measured


@pytest.mark.parametrize(
    ("metric", "more", "problem"),
    [
        ("loss", {}, None),
        ("eval_lens_loss", {}, None),
        ("lens_loss", {"lens_weight": 0.0}, None),  # evaluations measure it all the same
        ("lens_loss/1:1", {"lens_layers": "1:1,2:3"}, None),
        ("lens_loss/9:9", {"lens_layers": "1:1,2:3"}, "the pairs are 1:1, 2:3"),
        ("lens_loss/1", {"lens_layers": "1:1"}, "the pairs are 1:1"),
        ("feature_loss", {}, "this run has no feature_loss"),
        ("lens_loss", {"teacher": None}, "this run has no lens_loss"),
        ("output_loss", {"teacher": None}, "this run has no output_loss"),
        ("cross_entropy", {"teacher": None}, None),
    ],
)
def test_what_is_measured(tmp_path, metric, more, problem):
    """By the pairs and the teacher of the run; anything else would fail at its first evaluation."""
    alone = {"teacher": None} if "teacher" in more else {}
    fields = {name: value for name, value in more.items() if name != "teacher"}
    fields |= {"cross_entropy_weight": 1.0} if alone else {}
    args = toys.config(tmp_path, metric_for_best_model=metric, **fields)
    trainer = toys.trainer(args, **alone)
    if problem is None:
        check_measured(trainer)
        return
    with pytest.raises(ValueError, match=f"is never measured: {problem}"):
        check_measured(trainer)
