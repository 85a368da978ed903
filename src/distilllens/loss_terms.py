"""The terms of the loss as one table, and what a batch gives for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from distilllens.layer_map import LayerMap


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
        optional: whether it is measured and named only where it has a weight.
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
    optional: bool = False


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
    LossTerm(
        "feature",
        "feature_loss",
        "feature loss",
        "feature",
        "feature_weight",
        has_pairs=True,
        divergence_field="feature_loss",
        place="between hidden states",
        optional=True,
    ),
)
WEIGHT_FIELDS = tuple(term.weight_field for term in TERMS)


@dataclass(frozen=True, eq=False)
class LossTerms:
    """The sums of one batch over its tokens; the trainer divides them once.

    In nats, except that the feature loss has the unit of its own.

    Attributes:
        total: scalar, the weighted sum with its gradient; connected to the graph even at N = 0.
        sums: key of a measured term -> its sum, unweighted and detached, and the number of tokens
            in it. The lens is the mean over the pairs, with the weights of pairs and tokens; with
            sampled tokens, the estimate for all N.
        by_pair: key of a term with pairs -> the sums ``[P]`` in the order of its pairs, without any
            weight, and the number of tokens that each pair was measured on.
        num_tokens: N, the targets of the batch.
        seen: ``[2]``, sums over the N targets: those that are the student's most likely token, and
            the entropy of its predictions in nats.
        pairs: key of a term with pairs -> the pairs of ``by_pair``.
        num_compared: the targets that a teacher with another tokenizer was compared at.
        tail: of ``TopPredictions``, the sum over the targets of the probability that is not listed.
    """

    total: Tensor
    sums: Mapping[str, tuple[Tensor, int]]
    by_pair: Mapping[str, tuple[Tensor, int]]
    num_tokens: int
    seen: Tensor | None = None
    pairs: Mapping[str, LayerMap] = field(default_factory=dict)
    num_compared: int | None = None
    tail: Tensor | None = None

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
