"""One forward with hooks on chosen blocks; the hooks are removed before any backward."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from distilllens.lens.anatomy import Anatomy
from distilllens.lens.positions import learn_positions, with_positions
from distilllens.lens.probe import (
    accepts,
    inputs_around,
    logits_of,
    probe_ids,
    undisturbed,
    without_cache,
)
from distilllens.lens.stand_in import standing_in, stopped
from distilllens.lens.structure import first_float, floats, same, with_first, worst


def check_depths(depths, num_layers: int) -> list[int]:
    """The requested depths without repetitions.

    Raises:
        ValueError: a depth that is not an integer from 0 to L.
    """
    found = list(dict.fromkeys(depths))
    for depth in found:
        if isinstance(depth, bool) or not isinstance(depth, int) or not 0 <= depth <= num_layers:
            raise ValueError(
                f"depth {depth!r} does not exist: valid depths are 0 (embeddings) to {num_layers}"
            )
    return found


@contextmanager
def collected(anatomy: Anatomy, depths):
    """A dictionary that is filled with the un-normed streams at these depths by a forward."""
    states = {}

    def keep(depth, stream):
        states[depth] = stream.clone() if anatomy.written_in_place else stream

    def at_start(module, args, kwargs):
        keep(0, anatomy.stream_in(args, kwargs))

    def after(depth):
        return lambda module, args, output: keep(depth, first_float(output))

    with ExitStack() as hooks:
        for depth in depths:
            block = anatomy.blocks[max(depth - 1, 0)]
            if depth == 0:
                handle = block.register_forward_pre_hook(at_start, with_kwargs=True)
            else:
                handle = block.register_forward_hook(after(depth))
            hooks.callback(handle.remove)
        yield states


def stacked_read(lens, depths, *, normalize: bool, inputs: dict) -> tuple[dict, Tensor]:
    """The states at these depths and the last, head-ready one, from one call of the backbone.

    With ``normalize`` the last block returns all chosen states and its own, stacked along the
    batch, so that the model's final norm runs once. Calling it again later is not an option: if
    FSDP2 shards the norm or head together with the embedding, gradients are silently lost.
    """
    anatomy, backbone = lens.anatomy, lens.backbone
    inner = [d for d in depths if d < anatomy.num_layers] if normalize else []
    inputs = with_positions(lens.model, backbone, without_cache(backbone, inputs))
    sizes = []

    def stack(module, args, output):
        last = first_float(output)
        sizes.append(last.shape[0])
        if not inner:
            return None
        chosen = (lens.translate(d, states[d]).to(last.dtype) for d in inner)
        return with_first(output, torch.cat([*chosen, last]))

    with collected(anatomy, inner if normalize else depths) as states:
        handle = anatomy.blocks[-1].register_forward_hook(stack)
        try:
            output = first_float(backbone(**inputs))
        finally:
            handle.remove()
    if output.shape[0] != sizes[0] * (len(inner) + 1):
        raise ValueError(
            f"{type(lens.model).__name__} returned {output.shape[0]} rows for "
            f"{len(inner) + 1} stacked depths of {sizes[0]} rows"
        )
    *normed, final = lens.head_ready(output).split(sizes[0])
    if not normalize:
        return {d: states[d] for d in depths}, final
    ready = dict(zip(inner, normed, strict=True)) | {anatomy.num_layers: final}
    return {d: ready[d] for d in depths}, final


def stacked_error(lens, head) -> float:
    """Largest relative error of the stacked read against the model's own logits, at any depth."""
    lens = lens.tuned(None)
    model, depths = lens.model, range(lens.num_layers + 1)
    ids = probe_ids(model)
    inputs = {"input_ids": ids}
    if accepts(lens.backbone, "attention_mask"):
        inputs["attention_mask"] = torch.ones_like(ids)
        inputs["attention_mask"][0, -2:] = 0
        learn_positions(model, lens.backbone)
    with undisturbed(model):
        with collected(lens.anatomy, depths) as raw:
            logits = logits_of(model(**without_cache(model, inputs)))
        states, final = stacked_read(lens, depths, normalize=True, inputs=inputs)
        errors = [worst(head(final).to(logits.dtype), logits)]
        pairs = [(states[d], lens.head_ready(lens.normalize(raw[d]))) for d in depths]
        # Where the normed states are equal, two tokens tell whether the heads are.
        equal = [ours[:1, :2] for ours, theirs in pairs if torch.equal(ours, theirs)]
        pairs = [pair for pair in pairs if not torch.equal(*pair)]
        for ours, theirs in [*pairs, *([(torch.cat(equal),) * 2] if equal else [])]:
            found, truth = head(ours), lens.logits(theirs, normalize=False).to(final.dtype)
            errors += map(worst, found, truth)
    return max(errors)


def same_block_arguments(model, anatomy: Anatomy, probe) -> bool:
    """Whether model and backbone, with stand-ins for the blocks, pass them equal tensors."""

    def seen(module):
        found = []

        def watching(forward):
            def stand_in(*args, **kwargs):
                found.extend(floats([*args, *(kwargs[name] for name in sorted(kwargs))]))
                return forward(*args, **kwargs)

            return stand_in

        forwards = {b: watching(f) for b, f in stopped(anatomy, probe.states[-1]).items()}
        with standing_in(model, forwards):
            module(**without_cache(module, inputs_around(model, probe.ids)))
        return found

    try:
        ours, theirs = seen(anatomy.backbone), seen(model)
    except Exception:  # a backbone that needs other inputs cannot be called on its own
        return False
    return len(ours) == len(theirs) and all(map(same, ours, theirs))
