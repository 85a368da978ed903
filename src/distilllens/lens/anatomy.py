"""Find a model's blocks by watching one tiny forward pass; no table of module names."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from distilllens.lens.probe import (
    NUM_ROWS,
    NUM_TOKENS,
    Call,
    inputs_around,
    logits_of,
    probe_ids,
    record,
    undisturbed,
)
from distilllens.lens.structure import ratio, same, with_first


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The blocks of a model, the module around them, and how the stream passes through.

    It holds references to parts of the model, not to the model itself.
    """

    blocks: tuple[nn.Module, ...]
    blocks_path: str
    key: int | str  # argument that carries the stream: a position or a keyword
    block_outputs: tuple  # what each block returned in the probe, as a template
    backbone: nn.Module | None  # the module called by the causal LM that contains the blocks
    backbone_output: object
    stream_shape: tuple[int, ...]
    written_in_place: bool  # a later module overwrites a block's output

    @property
    def num_layers(self) -> int:
        """L, the number of blocks."""
        return len(self.blocks)

    @property
    def batch_first(self) -> bool:
        """Whether the stream is ``[B, T, D]``."""
        return self.stream_shape[:-1] == (NUM_ROWS, NUM_TOKENS)

    def stream_in(self, args, kwargs) -> Tensor:
        """The stream among the arguments of a block."""
        found = dict(enumerate(args)) | dict(kwargs)
        return found[self.key]

    def axes(self) -> tuple[int, int, int]:
        """Batch axis, token axis, and how many positions the stream has beyond the tokens."""
        lead = self.stream_shape[:-1]
        batch = lead.index(NUM_ROWS)
        rest = [i for i in range(len(lead)) if i != batch]
        token = next((i for i in rest if lead[i] == NUM_TOKENS), None)
        if token is None:
            token = max(rest, key=lambda i: lead[i])
        return batch, token, lead[token] - NUM_TOKENS

    def still_holds(self, model: nn.Module) -> bool:
        """Whether the model still has these blocks (a cached anatomy may be out of date)."""
        try:
            children = list(model.get_submodule(self.blocks_path).children())
        except AttributeError:
            return False
        return len(children) == len(self.blocks) and all(
            a is b for a, b in zip(children, self.blocks, strict=True)
        )


@dataclass(frozen=True, eq=False)
class Probe:
    """The tiny forward, recorded: every call, the stream by depth, the logits."""

    calls: list[Call]
    block_calls: list[Call]
    states: list[Tensor]
    logits: Tensor
    ids: Tensor

    @property
    def around(self) -> set[int]:
        """Indices of the calls that enclose the blocks, up to the model's own."""
        found, parent = set(), self.block_calls[0].parent
        while parent is not None:
            found.add(parent)
            parent = self.calls[parent].parent
        return found


def locate(model: nn.Module) -> tuple[Anatomy, Probe]:
    """Watch one tiny forward of an unwrapped model and find its blocks.

    Raises:
        ValueError: no list of blocks that pass one stream from each to the next.
    """
    ids = probe_ids(model)
    reason = None
    for nesting in (1, 2):
        with undisturbed(model):
            calls, output = record(model, inputs_around(model, ids), nesting)
        path, run, key, reason = _find_blocks(model, calls, reason)
        if run is not None:
            break
    else:
        raise ValueError(reason or "it has no list of blocks that pass one tensor on")
    start = dict(run[0].inputs)[key]
    states = [start, *(call.stream for call in run)]
    probe = Probe(calls, run, states, logits_of(output), ids)
    backbone = next((c for c in calls if c.parent == 0 and c.index in probe.around), None)
    anatomy = Anatomy(
        blocks=tuple(call.module for call in run),
        blocks_path=path,
        key=key,
        block_outputs=tuple(with_first(c.output, c.stream.new_empty(0)) for c in run),
        backbone=backbone.module if backbone else None,
        backbone_output=backbone.output if backbone else None,
        stream_shape=tuple(run[-1].stream.shape),
        written_in_place=any(not same(call.live, call.stream) for call in run),
    )
    for call in calls:
        call.live = None
    return anatomy, probe


def _find_blocks(model, calls, reason):
    """The longest module list whose members ran once each, one after another, on one stream."""
    runs = {}
    for call in calls:
        runs.setdefault(id(call.module), []).append(call)
    found = []
    for path, module in model.named_modules():
        children = list(module.children()) if isinstance(module, nn.ModuleList) else []
        ran = [runs.get(id(child), []) for child in children]
        if not children or not all(ran):
            continue
        if any(len(r) > 1 for r in ran) or len({id(c) for c in children}) < len(children):
            if _stream_argument([r[0] for r in ran]) is not None:
                reason = f"its blocks ({path}) run more than once in a forward"
            continue
        run = [r[0] for r in ran]
        key = _stream_argument(run)
        if key is not None and (outer := _stages_around(model, path)):
            reason = f"its blocks lie in the stages of {outer}, not in one list"
        elif key is not None:
            size = sum(p.numel() for p in module.parameters())
            found.append((len(run), size, path, run, key))
    if not found:
        return None, None, None, reason
    _, _, path, run, key = max(found, key=lambda item: item[:2])
    return path, run, key, reason


def _stages_around(model, path):
    """The path of a list with several members around the list at ``path``; "" if there is none."""
    parts = path.split(".")
    for end in range(1, len(parts)):
        outer = ".".join(parts[:end])
        module = model.get_submodule(outer)
        if isinstance(module, nn.ModuleList) and len(module) > 1:
            return outer
    return ""


def _stream_argument(run):
    """The argument through which each block gets the previous block's output, or None."""
    if len({call.parent for call in run}) != 1 or any(call.stream is None for call in run):
        return None
    if not run[0].inputs or any(a.ended > b.started for a, b in pairwise(run)):
        return None
    if len(run) == 1:
        fitting = [k for k, t in run[0].inputs if t.shape == run[0].stream.shape]
        return fitting[0] if fitting else None
    # Allow a constant factor between two blocks: rwkv halves its stream every few blocks.
    keys = None
    for before, after in pairwise(run):
        equal = {k for k, t in after.inputs if same(t, before.stream)}
        equal = equal or {k for k, t in after.inputs if ratio(t, before.stream) is not None}
        keys = equal if keys is None else keys & equal
    fitting = [k for k, t in run[0].inputs if k in keys and t.shape == run[0].stream.shape]
    return fitting[0] if fitting else None
