"""The loss as one table of terms: cross-entropy + output divergence + lens divergence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from distilllens.divergence import divergence
from distilllens.head import Head
from distilllens.layer_map import LayerMap
from distilllens.lens import LayerStates
from distilllens.linear_divergence import cross_entropy_term, divergence_term, linear_terms
from distilllens.sampling import check_fraction
from distilllens.targets import Targets


@dataclass(frozen=True)
class LossTerm:
    """One term of the loss, and its names.

    Attributes:
        key: in ``LossTerms``.
        log_name: in the trainer's log; with the prefix ``eval_`` in evaluations.
        label: in reports and model cards.
        short: in the progress bar.
        weight_field: its weight in ``Objective`` and ``DistillLensConfig``.
        has_pairs: whether it is a mean over layer pairs, which are logged too.
        divergence_field, kwargs_field: its divergence in ``Objective``; empty for none.
        place: where it is measured, in words.
    """

    key: str
    log_name: str
    label: str
    short: str
    weight_field: str
    has_pairs: bool = False
    divergence_field: str = ""
    kwargs_field: str = ""
    place: str = ""


# A new term is one row here and one method of Objective. Reports show them in this order.
TERMS = (
    LossTerm(
        "output",
        "output_loss",
        "output divergence",
        "output",
        "output_weight",
        divergence_field="output_divergence",
        kwargs_field="output_kwargs",
        place="at the output",
    ),
    LossTerm(
        "lens",
        "lens_loss",
        "lens divergence",
        "lens",
        "lens_weight",
        has_pairs=True,
        divergence_field="lens_divergence",
        kwargs_field="lens_kwargs",
        place="through the lens",
    ),
    LossTerm("cross_entropy", "cross_entropy", "cross-entropy", "ce", "cross_entropy_weight"),
)
# What float32 holds, in which the weights of tokens are; rounded down, for people.
_MOST = 3e38
WEIGHT_FIELDS = tuple(term.weight_field for term in TERMS)


@dataclass(frozen=True, eq=False)
class LossTerms:
    """The sums of one batch over its tokens, in nats; the trainer divides them once.

    Attributes:
        total: scalar, the weighted sum with its gradient; connected to the graph even at N = 0.
        sums: key of a measured term -> its sum, unweighted and detached, and the number of tokens
            in it. The lens is the mean over the pairs; with sampled tokens, the estimate for all N.
        by_pair: key of a term with pairs -> the sums ``[P]`` in the order of the layer map, and the
            number of tokens that each pair was measured on.
        num_tokens: N, the targets of the batch.
        seen: ``[2]``, sums over the N targets: those that are the student's most likely token, and
            the entropy of its predictions in nats.
    """

    total: Tensor
    sums: Mapping[str, tuple[Tensor, int]]
    by_pair: Mapping[str, tuple[Tensor, int]]
    num_tokens: int
    seen: Tensor | None = None

    @property
    def cross_entropy(self) -> Tensor:
        """The sum of the cross-entropy."""
        return self.sums["cross_entropy"][0]

    @property
    def output(self) -> Tensor | None:
        """The sum of the output divergence, or None if it was not measured."""
        return self.sums.get("output", (None, 0))[0]

    @property
    def lens(self) -> Tensor | None:
        """The sum of the lens divergence, or None if it was not measured."""
        return self.sums.get("lens", (None, 0))[0]

    @property
    def lens_by_pair(self) -> Tensor | None:
        """The sums ``[P]`` of the lens divergence by pair, or None."""
        return self.by_pair.get("lens", (None, 0))[0]

    @property
    def num_lens_tokens(self) -> int:
        """The tokens in ``lens_by_pair``: N, or the sampled ones among them."""
        return self.by_pair.get("lens", (None, 0))[1]


@dataclass(frozen=True)
class Objective:
    """``w_ce * CE + w_out * D_out(p_L, q_L) + w_lens * mean over pairs of D_lens(p_t, q_s)``.

    Args:
        layer_map: the pairs of the lens term; None for a loss without it.
        output_divergence, lens_divergence: names of :func:`distilllens.divergence`.
        output_kwargs, lens_kwargs: their parameters, as ``{"beta": 0.5}``.
        output_weight, lens_weight, cross_entropy_weight: finite, >= 0.
        temperature: divides both models' logits in both divergences (not in the cross-entropy).
        lens_token_fraction: in (0, 1]; the share of target tokens that the lens term measures.

    Raises:
        ValueError: an unknown divergence or parameter, a weight below 0 or above 3e38, a
            temperature <= 0, a fraction outside (0, 1].

    Source: arXiv 2602.13567; docs/paper.md lists the deviations.
    """

    layer_map: LayerMap | None = None
    output_divergence: str = "reverse_kl"
    output_kwargs: dict = field(default_factory=dict)
    output_weight: float = 1.0
    lens_divergence: str = "jsd"
    lens_kwargs: dict = field(default_factory=dict)
    lens_weight: float = 1.0
    cross_entropy_weight: float = 0.0
    temperature: float = 1.0
    lens_token_fraction: float = 1.0

    def __post_init__(self):
        divergence(self.output_divergence, **self.output_kwargs)
        divergence(self.lens_divergence, **self.lens_kwargs)
        for name in WEIGHT_FIELDS:
            weight = getattr(self, name)
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"{name} must be a finite number >= 0, got {weight}")
            if weight > _MOST:
                raise ValueError(f"{name} must be at most {_MOST:g}, got {weight}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        check_fraction("lens_token_fraction", self.lens_token_fraction)
        if self.lens_weight / self.lens_token_fraction > _MOST:
            raise ValueError(
                f"lens_token_fraction must be at least lens_weight / {_MOST:g}, got "
                f"{self.lens_token_fraction} for a lens_weight of {self.lens_weight}"
            )

    def needs_lens(self, measure_all: bool = False) -> bool:
        """Whether the states at the depths of the layer map are read.

        Args:
            measure_all: as in ``__call__``.
        """
        return self.layer_map is not None and (measure_all or self.lens_weight > 0)

    def needs_teacher(self, measure_all: bool = False) -> bool:
        """Whether the teacher is read: the cross-entropy alone does not need it."""
        return measure_all or self.output_weight > 0 or self.needs_lens()

    def __call__(
        self,
        student: LayerStates,
        student_head: Head,
        teacher: LayerStates | None,
        teacher_head: Head | None,
        labels: Tensor | Targets,
        *,
        measure_all: bool = False,
        lens_draws: Tensor | None = None,
    ) -> LossTerms:
        """The terms of one batch.

        A divergence of weight 0 is skipped unless ``measure_all``; the cross-entropy is always
        measured. ``measure_all`` also measures every token, whatever ``lens_token_fraction``.

        Args:
            student, teacher: head-ready states, ``[B, T, D]`` at the map's depths and ``final``;
                ``[N, D]`` if ``LayerStates.gathered``. Without a teacher (None) only the
                cross-entropy is measured.
            labels: the batch's ``Targets``, or its labels ``[B, T]``, not shifted, -100 for tokens
                that are no targets.
            lens_draws: ``[B, T]`` in [0, 1), of ``sampling.draw_tokens``: positions with a draw
                below ``lens_token_fraction`` are measured, with weight 1 / fraction. Required if
                the fraction is below 1.

        Raises:
            ValueError: states without ``final``, or without a depth of the map that is measured; a
                fraction below 1 without a draw for every position.
        """
        targets = labels if isinstance(labels, Targets) else Targets.of(labels)
        self._check(student, teacher, measure_all)
        final = _rows(student, student.final, targets)
        fraction, dtype = 1.0, torch.promote_types(final.dtype, torch.float32)
        seen = final.new_empty(2, len(final), dtype=dtype)
        terms = {"cross_entropy": self._cross_entropy(final, targets.ids, seen)}
        if teacher is not None and (self.output_weight > 0 or measure_all):
            teacher_final = _rows(teacher, teacher.final, targets)
            terms["output"] = self._output(final, teacher_final, teacher_head)
        if teacher is not None and self.needs_lens(measure_all):
            kept, fraction = (None, 1.0) if measure_all else self._sampled(targets, lens_draws)
            terms["lens"] = self._lens(student, teacher, teacher_head, targets, kept, fraction)
        total, nats = self._evaluate(student_head, terms)
        # The empty sum keeps the graph connected when no term has a weight.
        summed = self._summed(final[:0].sum() + total, nats, len(targets), fraction)
        return replace(summed, seen=seen.sum(1))

    def _check(self, student, teacher, measure_all):
        needed = self.layer_map if teacher is not None and self.needs_lens(measure_all) else ()
        for number, (name, states) in enumerate((("student", student), ("teacher", teacher))):
            if states is None:
                continue
            if states.final is None:
                raise ValueError(
                    f"the {name}'s states have no final state for the head, as those of capture; "
                    "read them with read_states"
                )
            if missing := [pair[number] for pair in needed if pair[number] not in states]:
                raise ValueError(
                    f"the layer map needs the {name}'s state at depth {missing[0]}, but depths "
                    f"{sorted(states)} were read; pass the map's {name}_depths to read_states"
                )

    def _summed(self, total, nats, num_tokens, fraction):
        """Sums over the batch of each term's nats per token."""
        sums, by_pair = {}, {}
        for term in TERMS:
            if term.key not in nats:
                continue
            if term.has_pairs:
                pairs = nats[term.key].view(len(self.layer_map), -1)
                by_pair[term.key] = (pairs.sum(1), pairs.shape[1])
                sums[term.key] = (pairs.sum(1).mean() / fraction, num_tokens)
            else:
                sums[term.key] = (nats[term.key].sum(), num_tokens)
        return LossTerms(total, sums, by_pair, num_tokens)

    def _evaluate(self, student_head, terms):
        """The weighted sum with its gradient, and each term's nats per token."""
        weights = {term.key: getattr(self, term.weight_field) for term in TERMS}
        trained = [key for key in terms if weights[key] > 0]
        total, nats = 0.0, {}
        if trained:
            total, found = linear_terms(student_head, [terms[key] for key in trained])
            nats = dict(zip(trained, found, strict=True))
        with torch.no_grad():
            for key in [key for key in terms if key not in nats]:
                nats[key] = linear_terms(student_head, [terms[key]])[1][0]
        return total, nats

    def _cross_entropy(self, final, targets, seen):
        weight = _share(final, self.cross_entropy_weight)
        return cross_entropy_term(final, targets, weight=weight, seen=seen)

    def _output(self, final, teacher_final, teacher_head):
        options = {"temperature": self.temperature, **self.output_kwargs}
        weight = _share(final, self.output_weight)
        sides = (final, teacher_final, teacher_head, self.output_divergence)
        return divergence_term(*sides, weight=weight, **options)

    def _sampled(self, targets, draws):
        """The numbers of the targets that the lens measures (None: all), and their expected share.

        Each position is drawn independently: a fixed number would depend on the micro-batch.
        """
        fraction = self.lens_token_fraction
        if fraction == 1:
            return None, 1.0
        if draws is None or draws.shape != targets.mask.shape:
            raise ValueError(
                f"lens_token_fraction {fraction} needs lens_draws of shape "
                f"{list(targets.mask.shape)}, got {None if draws is None else list(draws.shape)}"
            )
        drawn = draws.flatten()[targets.index] < fraction
        return drawn.nonzero().squeeze(1), fraction

    def _lens(self, student, teacher, teacher_head, targets, kept, fraction):
        pairs = self.layer_map.pairs
        # The tokens of all pairs are rows of one term, weighted for the mean over the pairs.
        student_rows = torch.cat([_rows(student, student[s], targets, kept) for s, _ in pairs])
        teacher_rows = torch.cat([_rows(teacher, teacher[t], targets, kept) for _, t in pairs])
        options = {"temperature": self.temperature, **self.lens_kwargs}
        weight = _share(student_rows, self.lens_weight / (len(pairs) * fraction))
        sides = (student_rows, teacher_rows, teacher_head, self.lens_divergence)
        return divergence_term(*sides, weight=weight, **options)


def _share(rows, weight):
    return rows.new_full((len(rows),), weight, dtype=torch.promote_types(rows.dtype, torch.float32))


def _rows(states, state, targets, kept=None):
    """The rows of a state of ``states`` at the targets, or at the ``kept`` ones among them."""
    if not states.gathered:
        return targets.rows(state, kept)
    return state if kept is None else state.index_select(0, kept)
