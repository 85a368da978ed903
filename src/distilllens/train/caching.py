"""A run and its teacher cache: what it needs, whether a cache fits, and writing what lacks."""

from __future__ import annotations

import logging
import math
import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import AutoConfig

from distilllens.linear_divergence import linear_divergence
from distilllens.teacher import CachedTeacher, CacheWriter, LiveTeacher, TeacherSource, cache
from distilllens.teacher.documents import Document, cut
from distilllens.teacher.store import Manifest, dequantize, locked, quantize
from distilllens.train.fingerprints import fingerprint, tensor_fingerprint, tokenizer_fingerprint

logger = logging.getLogger(__name__)
# Settings that documents are cut with: told when documents are missing.
_DATA_SETTINGS = (
    "max_length",
    "completion_only_loss",
    "assistant_only_loss",
    "eos_token",
    "packing_strategy",
)
# Arguments of from_pretrained: what finds a model (no token is ever written), what changes states.
_HUB = ("cache_dir", "local_files_only", "revision", "subfolder", "token", "trust_remote_code")
_MATTER = (
    "attn_implementation",
    "dtype",
    "quantization_config",
    "revision",
    "subfolder",
    "variant",
)
_PROBE_ROWS = 256


@dataclass(frozen=True, eq=False)
class Needs:
    """What a run asks of a cache.

    Attributes:
        rows: ``(dataset, index, its documents)`` for each row of training and evaluation data.
        normed, stored, tokenizer, precision, data: as in the manifest.
        teacher: a fingerprint of its tensors, of a model; None for a name.
        teacher_files: what its name tells; None for a model or no teacher.
        teacher_name: for people.
    """

    rows: list[tuple[Dataset, int, list[Document]]]
    normed: bool
    stored: str
    tokenizer: str
    precision: str
    data: dict
    teacher: str | None
    teacher_files: dict | None
    teacher_name: str | None

    @property
    def has_teacher(self) -> bool:
        """Whether a teacher is at hand that could write what lacks."""
        return self.teacher_name is not None

    def missing(self, stored) -> list[Document]:
        """Each document once whose key is not in ``stored``."""
        found = {d.key: d for _, _, documents in self.rows for d in documents}
        return [document for key, document in found.items() if key not in stored]


def needs_of(trainer, teacher) -> Needs:
    """What a trainer's data and settings ask of a cache; ``teacher`` is a name, a model or None.

    Raises:
        ValueError: data that cannot be gone through beforehand.
    """
    args, named = trainer.args, isinstance(teacher, str)
    return Needs(
        rows=[row for dataset in _datasets(trainer) for row in _rows(dataset, trainer)],
        normed=args.lens_norm,
        stored=args.teacher_cache_dtype,
        tokenizer=tokenizer_fingerprint(trainer.processing_class),
        precision=str(trainer.accelerator.mixed_precision),
        data={name: getattr(args, name, None) for name in _DATA_SETTINGS},
        teacher=None if named or teacher is None else tensor_fingerprint(teacher),
        teacher_files=_files_of(teacher, args) if named else None,
        teacher_name=teacher if named or teacher is None else _name_of(teacher),
    )


def open_cache(folder: str, needs: Needs, device) -> CachedTeacher | None:
    """The cache in a folder if it is complete, fits, and holds every document.

    Where it does not and the run has a teacher that could write what lacks: None.

    Raises:
        ValueError: the entry of the manifest that differs; without a teacher, what lacks.
    """
    if needs.has_teacher:
        cache.check_writable(folder)
        if not cache.exists(folder):
            return None
    manifest, mark = cache.status(folder)
    _check_manifest(folder, manifest, needs)
    if mark is None and needs.has_teacher:
        return None
    found = CachedTeacher(folder, device)
    missing = needs.missing(found)
    if not missing:
        return found
    if needs.has_teacher:
        return None
    raise ValueError(
        f"teacher_cache {folder} lacks {len(missing)} documents of this run, the first of them "
        f"{missing[0].num_tokens} tokens long: {_data_difference(manifest, needs)}; write them "
        "with distilllens cache, or set teacher_model_name_or_path"
    )


def write_cache(trainer, live: LiveTeacher, depths, needs: Needs) -> CachedTeacher:
    """Run the teacher over every document that the cache lacks, and open the cache.

    Each process takes every n-th batch and writes shards of its own; killed, it goes on from the
    last whole shard.

    Raises:
        ValueError: the folder holds a cache of another kind.
        OSError: the disk is too small, or fails.
    """
    folder = Path(trainer.args.teacher_cache)
    _write(trainer, live, depths, needs, folder)
    trainer.accelerator.wait_for_everyone()
    found = CachedTeacher(folder, trainer.accelerator.device)
    if needs.missing(found):
        raise ValueError(
            f"teacher_cache {folder} lacks documents that another process has written: it must be "
            "a folder that all processes see"
        )
    return found


def _write(trainer, live, depths, needs, folder):
    args, accelerator = trainer.args, trainer.accelerator
    main = trainer.is_world_process_zero()
    before = cache.depths_of(folder)
    # A cache of more pairs stays one when documents are added to it.
    depths = before if set(depths) <= set(before) else depths
    stored = cache.stored_keys(folder)
    batches = _batches(needs, stored, args.per_device_train_batch_size)
    num_rows = sum(document.num_targets for document in needs.missing(stored))

    def collated(batch):
        return trainer._prepare_inputs(_collated(trainer, batch))

    def read(inputs):
        with accelerator.autocast():
            return live.read(depths, normalize=needs.normed, **inputs)

    # The shortest row tells width and dtype before anything is written.
    shortest = min((row for row in needs.rows if row[2]), key=_num_tokens)
    states, head = read(collated([shortest]))
    writer = CacheWriter(folder, _manifest(live, depths, needs, states, head), num_rows)
    _check_space(folder, writer.manifest, num_rows, head, tell=main)
    accelerator.wait_for_everyone()  # nobody writes before everybody has looked
    with locked(folder) if main else nullcontext():
        if main:
            writer.begin(head)
        accelerator.wait_for_everyone()
        notes, turns = {}, math.ceil(len(batches) / accelerator.num_processes)
        quiet = args.disable_tqdm or not main
        with tqdm(total=num_rows, desc="teacher cache", unit=" tokens", disable=quiet) as bar:
            for turn in range(turns):
                first = turn * accelerator.num_processes
                mine = first + accelerator.process_index
                # A sharded teacher runs on all at once: a process that has no batch left helps.
                inputs = collated(batches[min(mine, len(batches) - 1)])
                states, _ = read(inputs)
                if needs.stored == "int8" and main and not notes:
                    notes = {"int8_error": _int8_error(states, head)}
                if mine < len(batches):
                    _store(writer, states, inputs, stored)
                group = batches[first : first + accelerator.num_processes]
                bar.update(min(sum(map(_num_targets, group)), num_rows - bar.n))
        writer.flush()
        accelerator.wait_for_everyone()
        if main:
            writer.finish(**notes)
    for depth, error in notes.get("int8_error", {}).items():
        logger.warning("int8 states at depth %s: KL %.2e nats per token", depth, error)


def of_main_process(value):
    """The main process's value, on all."""
    values = [value]
    broadcast_object_list(values)
    return values[0]


def name_of(teacher: TeacherSource) -> str:
    """What to call a teacher in print."""
    if isinstance(teacher, CachedTeacher):
        return teacher.manifest.teacher_name
    return _name_of(teacher.lens.model)


def _datasets(trainer):
    evaluation = trainer.eval_dataset
    evaluation = evaluation.values() if isinstance(evaluation, dict) else [evaluation]
    for dataset in (trainer.train_dataset, *evaluation):
        if dataset is not None and not isinstance(dataset, Dataset):
            raise ValueError(
                "teacher_cache needs data that can be gone through beforehand, and a "
                f"{type(dataset).__name__} cannot; load it whole, or let the teacher run"
            )
        if dataset is not None:
            yield dataset


def _rows(dataset, trainer):
    quiet = trainer.args.disable_tqdm or not trainer.is_world_process_zero()
    for index in tqdm(range(len(dataset)), "documents", delay=2, leave=False, disable=quiet):
        row = (dataset, index, [])
        row[2].extend(cut(**_collated(trainer, [row])))
        yield row


def _collated(trainer, rows):
    return trainer.data_collator([dataset[index] for dataset, index, _ in rows])


def _num_tokens(row):
    return sum(document.num_tokens for document in row[2])


def _num_targets(batch):
    return sum(document.num_targets for _, _, documents in batch for document in documents)


def _batches(needs, stored, size):
    """Batches with a document that is not stored, long rows first: what they need shows early.

    Rows are put together before what is stored is left out, so a writer that goes on runs the
    teacher at the shapes, and stores the bits, of one that was never stopped.
    """
    batches, seen = [], set()
    datasets = {id(dataset): dataset for dataset, _, _ in needs.rows}
    for dataset in datasets.values():
        rows = [row for row in needs.rows if row[0] is dataset]
        rows.sort(key=lambda row: (-_num_tokens(row), row[1]))
        rows = [row for row in rows if _is_new(row, seen)]
        batches += [rows[at : at + size] for at in range(0, len(rows), size)]
    return [b for b in batches if any(d.key not in stored for row in b for d in row[2])]


def _is_new(row, seen):
    """Whether a row has a document that none before it had."""
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
    return Manifest(
        teacher=live.fingerprint,
        tokenizer=needs.tokenizer,
        num_layers=live.num_layers,
        depths=[d for d in depths if not (needs.normed and d == live.num_layers)],
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
    )


def _check_manifest(folder, manifest, needs):
    for name in ("tokenizer", "precision", "stored", "teacher", "teacher_files"):
        was, now = getattr(manifest, name), getattr(needs, name)
        if was is not None and now is not None and was != now:
            raise ValueError(
                f"teacher_cache {folder}: {name} was {was!r} and is now {now!r}; name another "
                "folder, or go back to what it was written with"
            )
    if needs.teacher_files is not None and manifest.teacher_files is None:
        raise ValueError(
            f"teacher_cache {folder} was written by a model object, which cannot be compared with "
            f"{needs.teacher_name!r}; pass the object, or name no teacher to trust the cache"
        )


def _data_difference(manifest, needs):
    for name, now in needs.data.items():
        was = manifest.data.get(name)
        if was != now:
            return f"perhaps because {name} was {was!r} and is now {now!r}"
    return "other data, another prompt template, or evaluation data that were not there"


def _check_space(folder, manifest, num_rows, head, tell):
    tensors = [head.weight, *([] if head.bias is None else [head.bias])]
    size = num_rows * manifest.row_bytes + sum(t.numel() * t.element_size() for t in tensors)
    there = Path(folder).absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if size > free:
        raise OSError(f"teacher_cache {folder} needs {_say(size)}; its disk has {_say(free)} free")
    if tell:
        dtype = "int8" if manifest.stored == "int8" else manifest.dtype
        logger.warning(
            "teacher cache %s: %d positions x %d states of %d numbers in %s, %s (%s free)",
            *(folder, num_rows, manifest.num_states, manifest.width, dtype, _say(size), _say(free)),
        )


def _say(size):
    unit, name = (1e9, "GB") if size >= 1e9 else (1e6, "MB")
    return f"{size / unit:.3g} {name}"


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


def _files_of(name, args):
    given = dict(args.teacher_model_init_kwargs or {})
    hub = {key: given[key] for key in _HUB if key in given}
    config = AutoConfig.from_pretrained(
        name, **{"trust_remote_code": args.trust_remote_code, **hub}
    )
    matter = {key: str(given[key]) for key in _MATTER if key in given}
    return {**fingerprint(name, config), **matter}


def _name_of(model):
    return getattr(model.config, "name_or_path", "") or "a model object"
