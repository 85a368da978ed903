"""One reading of several models equals reading each alone."""

import lens_families as families
import pytest
import torch

from distilllens import LayerMap, LogitLens, divergence
from distilllens.lens import divergence_by_depth, reading, trajectory
from distilllens.lens.comparison import compare_rows
from distilllens.lens.reading import Passage, Reading, inspect_models

TEXTS = (families.IDS[0], families.IDS[1][:6])
PASSAGES = (
    Passage(TEXTS[0], torch.arange(9)),
    Passage(TEXTS[1], torch.tensor([1, 2, 4])),
)


@pytest.mark.parametrize("chunk_size", [2, 128])
@pytest.mark.parametrize("name", ["gpt2", "bert", "xlnet", "gemma3n"])
def test_a_reading_is_the_trajectory(name, chunk_size, family):
    """In every mode of the lens, at the requested positions, for any chunk size."""
    lens = LogitLens(family(name))
    found = inspect_models(lens, PASSAGES, top_k=4, chunk_size=chunk_size).teacher
    start = 0
    for passage in PASSAGES:
        alone = trajectory(lens, top_k=4, input_ids=passage.ids[None])
        part = slice(start, start := start + len(passage.positions))
        at = passage.positions
        assert torch.equal(found.tokens[:, part], alone.tokens[:, 0, at])
        torch.testing.assert_close(found.probabilities[:, part], alone.probabilities[:, 0, at])
        torch.testing.assert_close(found.entropy[:, part], alone.entropy[:, 0, at])
    final = found.tokens[-1, :, 0]
    assert torch.equal(found.final_probability[-1], found.probabilities[-1, :, 0])
    for depth, position in ((0, 3), (1, 0)):  # where the final token is among the top ones
        row = found.tokens[depth, position].tolist()
        if int(final[position]) in row:
            at = row.index(int(final[position]))
            expected = found.probabilities[depth, position, at]
            torch.testing.assert_close(found.final_probability[depth, position], expected)


def test_final_probability_is_that_of_the_last_depths_top_token(family):
    """At every depth, against the softmax of whole logits."""
    lens = LogitLens(family("gpt2"))
    passage = PASSAGES[0]
    found = inspect_models(lens, [passage]).teacher
    wide = trajectory(lens, top_k=113, input_ids=passage.ids[None])
    for n in range(9):
        final = wide.tokens[-1, 0, n, 0]
        for depth in range(4):
            at = (wide.tokens[depth, 0, n] == final).nonzero()[0, 0]
            expected = wide.probabilities[depth, 0, n, at]
            torch.testing.assert_close(found.final_probability[depth, n], expected)


def test_students_are_compared_as_divergence_by_depth_says(family):
    """Means over valid tokens of two students, at trained pairs and at the nearest depths."""
    students, teacher = [family("gpt2"), family("gpt_neo")], family("llama")
    trained = [LayerMap([(1, 2)]), ()]
    passage = Passage(TEXTS[0], torch.arange(8))
    found = inspect_models(teacher, [passage], students, trained=trained, chunk_size=3)
    assert found.comparisons[0].pairs == ((0, 0), (1, 2), (2, 2), (3, 3))
    assert found.comparisons[1].pairs == ((0, 0), (1, 1), (2, 1), (3, 2), (4, 3))
    assert found.trained == (((1, 2),), ())
    for student, comparison in zip(students, found.comparisons, strict=True):
        for at, name in enumerate(("jsd", "forward_kl", "reverse_kl")):
            # Pairs one at a time: a LayerMap would not take a depth twice.
            expected = [
                divergence_by_depth(
                    student,
                    teacher,
                    [pair],
                    divergence=divergence(name),
                    input_ids=passage.ids[None],
                ).means[0]
                for pair in comparison.pairs
            ]
            means = comparison.divergences[..., at].mean(1).tolist()
            assert means == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert comparison.num_tokens == 8


def test_passages_are_read_in_order(family):
    """Results of two texts are those of each, in order; targets are the next tokens."""
    student, teacher = LogitLens(family("gpt2")), LogitLens(family("llama"))
    both = inspect_models(teacher, PASSAGES, [student])
    alone = [inspect_models(teacher, [passage], [student]) for passage in PASSAGES]
    assert both.targets.tolist() == [*TEXTS[0][1:].tolist(), -1, *TEXTS[1][[2, 3, 5]].tolist()]
    for name in ("divergences", "over", "under"):
        parts = [getattr(found.comparisons[0], name) for found in alone]
        torch.testing.assert_close(getattr(both.comparisons[0], name), torch.cat(parts, 1))
    for name in ("penalties", "ratios"):
        first, second = (getattr(found.comparisons[0], name) for found in alone)
        expected = (first * 9 + second * 3) / 12
        torch.testing.assert_close(getattr(both.comparisons[0], name), expected)
    assert both.comparisons[0].ratios.sum(-1).flatten().tolist() == pytest.approx([1.0] * 8)


@pytest.mark.parametrize(
    ("names", "chunks"),
    [(("llama", "gpt2", "gpt_neo"), 2), (("xlnet",), 1)],
    ids=["closed", "stub"],
)
def test_every_model_runs_once_and_every_depth_is_projected_once(
    names, chunks, family, monkeypatch
):
    """A teacher of two students reads a text once; no logits are made twice.

    Nine tokens are two chunks, but for a lens that makes the logits of all positions at once.
    """
    lenses = [LogitLens(family(name)) for name in names]
    runs, projections = [], []
    monkeypatch.setattr(reading, "capture", noting(runs, reading.capture))
    for lens in lenses:
        monkeypatch.setattr(lens, "logits", noting(projections, lens.logits, lens))
    inspect_models(lenses[0], PASSAGES[:1], lenses[1:], chunk_size=5)
    assert runs == lenses
    for lens in lenses:
        assert sum(seen is lens for seen in projections) == chunks * (lens.num_layers + 1)


def noting(calls, function, what=None):
    """The function, with a note of each call: ``what``, or its first argument."""

    def noted(*args, **kwargs):
        calls.append(args[0] if what is None else what)
        return function(*args, **kwargs)

    return noted


def test_unequal_vocabularies_are_read_whole_and_compared_on_what_they_share(family):
    """Vocabulary padding is part of the student's own reading, not of the comparison."""
    student, teacher = LogitLens(families.build("gpt2", vocab_size=150)), LogitLens(family("llama"))
    found = inspect_models(teacher, PASSAGES[:1], [student], top_k=150 - 37)
    own = trajectory(student, top_k=113, input_ids=TEXTS[0][None])
    assert torch.equal(found.students[0].tokens, own.tokens[:, 0])
    wide = trajectory(student, top_k=150, input_ids=TEXTS[0][None])
    narrow = trajectory(teacher, top_k=113, input_ids=TEXTS[0][None])
    log_q = torch.zeros(9, 150).scatter_(-1, wide.tokens[3, 0], wide.probabilities[3, 0].log())
    log_p = torch.zeros(9, 113).scatter_(-1, narrow.tokens[3, 0], narrow.probabilities[3, 0].log())
    log_q = log_q[:, :113].log_softmax(-1)
    expected = compare_rows(log_q, log_p, narrow.tokens[3, 0])[0]
    torch.testing.assert_close(found.comparisons[0].divergences[3], expected, rtol=1e-4, atol=1e-6)


def test_settling_is_the_last_change_of_the_top_token():
    """A token settles after its last change; one that never changes settles at depth 0."""
    top = torch.tensor([[5, 1, 7], [5, 2, 7], [5, 1, 7], [5, 1, 9]])
    zeros = torch.zeros(4, 3)
    found = Reading(top.unsqueeze(-1), zeros.unsqueeze(-1), zeros, zeros)
    assert found.settled.tolist() == [0, 2, 3]


def test_what_cannot_be_read_is_refused(family):
    """No passage, no position, a position outside, a missing depth, too many tokens."""
    with pytest.raises(ValueError, match="no passage was given"):
        inspect_models(family("llama"), [])
    with pytest.raises(ValueError, match="at least one position"):
        Passage(TEXTS[0], torch.arange(0))
    with pytest.raises(ValueError, match="passage of 9 tokens must be 0 to 8, got 9 to 9"):
        Passage(TEXTS[0], torch.tensor([9]))
    with pytest.raises(ValueError, match="student depth 5, but the student has depths 0 to 3"):
        inspect_models(family("llama"), PASSAGES, [family("gpt2")], trained=[[(5, 2)]])
    with pytest.raises(ValueError, match="top_k must be 1 to 113, got 200"):
        inspect_models(family("llama"), PASSAGES, top_k=200)
