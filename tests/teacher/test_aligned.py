"""A teacher with another tokenizer gives its states at the positions that are compared."""

import pytest
import torch
import toys

from distilllens import LogitLens
from distilllens.targets import IGNORED, Targets
from distilllens.teacher import AlignedTeacher, LiveTeacher
from distilllens.teacher.aligned import PaddingCollator, Paired
from distilllens.teacher.documents import document_of
from distilllens.vocabularies import Vocabularies

WORDS = Vocabularies.of({0: b"a", 1: b"b"}, {0: b"b", 1: b"c"})
# Two documents of the student, and what the teacher reads of each.
ROWS = [
    ([5, 6, 7, 8, 9], [IGNORED, IGNORED, 7, 8, 9]),
    ([3, 4, 5], [IGNORED, 4, 5]),
]
PAIRED = [
    Paired([2, 9, 4, 1], [IGNORED, IGNORED, 4, 1], [0, 2], 1.25),
    Paired([7, 7, 2, 3, 8, 6], [IGNORED] * 4 + [8, IGNORED], [1], 1.25),
]


def teacher():
    live = LiveTeacher(LogitLens(toys.llama(3, seed=1)))
    documents = {document_of(*row).key: each for row, each in zip(ROWS, PAIRED, strict=True)}
    return live, AlignedTeacher(live, documents, WORDS, PaddingCollator(0))


def expected(live, depth):
    """Each document alone, through the teacher's own forward."""
    rows = []
    for paired in PAIRED:
        ids = torch.tensor([paired.input_ids])
        hidden = live.lens.model(ids, output_hidden_states=True).hidden_states[depth]
        at = [n - 1 for n, label in enumerate(paired.labels) if label != IGNORED]
        rows.append(live.lens.normalize(hidden)[0, at])
    return torch.cat(rows)


def padded():
    ids = torch.tensor([ROWS[0][0], [*ROWS[1][0], 0, 0]])
    labels = torch.tensor([ROWS[0][1], [*ROWS[1][1], IGNORED, IGNORED]])
    mask = torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])
    return {"input_ids": ids, "attention_mask": mask}, labels


def packed():
    ids = torch.tensor([ROWS[0][0] + ROWS[1][0]])
    labels = torch.tensor([ROWS[0][1] + ROWS[1][1]])
    return {"input_ids": ids, "position_ids": torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]])}, labels


@pytest.mark.parametrize("layout", [padded, packed])
def test_states_are_those_of_its_own_tokens(layout):
    """At the compared positions, with the student's targets that they belong to."""
    live, aligned = teacher()
    inputs, labels = layout()
    states, head = aligned.read((1,), normalize=True, targets=Targets.of(labels), **inputs)
    with torch.no_grad():
        torch.testing.assert_close(states[1], expected(live, 1))
    compared = states.compared
    assert compared.places.tolist() == [0, 2, 3 + 1]
    assert compared.weights.tolist() == [1.25] * 3 and compared.vocabularies is WORDS
    assert states.gathered and head.weight is live.lens.head.weight
    assert aligned.source is live and aligned.num_layers == 3


def test_a_batch_without_a_target_is_read_too():
    """No row, and states of the right width: a sharded teacher must run everywhere."""
    _, aligned = teacher()
    ids = torch.tensor([[3, 4, 5]])
    targets = Targets.of(torch.full_like(ids, IGNORED))
    states, _ = aligned.read((1,), normalize=True, targets=targets, input_ids=ids)
    assert states.final.shape == (0, 16) and states.compared.places.tolist() == []


def test_a_document_that_was_not_paired_is_refused():
    """One line that says how evaluation data are read."""
    _, aligned = teacher()
    ids = torch.tensor([[3, 4, 6]])
    with pytest.raises(ValueError, match=r"not among the data .* pass it as eval_dataset"):
        aligned.read((), normalize=True, targets=Targets.of(ids), input_ids=ids)
