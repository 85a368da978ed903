"""What a study compares: methods x training seeds on equal terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Fields of a run whose teacher is not one model with the student's tokenizer.
OTHER_TEACHERS = ("cross_tokenizer", "teachers", "teacher_server")


@dataclass(frozen=True)
class Study:
    """Methods x training seeds on equal terms.

    Args:
        path: of the file.
        base: fields that all methods share.
        methods: name -> fields that make it, which override ``base``.
        seeds: name of a method -> its training seeds.
        baseline: the method that all others are compared with.
        learning_rates: from which each method's is chosen, with its first seed; empty: that of its
            recipe.
        choose_by: the score on the development set that decides.
        equal: what all runs have alike: "steps", "seconds" or "flops", those of the baseline.
        evaluate: the benchmarks and how they are answered, as flags of ``distilllens evaluate``.
        max_hours: no further run begins after so many hours of runs; None for no limit.
        share_cache: the teacher runs once for all runs.
        keep_checkpoints: of runs that are finished.
    """

    path: str
    base: Mapping[str, Any]
    methods: Mapping[str, Mapping[str, Any]]
    seeds: Mapping[str, tuple[int, ...]]
    baseline: str
    learning_rates: tuple[float, ...] = ()
    choose_by: str = "cross_entropy"
    equal: str = "steps"
    evaluate: Mapping[str, Any] | None = None
    max_hours: float | None = None
    share_cache: bool = True
    keep_checkpoints: bool = False

    def recipe(self, method: str) -> dict[str, Any]:
        """The fields of a method's runs, but for those that differ between them."""
        return {"report": False, **self.base, **self.methods[method]}

    @property
    def common_teacher(self) -> str | None:
        """The teacher from which every student's distance is measured, whatever trained it.

        None where there is not one that all students can be compared with: methods have different
        teachers, several at once, one at a server, or one with another tokenizer.
        """
        others = any(self.recipe(m).get(field) for m in self.methods for field in OTHER_TEACHERS)
        return None if others or len(self.teachers) != 1 else self.teachers[0]

    @property
    def teachers(self) -> tuple[str, ...]:
        """Those that methods name by ``teacher_model_name_or_path``, each once."""
        named = (self.recipe(m).get("teacher_model_name_or_path") for m in self.methods)
        return tuple(dict.fromkeys(str(name) for name in named if name))

    @property
    def has_teachers(self) -> bool:
        """Whether a method learns from a teacher."""
        fields = ("teacher_model_name_or_path", *OTHER_TEACHERS)
        return any(self.recipe(m).get(field) for m in self.methods for field in fields)

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seeds of any method, in the order in which they are first named."""
        return tuple(dict.fromkeys(seed for seeds in self.seeds.values() for seed in seeds))
