"""Which pairs and tokens of the lens term a step measures, and whether it is on-policy.

A draw is a hash of the seed, the step and what is drawn, so it is the same in every
micro-batch, on every process and after a resume. No random generator is used or advanced.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distilllens.layer_map import LayerMap

# splitmix64 (Steele, Lea and Flood, 2014), its constants as the int64 of the same bits.
_GAMMA = -0x61C8864680B583EB
_ROUNDS = ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15))
# What a step draws, each independently of the others.
_PAIRS, _TOKENS, _STEP, _ANSWERS = 1, 2, 3, 4


def draw_pairs(layer_map: LayerMap, fraction: float, *, seed: int, step: int) -> LayerMap:
    """``max(1, round(fraction * P))`` of the P pairs, without replacement.

    Every subset of that size is equally likely, so the mean over the drawn pairs is an unbiased
    estimate of the mean over all pairs. An objective only needs the smaller map.

    Raises:
        ValueError: a fraction outside (0, 1].
    """
    check_fraction("lens_pair_fraction", fraction)
    count = max(1, round(fraction * len(layer_map)))
    if count == len(layer_map):
        return layer_map
    order = _splitmix(_key(seed, step, _PAIRS) + torch.arange(len(layer_map), device="cpu"))
    drawn = sorted(order.argsort()[:count].tolist())
    return type(layer_map)(layer_map.pairs[index] for index in drawn)


def draw_tokens(
    input_ids: Tensor,
    *,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    seed: int,
    step: int,
) -> Tensor:
    """A number in [0, 1) for every position, ``[B, T]`` float32, uniform over seeds and steps.

    An integer hash of seed, step and the document's tokens up to and including the position. A
    token's number is therefore the same in every batch, padding, packing, process and device. If
    two documents begin with the same tokens, these have the same numbers in a step. Nothing waits
    for the device.

    Args:
        input_ids: ``[B, T]``; a row is a document unless ``position_ids`` divide it.
        attention_mask: ``[B, T]``, 0 at padding, whose tokens are ignored.
        position_ids: ``[B, T]`` or ``[1, T]``, 0 where a document begins.
    """
    ids = input_ids.long()
    seen = torch.ones_like(ids) if attention_mask is None else (attention_mask != 0).long()
    index = torch.arange(ids.shape[-1], device=ids.device).expand_as(ids)
    first = torch.zeros_like(ids)
    if position_ids is not None:
        begins = (position_ids.expand_as(ids) == 0) & (seen == 1)
        first = torch.where(begins, index, 0).cummax(-1).values
    # Integer sums wrap around, which does no harm here; float sums would depend on their order.
    place = _sum_since(first, seen)
    prefix = _sum_since(first, _splitmix(_splitmix(ids) + place) * seen)
    return _uniform(_splitmix(prefix + _key(seed, step, _TOKENS)))


def draw_step(*, seed: int, step: int) -> float:
    """A number in [0, 1) for a step as a whole, uniform over seeds and steps."""
    return float(_uniform(_key(seed, step, _STEP)))


def answer_seed(*, seed: int, step: int) -> int:
    """The seed of the answers that the student writes in a step: another one in every step."""
    return int(_key(seed, step, _ANSWERS))


def check_fraction(name: str, value: float):
    """Check that a fraction is above 0 and at most 1.

    Raises:
        ValueError: a number outside (0, 1], NaN included.
    """
    if not 0 < value <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1, got {value}")


def _sum_since(first, values):
    """Sums of ``[B, T]`` values from the column ``first`` of each position up to the position."""
    sums = values.cumsum(-1)
    return sums - (sums - values).gather(-1, first)


def _uniform(bits):
    # float32 holds 24 bits exactly; mps has no float64.
    return (bits >> 40 & 0xFFFFFF).to(torch.float32) * 2.0**-24


def _key(seed, step, purpose):
    # A CPU tensor without dimensions: other devices use it as a number, without a copy.
    start = torch.tensor(seed, dtype=torch.int64, device="cpu")
    return _splitmix(_splitmix(_splitmix(start) + step) + purpose)


def _splitmix(state):
    """The output of splitmix64 for a state, on int64 tensors; products wrap around."""
    bits = state + _GAMMA
    for shift, factor in _ROUNDS:
        bits = (bits ^ _shifted(bits, shift)) * factor
    return bits ^ _shifted(bits, 31)


def _shifted(bits, by):
    """A right shift that fills with zeros; ``>>`` of int64 fills with the sign."""
    return bits >> by & (1 << 64 - by) - 1
