"""A teacher that ran once: its states at all targets, read from the disk."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from distilllens.files import is_part_of
from distilllens.head import Head
from distilllens.lens import LayerStates
from distilllens.lens.translators import Translators, save_translators
from distilllens.stored import DamagedFile
from distilllens.teacher import store
from distilllens.teacher.documents import Document, cut
from distilllens.teacher.manifest import MANIFEST, Manifest, read_manifest, write_manifest
from distilllens.teacher.shards import (
    Shard,
    Shards,
    ShardWriter,
    damage_of,
    first_not_finite,
    shard_files,
)

SHARD_BYTES = 256 * 2**20
MAX_SHARD_BYTES = 2**30  # what a process holds before it writes, and what a kill may lose
MAX_SHARDS = 512  # a reader maps each
_NUM_THREADS = 4  # that read documents; copies and checksums run at the speed of memory
_REMEDY = (
    "run distilllens cache with the same arguments: it writes again what is damaged or missing"
)


class CachedTeacher:
    """The states of a teacher that is not loaded, found by the tokens of each document.

    Equals a :class:`LiveTeacher` on the documents that were written: bit for bit where that ran at
    the same shapes, and to rounding otherwise (products of other shapes add up in another order).
    States are memory-mapped; the head lies on ``device``. Several processes may read one cache.
    Manifest, head and the indexes of the shards are verified here, the rows of a document whenever
    they are read.

    Args:
        folder: a complete cache.
        device: where states and head go.

    Raises:
        ValueError: no cache.
        DamagedFile: an incomplete or damaged one; with the first file that is wrong.
    """

    def __init__(self, folder: str | Path, device: torch.device | str = "cpu"):
        self.folder, self.device = Path(folder), device
        self.manifest = manifest = manifest_of(self.folder)
        self.num_layers = manifest.num_layers
        try:
            mark = store.read_mark(self.folder, manifest)
            self._shards = Shards(self.folder, manifest, store.index_digests(mark))
            self._head = store.read_head(self.folder, manifest, device)
        except DamagedFile as error:
            raise DamagedFile(
                f"teacher cache {folder} is not complete: {error}; {_REMEDY}"
            ) from error
        self.num_documents, self.num_rows = len(self._shards), self._shards.num_rows
        self._threads = None

    @property
    def source(self) -> CachedTeacher:
        """Itself."""
        return self

    def __contains__(self, key: bytes) -> bool:
        return self._shards.find(key) is not None

    def check_depths(self, depths, normalize: bool):
        """Refuse depths that are not stored, and raw states for normed ones or the reverse.

        Raises:
            ValueError: with what is stored and what is needed.
        """
        stored, normed = self.manifest.depths, self.manifest.normed
        missing = sorted(set(depths) - set(self._slots(normalize)))
        if missing:
            raise ValueError(
                f"teacher cache {self.folder}: depths is {stored}, and depths {missing} are "
                "needed; write another with distilllens cache"
            )
        if depths and normalize != normed:
            kinds = {True: "normed (lens_norm: true)", False: "raw (lens_norm: false)"}
            raise ValueError(
                f"teacher cache {self.folder}: its states are {kinds[normed]}, and "
                f"{kinds[normalize]} ones are needed; write another with distilllens cache"
            )

    def read(self, depths, *, normalize, targets, **inputs) -> tuple[LayerStates, Head]:
        """States ``[N, Dt]`` at ``depths`` and after the last block, and the head for them.

        Raises:
            ValueError: depths that are not stored, or a document that is not.
            DamagedFile: a document whose rows are not those that were written.
        """
        return self.begin(depths, normalize=normalize, targets=targets, **inputs)()

    def begin(self, depths, *, normalize, targets, **inputs):
        """What ``read`` returns, from a call that ends it; rows are read by threads meanwhile."""
        depths = tuple(depths)
        self.check_depths(depths, normalize)
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="teacher-cache")
        rows = [self._threads.submit(self._rows, each) for each in cut(targets=targets, **inputs)]
        return partial(self._states, rows, depths, normalize)

    def _states(self, rows, depths, normalize):
        rows = [future.result() for future in rows]
        if rows:
            states = self._on_device(rows).unbind(1)
        else:
            empty = self._head.weight.new_empty(0, self.manifest.width)
            states = [empty.to(getattr(torch, self.manifest.dtype))] * self.manifest.num_states
        slots = self._slots(normalize)
        return (
            LayerStates(
                {depth: states[slots[depth]].contiguous() for depth in depths},
                normed=normalize,
                final=states[-1].contiguous(),
                gathered=True,
            ),
            self._head,
        )

    def _on_device(self, rows):
        """The rows ``[N, K, Dt]`` of all documents; to a GPU through memory it can copy beside."""
        if torch.device(self.device).type != "cuda":
            return torch.cat(rows).to(self.device)
        shape = (sum(map(len, rows)), *rows[0].shape[1:])
        pinned = torch.empty(shape, dtype=rows[0].dtype, pin_memory=True)
        return torch.cat(rows, out=pinned).to(self.device, non_blocking=True)

    def _slots(self, normalize):
        """depth -> index among the stored states; the normed last depth is the final state."""
        slots = {depth: slot for slot, depth in enumerate(self.manifest.depths)}
        return slots | ({self.num_layers: -1} if normalize else {})

    def _rows(self, document):
        place = self._shards.find(document.key)
        if place is None:
            raise ValueError(
                f"teacher cache {self.folder} has no document of these {document.num_tokens} "
                f"tokens and {document.num_targets} targets; add it with distilllens cache for the "
                "same data, template, max_length and packing"
            )
        try:
            rows = self._shards.rows(place)
        except DamagedFile as error:
            raise DamagedFile(f"{error} ({document.num_tokens} tokens); {_REMEDY}") from error
        if len(rows) != document.num_targets:
            raise DamagedFile(
                f"teacher cache {self.folder} holds {len(rows)} rows for a document of "
                f"{document.num_targets} targets; write the cache again in another folder"
            )
        return rows


class CacheWriter:
    """Adds documents to a cache, which may be new, incomplete or complete.

    One of several processes calls ``begin`` and, after all have flushed, ``finish``; each process
    adds its own documents. Complete shards on the disk survive any interruption.

    Args:
        folder: of the cache.
        manifest: what is written.
        num_rows: positions to be added, which decides the size of a shard.

    Raises:
        ValueError: the folder holds something else, or another cache: the first entry that differs.
    """

    def __init__(self, folder: str | Path, manifest: Manifest, num_rows: int = 0):
        self.folder, self.manifest = Path(folder), manifest
        check_writable(self.folder)
        before = _manifest(self.folder)
        difference = before and before.difference(manifest)
        if difference:
            raise ValueError(
                f"{folder} holds a teacher cache of another kind: {difference}; name another folder"
            )
        if before and manifest.teacher_files is None:
            # Written by name before and by an equal model object now: keep the name.
            names = {"teacher_name": before.teacher_name, "teacher_files": before.teacher_files}
            self.manifest = manifest = replace(manifest, **names)
        shard_bytes = max(SHARD_BYTES, num_rows * manifest.row_bytes // MAX_SHARDS)
        shard_bytes = min(shard_bytes, MAX_SHARD_BYTES)
        self._writer = ShardWriter(self.folder, manifest, shard_bytes)

    def begin(
        self,
        head: Head,
        damaged: Iterable[str] = (),
        translators: Translators | None = None,
    ):
        """Create the folder, remove damaged shards, write the manifest, head and translators."""
        store.drop_remains(self.folder, damaged)
        if translators is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_translators(self.folder / store.TRANSLATORS, translators)
        write_manifest(self.folder, self.manifest)
        store.write_head(self.folder, head)

    def add(self, document: Document, states: LayerStates, rows: slice):
        """Add a document's rows of the states at the manifest's depths and after the last block.

        Raises:
            ValueError: states that are not finite; they are not written.
        """
        kept = [states[depth][rows] for depth in self.manifest.depths]
        kept = torch.stack([*kept, states.final[rows]], 1)
        if first_not_finite(kept) is not None:
            self._refuse(document, kept)
        self._writer.add(document.key, kept)

    def _refuse(self, document, kept):
        names = [*(f"depth {depth}" for depth in self.manifest.depths), "the last depth"]
        found = zip(names, map(first_not_finite, kept.unbind(1)), strict=True)
        name, value = next((name, value) for name, value in found if value is not None)
        raise ValueError(
            f"teacher cache {self.folder}: the teacher's states at {name} hold the number {value} "
            f"in a document of {document.num_tokens} tokens, and are not written; the dtype of "
            f"the teacher ({self.manifest.dtype}) may be too narrow, or its weights damaged"
        )

    def flush(self):
        """Write the documents added so far."""
        self._writer.flush()

    def finish(self, **more):
        """Mark the cache as complete, and add notes to those that it had."""
        before = store.read_notes(self.folder)
        store.write_mark(self.folder, self.manifest, **before | more)


def manifest_of(folder: str | Path) -> Manifest:
    """The manifest of a cache, complete or not.

    Raises:
        ValueError: no cache, or a manifest that cannot be read.
    """
    folder = Path(folder)
    _check_folder(folder)
    manifest = _manifest(folder)
    if manifest is None:
        what = "holds no teacher cache" if folder.is_dir() else "does not exist"
        raise ValueError(f"teacher_cache {folder} {what}; write one with distilllens cache")
    return manifest


def translators_of(folder: str | Path) -> Translators | None:
    """The translators that the states of a cache were read through; None for the logit lens.

    Raises:
        ValueError: no cache.
        DamagedFile: a file that is missing, or not the one that the cache was written with.
    """
    return store.read_translators(Path(folder), manifest_of(folder))


def check_writable(folder: str | Path):
    """Refuse a folder that holds anything but a cache.

    Raises:
        ValueError: a file, or a folder with files and no manifest, or with folders for files.
    """
    folder = Path(folder)
    _check_folder(folder)
    if not folder.is_dir():
        return
    if not (folder / MANIFEST).exists():
        names = [p.name for p in folder.iterdir() if not is_part_of(p, *store.OURS)]
        others = [name for name in names if name != store.LOCK]
        if others:
            raise ValueError(
                f"teacher_cache {folder} is not empty and holds no teacher cache "
                f"({others[0]} is there); name another folder"
            )
    for path in (folder / MANIFEST, folder / store.HEAD, folder / store.MARK, *shard_files(folder)):
        if path.is_dir():
            raise ValueError(
                f"teacher_cache {folder}: {path.name} is a folder and must be a file; remove it"
            )


def _manifest(folder):
    manifest = read_manifest(folder)
    if manifest is not None:
        store.check_manifest(folder, manifest)
    return manifest


def _check_folder(folder):
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"teacher_cache {folder} is a file; name a folder")


def exists(folder: str | Path) -> bool:
    """Whether the folder holds a cache, complete or not."""
    return (Path(folder) / MANIFEST).is_file()


def depths_of(folder: str | Path) -> list[int]:
    """The depths that a cache stores; none if there is no cache."""
    manifest = _manifest(Path(folder))
    return manifest.depths if manifest else []


def shard_names(folder: str | Path) -> list[str]:
    """The names of a cache's shards, complete cache or not."""
    return [path.name for path in shard_files(Path(folder))]


def damage(folder: str | Path, shard: str) -> str | None:
    """What is wrong with a shard of a cache, or None; reads all of it."""
    return damage_of(Path(folder) / shard, manifest_of(folder))


def stored_keys(folder: str | Path, damaged: Iterable[str] = ()) -> set[bytes]:
    """The keys of all documents but those of damaged shards, whether or not it is complete."""
    names = [name for name in shard_names(folder) if name not in damaged]
    if not names:
        return set()
    manifest = manifest_of(folder)
    shards = (Shard(Path(folder) / name, manifest) for name in names)
    return {key.tobytes() for shard in shards for key in shard.keys.numpy()}
