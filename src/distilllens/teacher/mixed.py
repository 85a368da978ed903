"""Several teachers as one: the states of each, and the mixture of their predictions."""

from __future__ import annotations

from collections.abc import Sequence

from distilllens.head import MixedHead, mixture_weights
from distilllens.joined_map import TeacherDepth
from distilllens.lens import LayerStates
from distilllens.teacher.source import TeacherSource


class MixedTeacher:
    """Teachers with the student's tokenizer, each live or cached.

    Depths are ``TeacherDepth``; ``final`` has the states of each, and a ``MixedHead`` reads them.

    Args:
        sources: the teachers.
        weights: theirs, at least 0; scaled to a sum of 1.

    Raises:
        ValueError: not one weight for each, or weights that no mixture can have.
    """

    def __init__(self, sources: Sequence[TeacherSource], weights: Sequence[float]):
        self.sources, self.weights = tuple(sources), mixture_weights(weights)
        if len(self.sources) != len(self.weights):
            raise ValueError(
                f"{len(self.sources)} teachers need a weight each, got {len(self.weights)}"
            )
        self.num_layers = tuple(source.num_layers for source in self.sources)

    @property
    def source(self) -> MixedTeacher:
        """Itself."""
        return self

    def read(self, depths, **inputs) -> tuple[LayerStates, MixedHead]:
        """The states of each teacher at its depths and after its last block, and all heads."""
        return self.begin(depths, **inputs)()

    def begin(self, depths, **inputs):
        """What ``read`` returns, from a call that ends it."""
        ends = []
        for number, source in enumerate(self.sources):
            own = tuple(place.depth for place in depths if place.teacher == number)
            ends.append(source.begin(own, **inputs))

        def end_read():
            by_depth, found = {}, [end() for end in ends]
            for number, (states, _) in enumerate(found):
                places = (TeacherDepth(number, depth) for depth in states)
                by_depth |= zip(places, (states[depth] for depth in states), strict=True)
            final = tuple(states.final for states, _ in found)
            normed = all(states.normed for states, _ in found)
            states = LayerStates(by_depth, normed=normed, final=final, gathered=True)
            return states, MixedHead(tuple(head for _, head in found), self.weights)

        return end_read
