"""The memory of a training step, by part: a step on tensors without data, counted as it runs.

The models are made of their configurations and hold no numbers (torch's fake tensors). Their own
forward and backward run, so that attention, checkpointing, autocast and adapters are what they are;
the loss allocates what the engine of ``linear_divergence`` does.
"""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distilllens.architectures import class_of
from distilllens.lens.surgery import cut_config
from distilllens.linear_divergence.tiles import default_chunk_size

PARTS = ("weights", "gradients", "optimizer", "activations", "loss", "teacher", "cache")

_FEW = 2  # blocks


@dataclass(frozen=True)
class Side:
    """A model of a run.

    Args:
        config: of transformers.
        dtype: of its weights.
        depths: how many inner ones are read.
        adapt: puts an adapter on the model, or returns it as it is.
    """

    config: object
    dtype: torch.dtype = torch.float32
    depths: int = 0
    adapt: object = lambda model: model


@dataclass(frozen=True)
class Step:
    """What a step computes, as far as its memory depends on it.

    Args:
        rows, length: of the batch, padding included.
        targets: of the batch.
        teacher: None without one.
        is_cached: the teacher's states are read from a cache, not computed.
        autocast: the dtype of autocast, or None.
        checkpointing: whether activations are computed again in the backward pass.
        accumulation: micro-batches of a step.
        state_bytes: of the optimizer, for each trained number.
        has_kernel: whether the loss runs in a Triton kernel.
        stored_bytes: of a number in the cache.
        beside: the same step with each other teacher alone.
    """

    student: Side
    teacher: Side | None
    rows: int
    length: int
    targets: int
    is_cached: bool = False
    autocast: torch.dtype | None = None
    checkpointing: bool = False
    accumulation: int = 1
    state_bytes: float = 8.0
    has_kernel: bool = False
    stored_bytes: int = 2
    beside: tuple[Step, ...] = ()

    def of(self, rows: int) -> Step:
        """The same with another number of rows."""
        beside = tuple(step.of(rows) for step in self.beside)
        targets = round(self.targets * rows / self.rows)
        return replace(self, rows=rows, targets=targets, beside=beside)


def build(side: Side):
    """The model of a side without numbers, on the meta device."""
    with torch.device("meta"):
        return side.adapt(_plain(side))


def _plain(side):
    """The model as its class makes it, where the caller says what its tensors are."""
    kind = class_of(side.config, every_kind=False)
    return kind.from_config(side.config, dtype=side.dtype)


def _without_numbers(side):
    """The model on the CPU, in ``FakeTensorMode``.

    There PEFT cannot move its adapters, so they are made on the meta device first.
    """
    model = _plain(side)
    adapted = build(side)
    if not hasattr(adapted, "get_base_model"):
        return model
    known = {}
    for module in adapted.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    known.setdefault(id(tensor), _twin(tensor))
                    tensors[name] = known[id(tensor)]
    return adapted


def _twin(tensor):
    """A tensor like one of the meta device, on the CPU."""
    found = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    is_weight = isinstance(tensor, torch.nn.Parameter)
    return torch.nn.Parameter(found, tensor.requires_grad) if is_weight else found


def measure(step: Step) -> dict[str, int]:
    """Bytes of each of ``PARTS`` at the moment of a step at which their sum is largest.

    Blocks of a model are alike: a step of two of them and one of three tell what a block adds.

    Raises:
        Exception: whatever a model raises that cannot run without numbers.
    """
    student = build(step.student)
    whole = build(step.teacher) if step.teacher and not step.is_cached else None
    trained = [p for p in student.parameters() if p.requires_grad]
    gradients = _bytes(trained)
    fixed = Counter(weights=_bytes(_tensors(student)))
    fixed["optimizer"] = round(step.state_bytes * sum(p.numel() for p in trained))
    if whole is not None:
        fixed["teacher"] = _bytes(_tensors(whole))
    moments = {**_moments(step), "update": Counter()}
    moments.pop("late", None)
    late = ("tail", "update") if step.accumulation == 1 else moments
    found = [
        {**parts, "gradients": gradients if moment in late else 0}
        for moment, parts in moments.items()
    ]
    peak = max(found, key=lambda parts: sum(parts.values()))
    return {part: fixed[part] + peak.get(part, 0) for part in PARTS}


def _moments(step):
    """Moment -> label -> bytes that live only during a step, gradients left out."""
    layers = step.student.config.get_text_config().num_hidden_layers
    if layers > _FEW + 1 and (few := _cut(step, _FEW)) and (more := _cut(step, _FEW + 1)):
        few, more = _simulated(few), _simulated(more)
        return {
            moment: {
                label: size + (layers - _FEW) * max(0, more[moment][label] - size)
                for label, size in few[moment].items()
            }
            for moment in few
        }
    return _simulated(step)


def _cut(step, blocks):
    """The step of models with a few of their blocks; None if they cannot be cut."""
    try:
        sides = {"student": replace(step.student, config=cut_config(step.student.config, blocks))}
        if step.teacher is not None and not step.is_cached:
            config = cut_config(step.teacher.config, _FEW)  # without a gradient blocks add nothing
            sides["teacher"] = replace(step.teacher, config=config)
    except ValueError:
        return None
    return replace(step, **sides)


def _simulated(step):
    """As ``_moments``, of all blocks of the step's models."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.random.fork_rng(devices=[]):
        student, teacher = _without_numbers(step.student), None
        if step.teacher is not None and not step.is_cached:
            teacher = _without_numbers(step.teacher).eval()
        inner = getattr(student, "get_base_model", lambda: student)()
        student.train()
        if step.checkpointing:
            settings = {"use_reentrant": False, "preserve_rng_state": False}
            enable = getattr(inner, "activation_checkpointing_enable", None)
            (enable or inner.gradient_checkpointing_enable)(settings)
        live = _Live(tensor for model in (student, teacher) if model for tensor in _tensors(model))
        trained = [p for p in student.parameters() if p.requires_grad]
        live.early = len(trained) // 2
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(live.keep_gradient)
        with live:
            _forward_and_backward(step, inner, teacher, live)
        return live.moments


def _forward_and_backward(step, student, teacher, live):
    """The student's forward, the teacher's, the loss and the backward pass."""
    ids = torch.zeros(step.rows, step.length, dtype=torch.long)
    mask = torch.ones(step.rows, step.length, dtype=torch.long)
    index = torch.zeros(step.targets, dtype=torch.long)
    cast = step.autocast is not None
    with torch.autocast("cpu", step.autocast or torch.bfloat16, enabled=cast):
        live.label = "activations"
        inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
        hidden = student.base_model(**inputs)[0]
        rows = _rows_read(hidden, step.student.depths, index)
        theirs = None
        if step.teacher is not None:
            live.label = "cache" if step.is_cached else "teacher"
            theirs = _teacher_rows(step, teacher, inputs, index)
        live.label = "loss"
        gradients, of_head = _loss(step, student.get_output_embeddings().weight, rows, theirs)
        del theirs
    live.label, live.moment = "activations", "backward"
    roots = [(state, gradient) for state, gradient in zip(rows, gradients, strict=True)]
    head = student.get_output_embeddings().weight
    if of_head is not None:
        roots.append((head, of_head))
    roots = [root for root in roots if root[0].requires_grad]
    del rows, gradients, of_head, hidden
    states, given = ([root[at] for root in roots] for at in (0, 1))
    del roots
    torch.autograd.backward(states, given)


def _rows_read(hidden, depths, index):
    """The rows of the last state and of the inner ones, which go through the norm stacked."""
    flat = hidden.flatten(0, 1)
    rows = [flat.index_select(0, index)]
    if depths:
        stacked = torch.cat([hidden] * depths)
        wide = stacked.float()
        normed = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(hidden)
        parts = [each.flatten(0, 1).index_select(0, index) for each in normed.chunk(depths)]
        rows.append(torch.cat(parts))
    return rows


def _teacher_rows(step, teacher, inputs, index):
    """The teacher's rows, from its forward or from a cache, with the head that reads them."""
    depths = step.teacher.depths
    if step.is_cached:
        config = step.teacher.config.get_text_config()
        head = torch.empty(config.vocab_size, config.hidden_size, dtype=step.teacher.dtype)
        shape = (len(index), config.hidden_size)
        rows = [torch.empty(shape, dtype=step.teacher.dtype)]
        rows += [torch.empty(depths * shape[0], shape[1], dtype=step.teacher.dtype)] * bool(depths)
        return rows, head
    with (
        torch.no_grad(),
        torch.autocast(
            "cpu",
            enabled=step.autocast is not None,
            dtype=(step.autocast or torch.bfloat16),
            cache_enabled=False,
        ),
    ):
        hidden = teacher.base_model(**inputs)[0]
        return _rows_read(hidden, depths, index), teacher.get_output_embeddings().weight


def _loss(step, head, rows, theirs):
    """Allocate what the engine does; returns gradients of the rows, and of the head or None."""
    dtype = step.autocast or head.dtype
    full = torch.promote_types(dtype, torch.float32)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        casts = [head.to(dtype)]
        gradients = [torch.empty(state.shape, dtype=dtype) for state in rows]
        inputs = [state.to(dtype) for state in rows]
        of_head = torch.empty(head.shape, dtype=full) if head.requires_grad else None
        vocab = head.shape[0]
        if theirs is not None:
            states, their_head = theirs
            casts.append(their_head.to(dtype))
            inputs += [state.to(dtype) for state in states]
            vocab = max(vocab, their_head.shape[0])
        num = max(state.shape[0] for state in rows)
        kernel = dtype if step.has_kernel else None
        chunk = default_chunk_size(num, vocab, torch.device("meta"), kernel)
        tiles = [torch.empty(chunk, vocab, dtype=dtype) for _ in range(1 + (theirs is not None))]
        if not step.has_kernel:
            block = max(1, min(chunk // 8, 2**20 // (vocab * full.itemsize)))
            tiles.append(torch.empty(2 + 2 * (dtype != full), block, vocab, dtype=full))
        del tiles, casts, inputs
        gradients = [g.to(state.dtype) for g, state in zip(gradients, rows, strict=True)]
        return gradients, None if of_head is None else of_head.to(head.dtype)


def _tensors(model):
    return [*model.parameters(), *model.buffers()]


def _bytes(tensors):
    """Bytes of tensors, each storage once."""
    found = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        found[storage._cdata] = storage.nbytes()
    return sum(found.values())


class _Live(TorchDispatchMode):
    """Bytes alive in storages that are created inside it, by ``label``, gradients left out.

    ``moments`` has them when they are most in the forward and in the backward pass, and (tail) when
    all gradients but the last are finished. "backward" is its first half: most activations live.
    """

    def __init__(self, known):
        super().__init__()
        self.label, self.moment, self.early = "activations", "forward", 0
        self.now, self.moments, self._since = Counter(), {}, Counter()
        # Views of what was there before are nothing new.
        self._labels = {tensor.untyped_storage()._cdata: ("", 0) for tensor in known}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if torch.is_tensor(tensor):
                self._add(tensor.untyped_storage())
        if self.now.total() > self.moments.get(self.moment, Counter()).total():
            self.moments[self.moment] = Counter(self.now)
        if self.now.total() > self._since.total():
            self._since = Counter(self.now)
        return result

    def keep_gradient(self, parameter):
        """Count the gradient of a parameter no longer."""
        self.early -= 1
        self.moment = "backward" if self.early > 0 else "late"
        key = parameter.grad.untyped_storage()._cdata
        label, size = self._labels.get(key, ("loss", 0))
        self.moments["tail"] = self._since - Counter({label: size})
        self._free(key)
        self._since = Counter(self.now)

    def _add(self, storage):
        key = storage._cdata
        if key in self._labels:
            return
        self._labels[key] = (self.label, storage.nbytes())
        self.now[self.label] += storage.nbytes()
        weakref.finalize(storage, self._free, key)

    def _free(self, key):
        if key in self._labels:
            label, size = self._labels.pop(key)
            self.now[label] -= size
