"""The data of the lens table equal ``lens.trajectory``."""

import pytest
import torch

from distilllens.lens import Inspection, Passage, trajectory
from distilllens.lens.reading import Reading
from distilllens.report.lens_table import lens_table


def test_cells_are_the_trajectory(inspected):
    """Top ten, probabilities and entropy of each model, depth and token, to four digits."""
    table = lens_table(inspected.found, inspected.names, inspected.text_of)
    words = table["words"]
    assert len(set(words)) == len(words)
    models = [inspected.teacher, *inspected.students]
    for passage, shown in zip(inspected.passages, table["documents"], strict=True):
        at = passage.positions
        assert [words[i] for i in shown["read"]] == [
            inspected.text_of(i) for i in passage.ids[at].tolist()
        ]
        for model, cells in zip(models, shown["cells"], strict=True):
            truth = trajectory(model, top_k=10, input_ids=passage.ids[None])
            for depth, (top, p, entropy) in enumerate(cells):
                expected = truth.tokens[depth, 0, at].tolist()
                assert top == [[words.index(inspected.text_of(i)) for i in row] for row in expected]
                for found, exact in (
                    (p, truth.probabilities[depth, 0, at]),
                    (entropy, truth.entropy[depth, 0, at]),
                ):
                    torch.testing.assert_close(torch.tensor(found), exact, rtol=1e-3, atol=1e-6)


def test_pairs_jsd_and_what_follows(inspected):
    """The depth pairs of each student; the token after the last one is unknown."""
    table = lens_table(inspected.found, inspected.names, inspected.text_of)
    assert table["pairs"][0] == ((0, 0), (1, 1), (2, 3), (3, 4))
    assert table["trained"] == [[1, 2], []]
    first = table["documents"][0]
    assert first["next"][-1] is None and first["next"][:-1] == first["read"][1:]
    jsd = torch.tensor(first["jsd"][0])
    expected = inspected.found.comparisons[0].divergences[:, :12, 0].float()
    torch.testing.assert_close(jsd, expected, rtol=1e-3, atol=1e-6)


def numbers(lengths, depths=13, top_k=10):
    """An inspection with passages of these lengths, made without a model."""
    passages = tuple(Passage(torch.arange(n), torch.arange(n)) for n in lengths)
    shape = (depths, sum(lengths))
    tokens = torch.zeros(*shape, top_k, dtype=torch.long)
    zeros = torch.zeros(shape)
    return Inspection(passages, Reading(tokens, tokens.float(), zeros, zeros))


@pytest.mark.parametrize(
    ("lengths", "shown"),
    [
        ([200], [200]),
        ([5000], [1098]),  # 2 MB / (13 depths x 140 bytes)
        ([10, 5000, 5000], [10, 544, 544]),
        ([100] * 40, [40] * 9 + [41] * 18),  # of 40 texts 27, of about 40 tokens each
    ],
)
def test_a_long_text_is_cut_and_said_to_be(lengths, shown):
    """As many tokens as fit, as evenly as possible; the rest is counted."""
    table = lens_table(numbers(lengths), ["m"], str)
    assert [len(d["read"]) for d in table["documents"]] == shown
    assert table["left_out"] == sum(lengths) - sum(shown)


def test_depths_that_no_student_meets_are_left_out(inspected):
    """They would only enlarge the page; a single model shows all of its depths."""
    found = inspected.found
    shallow = Inspection(
        found.passages, found.teacher, found.students[1:], found.comparisons[1:], ((),)
    )
    cells = lens_table(shallow, ["t", "s"], str)["documents"][0]["cells"]
    assert [depth is not None for depth in cells[0]] == [True, False, True, False, True]
    alone = Inspection(found.passages, found.teacher)
    cells = lens_table(alone, ["t"], str)["documents"][0]["cells"]
    assert all(depth is not None for depth in cells[0])
