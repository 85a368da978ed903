"""A teacher that ran once: its states at all targets, read from the disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from distilllens.files import is_part_of
from distilllens.head import Head
from distilllens.lens import LayerStates
from distilllens.teacher import store
from distilllens.teacher.documents import Document, cut

SHARD_BYTES = 256 * 2**20
MAX_SHARD_BYTES = 2**30  # what a process holds before it writes, and what a kill may lose
MAX_SHARDS = 512  # a reader maps each


class CachedTeacher:
    """The states of a teacher that is not loaded, found by the tokens of each document.

    Equals a :class:`LiveTeacher` on the documents that were written: bit for bit where that ran at
    the same shapes, and to rounding otherwise (products of other shapes add up in another order).
    States are memory-mapped; the head lies on ``device``. Several processes may read one cache.

    Args:
        folder: a complete cache.
        device: where states and head go.

    Raises:
        ValueError: no cache, an incomplete one, or files that cannot be read.
    """

    def __init__(self, folder: str | Path, device: torch.device | str = "cpu"):
        self.folder, self.device = Path(folder), device
        manifest, mark = status(self.folder)
        if mark is None:
            raise ValueError(
                f"teacher cache {folder} is not complete; run the command that was writing it "
                "(distilllens cache) again to resume"
            )
        self.manifest, self.num_layers = manifest, manifest.num_layers
        self._shards = store.Shards(self.folder, manifest, list(mark["shards"]))
        self._head = store.read_head(self.folder, manifest, device)
        self.num_documents, self.num_rows = len(self._shards), self._shards.num_rows

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

    @torch.no_grad()
    def read(self, depths, *, normalize, targets, **inputs) -> tuple[LayerStates, Head]:
        """States ``[N, Dt]`` at ``depths`` and after the last block, and the head for them.

        Raises:
            ValueError: depths that are not stored, or a document that is not.
        """
        depths = tuple(depths)
        self.check_depths(depths, normalize)
        rows = [self._rows(document) for document in cut(targets=targets, **inputs)]
        if rows:
            states = torch.cat(rows).to(self.device, non_blocking=True).unbind(1)
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
        rows = self._shards.rows(place)
        if len(rows) != document.num_targets:
            raise ValueError(
                f"teacher cache {self.folder} holds {len(rows)} rows for a document of "
                f"{document.num_targets} targets: a file is damaged; write the cache again"
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

    def __init__(self, folder: str | Path, manifest: store.Manifest, num_rows: int = 0):
        self.folder, self.manifest = Path(folder), manifest
        check_writable(self.folder)
        before = store.read_manifest(self.folder)
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
        self._writer = store.ShardWriter(self.folder, manifest, shard_bytes)

    def begin(self, head: Head):
        """Create the folder, and write the manifest and the head."""
        store.drop_remains(self.folder)
        store.write_manifest(self.folder, self.manifest)
        store.write_head(self.folder, head)

    def add(self, document: Document, states: LayerStates, rows: slice):
        """Add a document's rows of the states at the manifest's depths and after the last block."""
        kept = [states[depth][rows] for depth in self.manifest.depths]
        self._writer.add(document.key, torch.stack([*kept, states.final[rows]], 1))

    def flush(self):
        """Write the documents added so far."""
        self._writer.flush()

    def finish(self, **more):
        """Mark the cache as complete, and add notes to those that it had."""
        before = store.read_notes(self.folder)
        store.write_mark(self.folder, **before | more)


def status(folder: str | Path) -> tuple[store.Manifest, dict | None]:
    """The manifest of a cache, and its mark if it is complete.

    Raises:
        ValueError: no cache, or one that cannot be read.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"teacher_cache {folder} is a file; name a folder")
    manifest = store.read_manifest(folder)
    if manifest is None:
        what = "holds no teacher cache" if folder.is_dir() else "does not exist"
        raise ValueError(f"teacher_cache {folder} {what}; write one with distilllens cache")
    return manifest, store.read_mark(folder)


def check_writable(folder: str | Path):
    """Refuse a folder that holds anything but a cache.

    Raises:
        ValueError: a file, or a folder with files and no manifest.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"teacher_cache {folder} is a file; name a folder")
    if folder.is_dir() and not (folder / store.MANIFEST).exists():
        names = [p.name for p in folder.iterdir() if not is_part_of(p, *store.OURS)]
        others = [name for name in names if name != store.LOCK]
        if others:
            raise ValueError(
                f"teacher_cache {folder} is not empty and holds no teacher cache "
                f"({others[0]} is there); name another folder"
            )


def exists(folder: str | Path) -> bool:
    """Whether the folder holds a cache, complete or not."""
    return (Path(folder) / store.MANIFEST).is_file()


def depths_of(folder: str | Path) -> list[int]:
    """The depths that a cache stores; none if there is no cache."""
    manifest = store.read_manifest(Path(folder))
    return manifest.depths if manifest else []


def stored_keys(folder: str | Path) -> set[bytes]:
    """The keys of all documents in readable shards, whether or not the cache is complete."""
    return set(store.shard_keys(Path(folder))) if Path(folder).is_dir() else set()
