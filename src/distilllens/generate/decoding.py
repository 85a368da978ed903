"""Decoding settings, and sampling noise that depends on the prompt alone.

The noise is a hash of the prompt's tokens, a seed, a step and a token. No random generator is used,
so none is advanced, and a prompt has the same noise in every batch, order, process and on every
device.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Shifts and factors of murmur3's finalizer (Appleby, 2011), as int32 with the same bits.
_ROUNDS = ((16, -0x7A143595), (13, -0x3D4D51CB), (16, 1))
_BELOW_ONE = 1 - 2.0**-24  # the largest float32 below 1


@dataclass(frozen=True)
class Decoding:
    """How answers are generated. The defaults are the paper's: plain sampling from the model.

    Args:
        max_new_tokens: maximum length of an answer, end-of-sequence token included; at least 1.
        temperature: divides the logits, above 0; ignored by greedy decoding.
        top_p: sample from the most probable tokens that together reach this probability, in (0, 1].
        greedy: always take the most probable token.

    Raises:
        ValueError: a value is out of range or of another type.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    greedy: bool = False

    def __post_init__(self):
        if not isinstance(self.max_new_tokens, int) or not _is_number(self.max_new_tokens, 1):
            raise ValueError(
                f"max_new_tokens must be a whole number, at least 1, got {self.max_new_tokens!r}"
            )
        if not _is_number(self.temperature) or self.temperature == 0:
            raise ValueError(
                f"temperature must be a finite number above 0, got {self.temperature!r}; "
                "for the most probable tokens use greedy"
            )
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p!r}")
        if not isinstance(self.greedy, bool):
            raise ValueError(f"greedy must be True or False, got {self.greedy!r}")


def noise_keys(prompt_ids: Sequence[Sequence[int]], seed: int, num_steps: int) -> Tensor:
    """Two 32-bit keys for each step of each prompt, ``[B, num_steps, 2]`` int32 on the CPU.

    The start of the SHAKE-256 stream of "seed id id ...", so the first keys do not depend on
    ``num_steps``.
    """
    digest = b"".join(_stream(ids, seed, 8 * num_steps) for ids in prompt_ids)
    keys = torch.frombuffer(bytearray(digest), dtype=torch.int32)
    return keys.view(len(prompt_ids), num_steps, 2)


def request_seed(ids: Sequence[int], seed: int) -> int:
    """A seed for one prompt, in [0, 2**63), for engines that sample by themselves."""
    return int.from_bytes(_stream(ids, seed, 8), "little") >> 1


def add_gumbel_(scores: Tensor, keys: Tensor) -> Tensor:
    """Add standard Gumbel noise in place: the argmax is then a draw from ``softmax(scores)``.

    The noise of a row and token is ``-log(-log1p(-u))`` with ``u = (bits + 0.5) / 2**31``, which
    has its finest steps where the noise is large, and large noise decides the argmax. The bits are
    the low 31 of ``mix(mix(token + first key) + second key)``, so they are equal on all devices;
    the logarithms may differ in their last bit.

    Args:
        scores: ``[B, V]`` float32.
        keys: ``[B, 2]`` int32, one step of ``noise_keys``, on the same device as ``scores``.
    """
    # A CPU works on as many rows as fit its cache. On an accelerator, small kernels would be slow.
    on_cpu = scores.device.type == "cpu"
    num_rows = max(1, 2**16 // scores.shape[1] if on_cpu else len(scores))
    tokens = torch.arange(scores.shape[1], dtype=torch.int32, device=scores.device)
    for rows, key in zip(scores.split(num_rows), keys.split(num_rows), strict=True):
        first, second = key.unsqueeze(-1).unbind(1)
        bits = tokens + first
        spare = torch.empty_like(bits)
        _mix_(_mix_(bits, spare).add_(second), spare).bitwise_and_(0x7FFFFFFF)
        # Bits near 2**31 round to u = 1, where the noise would be -inf.
        uniform = bits.float().add_(0.5).mul_(2.0**-31).clamp_(max=_BELOW_ONE)
        rows.sub_(uniform.neg_().log1p_().neg_().log_())
    return scores


def _stream(ids, seed, num_bytes):
    return hashlib.shake_256(" ".join(map(str, (seed, *ids))).encode()).digest(num_bytes)


def _mix_(bits, spare):
    """murmur3's finalizer of int32 bits in place, products modulo 2**32."""
    for shift, factor in _ROUNDS:
        # A logical right shift: the shift of int32 is arithmetic and repeats the sign bit.
        torch.bitwise_right_shift(bits, shift, out=spare).bitwise_and_((1 << 32 - shift) - 1)
        bits.bitwise_xor_(spare)
        if factor != 1:
            bits.mul_(factor)
    return bits


def _is_number(value, least=0):
    """Whether a value is a finite number of at least ``least``; booleans are not numbers."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value >= least
