"""From the last block to the logits: tail modules, head module, scale and soft cap."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distilllens.lens.anatomy import Anatomy, Probe
from distilllens.lens.probe import Call, numbers
from distilllens.lens.stand_in import logits_around_blocks
from distilllens.lens.structure import first_float, ratio, same


@dataclass(frozen=True, eq=False)
class Step:
    """A module of the read-out, and the dtypes of its input and weight in the probe."""

    module: nn.Module
    input_dtype: torch.dtype
    weight_dtype: torch.dtype | None
    casts: bool  # the model itself casts the input of this module (mamba, zaya)

    def __call__(self, hidden: Tensor) -> Tensor:
        return first_float(self.module(self.cast(hidden)))

    def cast(self, hidden: Tensor) -> Tensor:
        """The input in the dtype in which the model would pass it."""
        weight_dtype = _weight_dtype(self.module)
        if torch.is_autocast_enabled(hidden.device.type):
            return hidden
        if self.weight_dtype not in (None, weight_dtype):  # the model has been cast since the probe
            return hidden.to(weight_dtype) if self.casts else hidden
        foreign = hidden.dtype not in (self.input_dtype, self.weight_dtype)
        return hidden.to(self.input_dtype) if self.casts or foreign else hidden


@dataclass(frozen=True)
class Scale:
    """Multiply or divide by a number: the two round differently in bfloat16."""

    number: float = 1.0
    divide: bool = False

    @property
    def factor(self) -> float:
        """The equivalent number to multiply by."""
        return 1.0 / self.number if self.divide else self.number

    def __call__(self, value: Tensor) -> Tensor:
        if self.number == 1.0:
            return value
        return value / self.number if self.divide else value * self.number


@dataclass(frozen=True, eq=False)
class Readout:
    """Tail (last block -> backbone output), then head, scales and soft cap (-> logits)."""

    tail: tuple[Step, ...]
    head: Step | None = None  # None: the step from backbone to logits is more complex
    before: Scale = Scale()
    after: Scale = Scale()
    softcap: float | None = None
    vocab_size: int = 0
    logits_dtype: torch.dtype | None = None

    def normalize(self, hidden: Tensor) -> Tensor:
        """Turn the stream after a block into what the backbone would return."""
        for step in self.tail:
            hidden = step(hidden)
        return hidden

    def project(self, normed: Tensor) -> Tensor:
        """Turn what the backbone would return into logits."""
        logits = self.head(self.before(normed))[..., : self.vocab_size]
        if self.logits_dtype is not None:
            logits = logits.to(self.logits_dtype)
        logits = self.after(logits)
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


def read_out(model: nn.Module, anatomy: Anatomy, probe: Probe) -> tuple[Readout | None, str]:
    """The read-out as far as modules explain it, and why it stops there ("" if complete)."""
    if anatomy.backbone is None:
        return None, "its blocks run in the model itself, with no backbone module around them"
    backbone = next(c for c in probe.calls if c.module is anatomy.backbone and c.parent == 0)
    last = probe.block_calls[-1]
    inner = [c for c in probe.calls if c.parent in probe.around - {0} and c.started > last.ended]
    tail, rest = _walk(backbone.stream, inner, last.stream)
    if not same(rest, last.stream):
        return None, "an operation outside of any module follows its last block"
    readout = Readout(tail)
    module = model.get_output_embeddings()
    if module is None:
        return readout, "its classifier reads its positions together"
    heads = [c for c in probe.calls if c.module is module]
    if len(heads) != 1 or heads[0].parent not in probe.around or len(heads[0].inputs) != 1:
        return readout, "its output embedding is only a part of a larger head"
    return _with_head(model, anatomy, probe, readout, heads[0], backbone)


def _with_head(model, anatomy, probe, readout, head, backbone):
    taken = head.inputs[0][1]
    constant = 1.0 if same(taken, backbone.stream) else ratio(taken, backbone.stream)
    if constant is None:
        return readout, "something beyond a constant lies between its backbone and its head"
    known = [n for n in numbers(model.config.to_dict()) if n and math.isfinite(n)]
    quotients = [taken.shape[-1] / n for n in known] if constant != 1.0 else []
    found = _ramp(model, anatomy, probe, head.module, known)
    if found is None:
        return readout, "its logits are neither a scale nor a soft cap of its head's output"
    after, softcap = found
    return Readout(
        tail=readout.tail,
        head=_step(head, backbone.stream),
        before=_snap(constant, known + quotients),
        after=after,
        softcap=softcap,
        vocab_size=probe.logits.shape[-1],
        logits_dtype=probe.logits.dtype if probe.logits.dtype != head.stream.dtype else None,
    ), ""


def _walk(tensor: Tensor, calls: list[Call], start: Tensor) -> tuple[tuple[Step, ...], Tensor]:
    """Walk back from a tensor through the modules that made it, each from its only input."""
    chain = []
    for call in sorted(calls, key=lambda c: -c.started):
        if call.stream is not None and len(call.inputs) == 1 and same(call.stream, tensor):
            chain.insert(0, call)
            tensor = call.inputs[0][1]
    makers = [start, *(call.stream for call in chain)]
    return tuple(_step(c, made) for c, made in zip(chain, makers, strict=False)), tensor


def _step(call: Call, made: Tensor) -> Step:
    taken = call.inputs[0][1].dtype
    return Step(call.module, taken, _weight_dtype(call.module), taken != made.dtype)


def _weight_dtype(module):
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), None)


def _ramp(model, anatomy, probe, head, known):
    """Scale and soft cap, measured on known head outputs from -300 to 300; None if neither fits.

    Real logits would not do: as long as they are small, ``cap * tanh(x / cap)`` looks linear.
    """
    given = []

    def emit(module, args, output):
        steps = torch.linspace(-10, 10, output.shape[-1], device=output.device).sinh()
        given.append((steps * (300 / steps[-1])).to(output.dtype))
        return given[0].expand_as(output)

    handle = head.register_forward_hook(emit)
    try:
        logits = logits_around_blocks(model, anatomy, probe.states[-1], probe.ids)
    finally:
        handle.remove()
    size = logits.shape[-1]
    ramp, seen = given[0][:size].double(), logits[0, 0].double()
    exact = logits.dtype in (torch.float32, torch.float64) and given[0].dtype == logits.dtype
    tolerance = 1e-5 if exact else 2e-2
    near = (ramp.abs() - 0.01).abs().argmin()  # small but not 0, which an odd vocabulary has
    after = _snap(float(seen[near] / ramp[near]), known)
    line = ramp * after.factor
    if _close(line, seen, tolerance):
        return after, None
    softcap = _cap(float(line[0].abs()), float(seen[0].abs()))
    if softcap is None:
        return None
    softcap = _snap(softcap, known).factor
    fits = _close(softcap * torch.tanh(line / softcap), seen, tolerance)
    return (after, softcap) if fits else None


def _close(found, seen, tolerance):
    return bool(((found - seen).abs() <= tolerance * (seen.abs() + 1e-6)).all())


def _cap(uncapped: float, capped: float) -> float | None:
    """Solve ``capped = cap * tanh(uncapped / cap)``, which increases with the cap, for the cap."""
    if not 0 < capped < uncapped:
        return None
    low, high = capped / 2, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        if middle * math.tanh(uncapped / middle) < capped:
            low = middle
        else:
            high = middle
    return low


def _snap(value: float, known: list[float]) -> Scale:
    """The number of the config, its reciprocal, or 1, that matches a measured constant."""
    choices = [Scale(1.0)] + [Scale(float(n), d) for n in known for d in (False, True)]
    close = [c for c in choices if abs(c.factor - value) <= 5e-3 * abs(value)]
    if not close:
        return Scale(value)
    best = min(abs(c.factor - value) for c in close)
    nearest = [c for c in close if abs(c.factor - value) <= best + 1e-6 * abs(value)]
    return nearest[0]
