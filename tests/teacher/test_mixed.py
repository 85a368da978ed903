"""Several teachers as one source of states."""

import pytest
import torch
import toys

from distilllens.joined_map import TeacherDepth
from distilllens.lens import LogitLens
from distilllens.targets import Targets
from distilllens.teacher import LiveTeacher, MixedTeacher


def test_each_teacher_is_read_at_its_own_depths():
    """States by teacher and depth are those of each alone, and each head is its model's."""
    models = toys.llama(4, 24, seed=1), toys.llama(5, 32, seed=2)
    alone = [LiveTeacher(LogitLens(model)) for model in models]
    mixed = MixedTeacher(alone, (1, 3))
    assert mixed.weights == (0.25, 0.75) and mixed.num_layers == (4, 5)
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    inputs = {"normalize": True, "targets": Targets.of(ids), "input_ids": ids}
    places = [TeacherDepth(1, 2), TeacherDepth(0, 2), TeacherDepth(1, 4)]
    states, head = mixed.read(places, **inputs)
    assert set(states) == set(places)
    for number, (source, depths) in enumerate(zip(alone, ((2,), (2, 4)), strict=True)):
        expected, own_head = source.read(depths, **inputs)
        for depth in depths:
            assert torch.equal(states[TeacherDepth(number, depth)], expected[depth])
        assert torch.equal(states.final[number], expected.final)
        assert head.at(TeacherDepth(number, 2)).weight is own_head.weight


def test_each_teacher_needs_a_weight():
    """One missing is refused."""
    source = LiveTeacher(LogitLens(toys.llama()))
    with pytest.raises(ValueError, match="2 teachers need a weight each, got 1"):
        MixedTeacher([source, source], (1,))
