"""Predictions and divergences by depth, against the obvious program on whole logits."""

import math

import lens_families as families
import pytest
import torch

from distilllens import LayerMap, LogitLens, capture, divergence
from distilllens.lens import divergence_by_depth, trajectory

IDS = families.IDS


def reverse_kl(student, teacher):
    """KL(student || teacher) in nats, as in textbooks."""
    p, q = student.softmax(-1), teacher.softmax(-1)
    return (p * (p.log() - q.log())).sum(-1)


@pytest.mark.parametrize("name", ["llama", "bert", "xlnet", "gemma3n"])
@torch.no_grad()
def test_trajectory_is_the_softmax_of_each_depth(name, family):
    """Top tokens, their probabilities and the entropy of every position, in every mode."""
    lens = LogitLens(family(name))
    found = trajectory(lens, top_k=4, chunk_size=5, input_ids=IDS)
    states = capture(lens, found.depths, input_ids=IDS)
    assert found.depths == tuple(range(lens.num_layers + 1))
    for i, depth in enumerate(found.depths):
        p = lens.logits(states[depth]).softmax(-1)
        best = p.topk(4)
        torch.testing.assert_close(found.probabilities[i], best.values)
        assert torch.equal(found.tokens[i], best.indices)
        torch.testing.assert_close(found.entropy[i], -(p * p.log()).sum(-1))
        assert (found.entropy[i] <= math.log(113)).all()


def test_trajectory_takes_a_bare_model_and_some_depths(family):
    """Depths in the requested order; no gradient is recorded."""
    found = trajectory(family("gpt2"), depths=[3, 1], top_k=1, input_ids=IDS)
    assert found.depths == (3, 1)
    assert found.tokens.shape == found.probabilities.shape == (2, 2, 9, 1)
    assert not found.entropy.requires_grad
    with pytest.raises(ValueError, match="top_k must be 1 to 113, got 114"):
        trajectory(family("gpt2"), top_k=114, input_ids=IDS)


@pytest.mark.parametrize("chunk_size", [1, 4, 512])
@torch.no_grad()
def test_divergence_is_the_mean_over_valid_positions(chunk_size, family):
    """A position counts when its next label does; the student comes first; chunks do not matter."""
    student, teacher = LogitLens(family("gpt2")), LogitLens(family("llama"))
    labels = IDS.clone()
    labels[0, :4] = -100
    found = divergence_by_depth(
        student,
        teacher,
        LayerMap([(1, 2), (3, 3)]),
        divergence=reverse_kl,
        labels=labels,
        chunk_size=chunk_size,
        input_ids=IDS,
    )
    valid = labels[:, 1:] != -100
    assert found.num_tokens == int(valid.sum()) == 13
    assert found.pairs == ((1, 2), (3, 3))
    ours, theirs = capture(student, [1, 3], input_ids=IDS), capture(teacher, [2, 3], input_ids=IDS)
    for (s, t), mean in zip(found.pairs, found.means, strict=True):
        expected = reverse_kl(
            student.logits(ours[s])[:, :-1][valid], teacher.logits(theirs[t])[:, :-1][valid]
        ).mean()
        assert mean == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("measure", [reverse_kl, divergence("jsd")])
def test_a_model_does_not_differ_from_itself(measure, family):
    """Zero nats at equal depths, more at unequal ones; without labels the mask says what counts."""
    model = family("llama")
    mask = torch.ones_like(IDS)
    mask[1, 5:] = 0
    found = divergence_by_depth(
        model, model, [(2, 2), (1, 3)], divergence=measure, input_ids=IDS, attention_mask=mask
    )
    assert found.num_tokens == 8 + 4
    assert found.means[0] == pytest.approx(0, abs=1e-6)
    assert found.means[1] > 0.005


def test_unequal_vocabularies_share_their_prefix(family):
    """The softmax is taken over the shared columns, so both distributions sum to 1."""
    model, larger = family("llama"), families.build("gpt2", vocab_size=150)
    found = divergence_by_depth(model, larger, [(3, 3)], divergence=reverse_kl, input_ids=IDS)
    with torch.no_grad():
        ours, theirs = model(input_ids=IDS).logits, larger(input_ids=IDS).logits[..., :113]
        expected = reverse_kl(ours, theirs)[:, :-1].mean()
    assert found.means[0] == pytest.approx(float(expected), rel=1e-5)
    assert found.num_tokens == 16


def test_nothing_to_compare_is_an_error(family):
    """All labels masked: a mean over no tokens is undefined."""
    model = family("llama")
    with pytest.raises(ValueError, match="no position to compare"):
        divergence_by_depth(
            model,
            model,
            [(1, 1)],
            divergence=reverse_kl,
            input_ids=IDS,
            labels=torch.full_like(IDS, -100),
        )
