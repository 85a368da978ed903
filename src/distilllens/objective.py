"""The loss: cross-entropy + output divergence + lens divergence + feature loss."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from distilllens.divergence import divergence
from distilllens.features import FEATURE_LOSSES, Features
from distilllens.head import Head, MixedHead
from distilllens.layer_map import LayerMap
from distilllens.lens import LayerStates
from distilllens.linear_divergence import cross_entropy_term, divergence_term, linear_terms
from distilllens.loss_terms import TERMS, WEIGHT_FIELDS, LossTerms
from distilllens.sampling import check_fraction
from distilllens.targets import Targets
from distilllens.top_predictions import TopPredictions
from distilllens.vocabularies import Compared

# What float32 holds, in which the weights of tokens are; rounded down, for people.
_MOST = 3e38
TOKEN_WEIGHTS = ("uniform", "entropy")


@dataclass(frozen=True)
class Objective:
    """``w_ce CE + w_out D_out(p_L, q_L) + w_lens mean(v u D_lens(p_t, q_s)) + w_feature F``.

    The mean is over the pairs, of weights v, and the target tokens, of weights u; F is the mean of
    ``Features.distances`` over pairs and tokens.

    Args:
        layer_map: the pairs of the lens term; None for a loss without it.
        output_divergence, lens_divergence: names of :func:`distilllens.divergence`.
        output_kwargs, lens_kwargs: their parameters, as ``{"beta": 0.5}``.
        output_weight, lens_weight, cross_entropy_weight, feature_weight: finite, >= 0.
        temperature: divides both models' logits in both divergences (not in the cross-entropy).
        lens_token_fraction: in (0, 1]; the share of target tokens that the lens term measures.
        lens_pair_weights: v, a number >= 0 for each pair of the map; None is 1 for all.
        lens_token_weights: "uniform", u = 1; or "entropy", u = 1 - exp(-H) with H the entropy of
            the teacher's output in nats, over the shared tokens at temperature 1: 0 where it is
            certain, 1/2 where two tokens are equally likely, below 1. Below a fraction of 1, a
            token is measured with probability fraction * u and not weighted again, which has the
            same expectation.
        lens_detach_head: whether the lens term leaves the student's head without a gradient.
        feature_map: the pairs of the feature loss; None for a loss without it.
        feature_loss: "mse" or "cosine".

    Raises:
        ValueError: an unknown divergence, parameter or name, a weight below 0 or above 3e38, a
            temperature <= 0, a fraction outside (0, 1], weights that are not one for each pair.

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
    lens_pair_weights: tuple[float, ...] | None = None
    lens_token_weights: str = "uniform"
    lens_detach_head: bool = False
    feature_map: LayerMap | None = None
    feature_weight: float = 0.0
    feature_loss: str = "mse"

    def __post_init__(self):
        divergence(self.output_divergence, **self.output_kwargs)
        divergence(self.lens_divergence, **self.lens_kwargs)
        pair_weights = self.lens_pair_weights or ()
        weights = [(name, getattr(self, name)) for name in WEIGHT_FIELDS]
        for name, weight in (*weights, *(("lens_pair_weights", each) for each in pair_weights)):
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"{name} must be a finite number >= 0, got {weight}")
            if weight > _MOST:
                raise ValueError(f"{name} must be at most {_MOST:g}, got {weight}")
        if pair_weights and len(pair_weights) != len(self.layer_map or ()):
            raise ValueError(
                f"lens_pair_weights must be one for each of the {len(self.layer_map or ())} pairs "
                f"of the layer map, got {len(pair_weights)}"
            )
        for name, known in (
            ("lens_token_weights", TOKEN_WEIGHTS),
            ("feature_loss", FEATURE_LOSSES),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} is one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
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

    def needs_features(self) -> bool:
        """Whether raw states are read; without a weight, evaluations do not measure them either."""
        return self.feature_map is not None and self.feature_weight > 0

    def needs_teacher(self, measure_all: bool = False) -> bool:
        """Whether the teacher is read: the cross-entropy alone does not need it."""
        needed = self.output_weight > 0 or self.needs_lens() or self.needs_features()
        return measure_all or needed

    def over(self, pairs: LayerMap) -> Objective:
        """This objective with the lens term over some of its pairs, each with its weight."""
        weights = self.lens_pair_weights
        if weights:
            of_pair = dict(zip(self.layer_map, weights, strict=True))
            weights = tuple(of_pair[pair] for pair in pairs)
        return replace(self, layer_map=pairs, lens_pair_weights=weights)

    def __call__(
        self,
        student: LayerStates,
        student_head: Head,
        teacher: LayerStates | None,
        teacher_head: Head | MixedHead | None,
        labels: Tensor | Targets,
        *,
        measure_all: bool = False,
        lens_draws: Tensor | None = None,
        features: Features | None = None,
    ) -> LossTerms:
        """The terms of one batch.

        A divergence of weight 0 is skipped unless ``measure_all``; the cross-entropy is always
        measured. ``measure_all`` also measures every token, whatever ``lens_token_fraction``.

        Args:
            student, teacher: head-ready states, ``[B, T, D]`` at the map's depths and ``final``;
                ``[N, D]`` if ``LayerStates.gathered``. Without a teacher (None) only the
                cross-entropy is measured. Of several teachers (a ``MixedHead``), ``final`` has the
                states of each; of one whose logits are elsewhere, it is ``TopPredictions``.
            labels: the batch's ``Targets``, or its labels ``[B, T]``, not shifted, -100 for tokens
                that are no targets.
            lens_draws: ``[B, T]`` in [0, 1), of ``sampling.draw_tokens``: positions with a draw
                below ``lens_token_fraction`` (times u) are measured, with weight 1 / fraction.
                Required if the fraction is below 1.
            features: the raw states of the feature loss; without them it is not measured.

        Raises:
            ValueError: states without ``final``, or without a depth of the map that is measured; a
                fraction below 1 without a draw for every position.
        """
        targets = labels if isinstance(labels, Targets) else Targets.of(labels)
        self._check(student, teacher, measure_all)
        final = student.rows(student.final, targets)
        dtype = torch.promote_types(final.dtype, torch.float32)
        seen, measured = final.new_empty(2, len(final), dtype=dtype), None
        terms = {"cross_entropy": [self._cross_entropy(final, targets.ids, seen)]}
        if teacher is not None:
            compared = teacher.compared
            teacher_final = teacher.rows(teacher.final, targets)
            if self.output_weight > 0 or measure_all:
                terms["output"] = [self._output(final, teacher_final, teacher_head, compared)]
            if self.needs_lens(measure_all):
                vocab_size = None if compared.vocabularies else student_head.vocab_size
                weights = self._token_weights(teacher_final, teacher_head, vocab_size)
                measured = self._measured(targets, weights, lens_draws, measure_all, compared)
                terms["lens"] = self._lens(student, teacher, teacher_head, targets, measured)
        total, nats = self._evaluate(student_head, terms)
        if "output" in nats:
            nats["output"] = teacher.compared.weighted(nats["output"])
        if features is not None and self.needs_features():
            distances = features.distances(self.feature_map, self.feature_loss)
            total = total + self.feature_weight * distances.mean(0).sum()
            nats["feature"] = distances.detach()
        # The empty sum keeps the graph connected when no term has a weight.
        summed = self._summed(final[:0].sum() + total, nats, len(targets), measured)
        places = None if teacher is None else teacher.compared.places
        num_compared = None if places is None else len(places)
        top = None if teacher is None else teacher.final
        tail = top.tail.sum() if isinstance(top, TopPredictions) else None
        return replace(summed, seen=seen.sum(1), num_compared=num_compared, tail=tail)

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

    def _summed(self, total, nats, num_tokens, measured):
        """Sums over the batch of each term's nats per token."""
        sums, by_pair = {}, {}
        maps = {"lens": self.layer_map, "feature": self.feature_map}
        for term in TERMS:
            if term.key not in nats:
                continue
            if term.has_pairs:
                pairs = nats[term.key].view(len(maps[term.key]), -1)
                by_pair[term.key] = (pairs.sum(1), pairs.shape[1])
                is_lens = term.key == "lens"
                pairs = self._weighted(pairs, measured) if is_lens else pairs
                share = measured.fraction if is_lens else 1.0
                sums[term.key] = (pairs.sum(1).mean() / share, num_tokens)
            else:
                sums[term.key] = (nats[term.key].sum(), num_tokens)
        pairs = {key: maps[key] for key in by_pair}
        return LossTerms(total, sums, by_pair, num_tokens, pairs=pairs)

    def _evaluate(self, student_head, terms):
        """The weighted sum with its gradient, and each term's nats per token."""
        weights = {term.key: getattr(self, term.weight_field) for term in TERMS}
        trained = [key for key in terms if weights[key] > 0]
        apart = ["lens"] if self.lens_detach_head and "lens" in trained else []
        together = [key for key in trained if key not in apart]
        total, nats = 0.0, {}
        for head, keys in ((student_head, together), (student_head.constant(), apart)):
            if keys:
                more, found = linear_terms(head, [term for key in keys for term in terms[key]])
                total, found = total + more, iter(found)
                nats |= {key: torch.cat([next(found) for _ in terms[key]]) for key in keys}
        if apart and not together:  # a head that no process waits for in vain
            total = total + sum(t[:0].sum() for t in student_head.tensors)
        with torch.no_grad():
            for key in [key for key in terms if key not in nats]:
                nats[key] = torch.cat(linear_terms(student_head, terms[key])[1])
        return total, nats

    def _cross_entropy(self, final, targets, seen):
        weight = _share(final, self.cross_entropy_weight)
        return cross_entropy_term(final, targets, weight=weight, seen=seen)

    def _output(self, final, teacher_final, teacher_head, compared):
        options = {"temperature": self.temperature, **self.output_kwargs}
        if (places := compared.targets()) is not None:
            final = final.index_select(0, places)
        weight = compared.weighted(_share(final, self.output_weight))
        options |= {"weight": weight, "vocabularies": compared.vocabularies}
        return divergence_term(
            final, teacher_final, teacher_head, self.output_divergence, **options
        )

    def _token_weights(self, teacher_final, teacher_head, vocab_size):
        """u ``[N]`` of the targets, or None for ones: one more projection of the teacher's rows.

        Of the tokens that both models have, as in the divergences; of all, with two tokenizers.
        """
        if self.lens_token_weights == "uniform":
            return None
        if isinstance(teacher_head, MixedHead):
            raise ValueError("lens_token_weights entropy is read from the output of one teacher")
        teacher_head = teacher_head.first(vocab_size)
        # The engine sees the entropies of what it projects beside a cross-entropy; of no label.
        dtype = torch.promote_types(teacher_final.dtype, torch.float32)
        seen = teacher_final.new_empty(2, len(teacher_final), dtype=dtype)
        labels = torch.zeros(len(teacher_final), dtype=torch.long, device=teacher_final.device)
        with torch.no_grad():
            linear_terms(teacher_head, [cross_entropy_term(teacher_final, labels, seen=seen)])
        return -torch.expm1(-seen[1].clamp(min=0))

    def _measured(self, targets, weights, draws, measure_all, compared):
        """Which targets the lens measures, their expected share, and what each weighs.

        Each position is drawn independently: a fixed number would depend on the micro-batch.
        """
        fraction, places = self.lens_token_fraction, compared.targets()
        if fraction == 1 or measure_all:
            return _Measured(compared, weights=weights)
        if draws is None or draws.shape != targets.mask.shape:
            raise ValueError(
                f"lens_token_fraction {fraction} needs lens_draws of shape "
                f"{list(targets.mask.shape)}, got {None if draws is None else list(draws.shape)}"
            )
        # A token drawn with probability fraction * u counts 1 / fraction: u on average.
        chance = fraction if weights is None else fraction * weights
        index = targets.index if places is None else targets.index[places]
        drawn = draws.flatten()[index] < chance
        return _Measured(compared, drawn.nonzero().squeeze(1), fraction)

    def _lens(self, student, teacher, teacher_head, targets, measured):
        kept, pairs = measured.kept, self.layer_map.pairs
        places = measured.compared.targets(kept)
        ours = {s: student.rows(student[s], targets, places) for s, _ in pairs}
        theirs = {t: teacher.rows(teacher[t], targets, kept) for _, t in pairs}
        options = {"temperature": self.temperature, **self.lens_kwargs}
        options["vocabularies"] = measured.compared.vocabularies
        like = ours[pairs[0][0]]
        weight = _share(like, self.lens_weight / (len(pairs) * measured.fraction))
        weight = self._weighted(weight.expand(len(pairs), -1), measured)
        terms = []
        # The tokens of a group's pairs are rows of one term, weighted for the mean over all pairs.
        for group in self.layer_map.groups():
            student_rows = _stacked([ours[s] for s, _ in pairs[group]])
            teacher_rows = _stacked([theirs[t] for _, t in pairs[group]])
            sides = student_rows, teacher_rows, teacher_head.at(pairs[group][0][1])
            share = weight[group].flatten()
            terms.append(divergence_term(*sides, self.lens_divergence, weight=share, **options))
        return terms

    def _weighted(self, values, measured):
        """Values ``[P, n]`` of pairs and measured tokens times the weights of both."""
        if self.lens_pair_weights:
            values = values * values.new_tensor(self.lens_pair_weights).unsqueeze(1)
        values = measured.compared.weighted(values, measured.kept)
        return values if measured.weights is None else values * measured.weights.to(values)


@dataclass(frozen=True, eq=False)
class _Measured:
    """The rows of the teacher that the lens term measures: numbers, expected share and weights.

    None is all rows, or a weight of 1 for each.
    """

    compared: Compared
    kept: Tensor | None = None
    fraction: float = 1.0
    weights: Tensor | None = None


def _share(rows, weight):
    return rows.new_full((len(rows),), weight, dtype=torch.promote_types(rows.dtype, torch.float32))


def _stacked(parts):
    return parts[0] if len(parts) == 1 else torch.cat(parts)
