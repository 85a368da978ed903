"""Cross-entropy + output divergence + lens divergence -> LossTerms."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from distilllens.divergence import divergence
from distilllens.head import Head
from distilllens.layer_map import LayerMap
from distilllens.lens import LayerStates
from distilllens.linear_divergence import cross_entropy_term, divergence_term, linear_terms
from distilllens.sampling import check_fraction

IGNORED_LABEL = -100


@dataclass(frozen=True, eq=False)
class LossTerms:
    """What one batch contributes: sums over its valid tokens, in nats, to be divided once, above.

    Attributes:
        total: scalar, the weighted sum with its gradient; connected to the graph even at N = 0.
        cross_entropy: scalar, unweighted and detached like the terms that follow.
        output: divergence at the output, or None when it was not measured.
        lens: mean over the pairs, or None; of sampled tokens, the estimate for all N.
        lens_by_pair: ``[P]`` in the order of the layer map, or None; over the measured tokens.
        num_tokens: N, the valid tokens.
        num_lens_tokens: those behind ``lens_by_pair``: N, or the drawn ones among them.
    """

    total: Tensor
    cross_entropy: Tensor
    output: Tensor | None
    lens: Tensor | None
    lens_by_pair: Tensor | None
    num_tokens: int
    num_lens_tokens: int = 0


@dataclass(frozen=True)
class Objective:
    """``w_ce * CE + w_out * D_out(p_L, q_L) + w_lens * mean over pairs of D_lens(p_t, q_s)``.

    Args:
        layer_map: the pairs of the lens term; None for a loss without it.
        output_divergence, lens_divergence: names of :func:`distilllens.divergence`.
        output_kwargs, lens_kwargs: their parameters, as ``{"beta": 0.5}``.
        output_weight, lens_weight, cross_entropy_weight: finite, >= 0.
        temperature: divides both models' logits in both divergences (not in the cross-entropy).
        lens_token_fraction: in (0, 1]; the share of valid tokens that the lens term measures.

    Raises:
        ValueError: an unknown divergence or parameter, a weight below 0, a temperature <= 0, a
            fraction that is no share.

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
        for name in ("output_weight", "lens_weight", "cross_entropy_weight"):
            weight = getattr(self, name)
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"{name} must be a finite number >= 0, got {weight}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        check_fraction("lens_token_fraction", self.lens_token_fraction)

    def __call__(
        self,
        student: LayerStates,
        student_head: Head,
        teacher: LayerStates | None,
        teacher_head: Head | None,
        labels: Tensor,
        *,
        measure_all: bool = False,
        lens_draws: Tensor | None = None,
    ) -> LossTerms:
        """The terms of one batch.

        A divergence of weight 0 is skipped unless ``measure_all``; the cross-entropy never is.
        ``measure_all`` measures every token, too, whatever ``lens_token_fraction``.

        Args:
            student, teacher: head-ready states, ``[B, T, D]`` at the map's depths and ``final``, or
                ``[N, D]`` at the valid positions alone. Without a teacher (None) only the
                cross-entropy is left.
            labels: ``[B, T]``, -100 where the token is no target. Shifted here, and only here.
            lens_draws: ``[B, T]`` in [0, 1), of ``sampling.draw_tokens``: below
                ``lens_token_fraction`` a valid position is measured, and counts 1 / fraction.
                Read, and needed, where that is below 1.

        Raises:
            ValueError: a fraction below 1 without a draw for every position.
        """
        valid = target_positions(labels)
        targets = labels[:, 1:][valid[:, :-1]]
        final = _rows(student.final, valid, valid)
        terms = {"cross_entropy": self._cross_entropy(final, targets)}
        if teacher is not None and (self.output_weight > 0 or measure_all):
            sides = (final, _rows(teacher.final, valid, valid), teacher_head)
            terms["output"] = self._output(*sides)
        if teacher is not None and self.layer_map and (self.lens_weight > 0 or measure_all):
            kept, fraction = (valid, 1.0) if measure_all else self._sampled(valid, lens_draws)
            terms["lens"] = self._lens(student, teacher, teacher_head, valid, kept, fraction)
        total, nats = self._evaluate(student_head, terms)
        lens = lens_by_pair = None
        num_lens_tokens = 0
        if "lens" in nats:
            by_pair = nats["lens"].view(len(self.layer_map), -1)
            lens_by_pair, num_lens_tokens = by_pair.sum(1), by_pair.shape[1]
            lens = lens_by_pair.mean() / fraction
        return LossTerms(
            # The empty sum keeps the graph connected when no term has a weight.
            total=final[:0].sum() + total,
            cross_entropy=nats["cross_entropy"].sum(),
            output=nats["output"].sum() if "output" in nats else None,
            lens=lens,
            lens_by_pair=lens_by_pair,
            num_tokens=targets.numel(),
            num_lens_tokens=num_lens_tokens,
        )

    def _evaluate(self, student_head, terms):
        """The weighted sum with its gradient, and each term's nats; weight 0 is measured alone."""
        weights = {name: getattr(self, f"{name}_weight") for name in terms}
        trained = [name for name in terms if weights[name] > 0]
        total, nats = 0.0, {}
        if trained:
            total, found = linear_terms(student_head, [terms[name] for name in trained])
            nats = dict(zip(trained, found, strict=True))
        with torch.no_grad():
            for name in [name for name in terms if name not in nats]:
                nats[name] = linear_terms(student_head, [terms[name]])[1][0]
        return total, nats

    def _cross_entropy(self, final, targets):
        weight = _share(final, self.cross_entropy_weight)
        return cross_entropy_term(final, targets, weight=weight)

    def _output(self, final, teacher_final, teacher_head):
        options = {"temperature": self.temperature, **self.output_kwargs}
        weight = _share(final, self.output_weight)
        sides = (final, teacher_final, teacher_head, self.output_divergence)
        return divergence_term(*sides, weight=weight, **options)

    def _sampled(self, valid, draws):
        """The positions that the lens measures, and the share of the valid ones that they are.

        Each position is drawn by itself: a fixed number of them would depend on the micro-batch.
        """
        fraction = self.lens_token_fraction
        if fraction == 1:
            return valid, 1.0
        if draws is None or draws.shape != valid.shape:
            raise ValueError(
                f"lens_token_fraction {fraction} needs lens_draws of shape {list(valid.shape)}, "
                f"got {None if draws is None else list(draws.shape)}"
            )
        return valid & (draws < fraction), fraction

    def _lens(self, student, teacher, teacher_head, valid, kept, fraction):
        pairs = self.layer_map.pairs
        # All pairs' tokens are rows of one term, each with its share of the mean over the pairs.
        student_rows = torch.cat([_rows(student[depth], valid, kept) for depth, _ in pairs])
        teacher_rows = torch.cat([_rows(teacher[depth], valid, kept) for _, depth in pairs])
        options = {"temperature": self.temperature, **self.lens_kwargs}
        weight = _share(student_rows, self.lens_weight / (len(pairs) * fraction))
        sides = (student_rows, teacher_rows, teacher_head, self.lens_divergence)
        return divergence_term(*sides, weight=weight, **options)


def _share(rows, weight):
    return rows.new_full((len(rows),), weight, dtype=torch.promote_types(rows.dtype, torch.float32))


def _rows(states, valid, kept):
    """The kept rows of ``[B, T, D]``, or of ``[N, D]`` gathered at the valid positions before."""
    if states.ndim == 3:
        return states[kept]
    return states if kept is valid else states[kept[valid]]


def target_positions(labels: Tensor) -> Tensor:
    """``[B, T]`` bool: positions whose *next* token is a target. The last position never is."""
    valid = torch.zeros_like(labels, dtype=torch.bool)
    valid[:, :-1] = labels[:, 1:] != IGNORED_LABEL
    return valid
