"""Fill a teacher cache: run the teacher once over every document that is missing from it."""

from __future__ import annotations

import logging
import math
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from distilllens.files import free_at, in_bytes
from distilllens.lens.translators import translators_digest
from distilllens.linear_divergence import linear_divergence
from distilllens.teacher import CachedTeacher, CacheWriter, LiveTeacher, cache
from distilllens.teacher.documents import cut
from distilllens.teacher.manifest import LOGIT, Manifest
from distilllens.teacher.shards import dequantize, quantize
from distilllens.teacher.store import locked
from distilllens.train.cache_needs import CacheRequirements
from distilllens.train.collation import Collation

logger = logging.getLogger(__name__)
_PROBE_ROWS = 256


def fill_cache(
    collation: Collation, live: LiveTeacher, depths, needs: CacheRequirements
) -> CachedTeacher:
    """Run the teacher over every document that is missing from the cache, and open the cache.

    Each of n processes takes every n-th batch and writes its own shards. After an interruption it
    resumes behind the last complete shard. Shards on the disk are read and damaged ones written
    again.

    Raises:
        ValueError: the folder holds a cache of another kind; states that are not finite.
        OSError: too little disk space, or a disk error.
    """
    folder = Path(collation.args.teacher_cache)
    _write(collation, live, depths, needs, folder)
    collation.accelerator.wait_for_everyone()
    found = CachedTeacher(folder, collation.accelerator.device)
    if needs.missing(found):
        raise ValueError(
            f"teacher_cache {folder} does not show documents that another process wrote: it must "
            "be a folder that all processes see"
        )
    return found


def _write(collation, live, depths, needs, folder):
    args, accelerator = collation.args, collation.accelerator
    main = collation.is_main
    # The normed state at the last depth is the final one, which is stored anyway.
    depths = [d for d in depths if not (needs.normed and d == live.num_layers)]
    before = cache.depths_of(folder)
    # A cache with more depths keeps them when documents are added to it.
    depths = before if set(depths) <= set(before) else depths
    damaged = damaged_shards(collation)
    if damaged and main:
        logger.warning(
            "teacher cache %s: damaged shards are written again, %d in all (%s)",
            *(folder, len(damaged), next(iter(damaged.values()))),
        )
    stored = cache.stored_keys(folder, damaged)
    batches = _batches(needs, args.per_device_train_batch_size)
    num_rows = sum(document.num_targets for document in needs.missing(stored))

    def inputs_of(batch):
        return collation.to_device(collation.batch([row[:2] for row in batch]))

    def read(inputs):
        with accelerator.autocast():
            return live.read(depths, normalize=needs.normed, **inputs)

    # Width and dtype must be known before anything is written: read the shortest row. The error of
    # int8 is that of the first batch, also for a writer that resumes behind it.
    shortest = min((row for row in needs.rows if row[2]), key=_num_tokens)
    states, head = read(inputs_of(batches[0] if needs.stored == "int8" else [shortest]))
    notes = {"int8_error": _int8_error(states, head)} if needs.stored == "int8" and main else {}
    # Batches were formed from all documents. So a writer that resumes runs the teacher on the same
    # shapes, and stores the same bits, as one that was never interrupted.
    batches = [b for b in batches if any(d.key not in stored for row in b for d in row[2])]
    writer = CacheWriter(folder, _manifest(live, depths, needs, states, head), num_rows)
    _check_space(folder, writer.manifest, num_rows, head, tell=main)
    accelerator.wait_for_everyone()  # no process writes before all have checked
    with locked(folder) if main else nullcontext():
        if main:
            writer.begin(head, damaged, live.lens.translators)
        accelerator.wait_for_everyone()
        turns = math.ceil(len(batches) / accelerator.num_processes)
        bar = {"desc": "teacher cache", "unit": " tokens", "disable": collation.is_quiet}
        with tqdm(total=num_rows, **bar) as bar:
            for turn in range(turns):
                first = turn * accelerator.num_processes
                mine = first + accelerator.process_index
                # A sharded teacher runs on all processes at once, also on those without a batch.
                inputs = inputs_of(batches[min(mine, len(batches) - 1)])
                states, _ = read(inputs)
                if mine < len(batches):
                    _store(writer, states, inputs, stored)
                group = batches[first : first + accelerator.num_processes]
                bar.update(min(sum(map(_num_targets, group)), num_rows - bar.n))
        writer.flush()
        accelerator.wait_for_everyone()
        if main:
            writer.finish(**notes)
    for depth, error in notes.get("int8_error", {}).items():
        logger.info("int8 states at depth %s: KL %.2e nats per token", depth, error)


def damaged_shards(collation: Collation) -> dict[str, str]:
    """What is wrong with each damaged shard of the cache, by its name, on all processes.

    Every byte is read; each of n processes reads every n-th shard.
    """
    folder, accelerator = Path(collation.args.teacher_cache), collation.accelerator
    names = cache.shard_names(folder)
    mine = names[accelerator.process_index :: accelerator.num_processes]
    bar = {"desc": "checking the cache", "unit": " shards", "delay": 2, "leave": False}
    found = []
    for name in tqdm(mine, **bar, disable=collation.is_quiet):
        if (damage := cache.damage(folder, name)) is not None:
            found.append((name, damage))
    return dict(sorted(gather_object(found)))


def _num_tokens(row):
    return sum(document.num_tokens for document in row[2])


def _num_targets(batch):
    return sum(document.num_targets for _, _, documents in batch for document in documents)


def _batches(needs, size):
    """Batches that hold every document; long rows first, to run out of memory early."""
    batches, seen = [], set()
    datasets = {id(dataset): dataset for dataset, _, _ in needs.rows}
    for dataset in datasets.values():
        rows = [row for row in needs.rows if row[0] is dataset]
        rows.sort(key=lambda row: (-_num_tokens(row), row[1]))
        rows = [row for row in rows if _is_new(row, seen)]
        batches += [rows[at : at + size] for at in range(0, len(rows), size)]
    return batches


def _is_new(row, seen):
    """Whether a row has a document that no earlier row has."""
    keys = {document.key for document in row[2]}
    new = not keys <= seen
    seen |= keys
    return new


def _store(writer, states, inputs, stored):
    start = 0
    for document in cut(**inputs):
        stop = start + document.num_targets
        if document.key not in stored:
            stored.add(document.key)
            writer.add(document, states, slice(start, stop))
        start = stop


def _manifest(live, depths, needs, states, head):
    translators = live.lens.translators
    return Manifest(
        teacher=live.fingerprint,
        tokenizer=needs.tokenizer,
        num_layers=live.num_layers,
        depths=depths,
        normed=needs.normed,
        dtype=str(states.final.dtype).removeprefix("torch."),
        stored=needs.stored,
        width=states.final.shape[-1],
        precision=needs.precision,
        head={"scale": head.scale, "softcap": head.softcap},
        teacher_name=needs.teacher_name,
        teacher_files=needs.teacher_files,
        data=needs.data,
        library=version("distilllens"),
        readout=LOGIT if translators is None else translators_digest(translators),
    )


def _check_space(folder, manifest, num_rows, head, tell):
    tensors = [head.weight, *([] if head.bias is None else [head.bias])]
    size = num_rows * manifest.row_bytes + sum(t.numel() * t.element_size() for t in tensors)
    if size > (free := free_at(folder)):
        raise OSError(
            f"teacher_cache {folder} needs {in_bytes(size)}; its disk has {in_bytes(free)} free"
        )
    if tell:
        dtype = "int8" if manifest.stored == "int8" else manifest.dtype
        logger.info(
            "teacher cache %s: %d positions x %d states of %d numbers in %s, %s (%s free)",
            *(folder, num_rows, manifest.num_states, manifest.width, dtype),
            *(in_bytes(size), in_bytes(free)),
        )


@torch.no_grad()
def _int8_error(states, head):
    """KL(exact, int8) in nats per token, by depth, over the first rows."""
    errors = {}
    for depth, rows in {**states.states, "output": states.final}.items():
        rows = rows[:_PROBE_ROWS]
        if len(rows):
            rounded = dequantize(*quantize(rows), rows.dtype)
            _, nats = linear_divergence(rounded, head, rows, head, divergence="forward_kl")
            errors[str(depth)] = float(nats.mean())
    return errors
