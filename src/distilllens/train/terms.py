"""The objective that a configuration describes."""

from __future__ import annotations

from distilllens.head import mixture_weights
from distilllens.joined_map import JoinedMap
from distilllens.layer_map import LayerMap
from distilllens.objective import Objective
from distilllens.train.schedule import pair_weights


def objective_of(args, layer_map: LayerMap | None) -> Objective:
    """The terms of the loss with the weights and divergences of ``args``, over a layer map."""
    has_features = layer_map is not None and args.feature_weight > 0
    lens_kwargs = dict(args.lens_divergence_kwargs or {})
    if args.lens_divergence == "jsd":
        lens_kwargs.setdefault("beta", args.lens_beta)
    return Objective(
        layer_map=layer_map,
        output_divergence=args.output_divergence,
        output_kwargs=dict(args.output_divergence_kwargs or {}),
        output_weight=args.output_weight,
        lens_divergence=args.lens_divergence,
        lens_kwargs=lens_kwargs,
        lens_weight=args.lens_weight,
        cross_entropy_weight=args.cross_entropy_weight,
        temperature=args.temperature,
        lens_token_fraction=args.lens_token_fraction,
        lens_pair_weights=_pair_weights(args, layer_map),
        lens_token_weights=args.lens_token_weights,
        lens_detach_head=args.lens_detach_head,
        feature_map=layer_map if has_features else None,
        feature_weight=args.feature_weight,
        feature_loss=args.feature_loss,
    )


def _pair_weights(args, layer_map):
    """The weights of pairs, 1 on average; of several teachers, each one's are as its weight."""
    if not isinstance(layer_map, JoinedMap):
        return pair_weights(args.lens_pair_weights, layer_map)
    found, shares = [], mixture_weights(entry["weight"] for entry in args.teachers)
    for share, of_one in zip(shares, layer_map.of_teachers(), strict=True):
        weights = pair_weights(args.lens_pair_weights, of_one) or (1.0,) * len(of_one)
        found += [weight * share * len(layer_map) / len(of_one) for weight in weights]
    return tuple(found)
