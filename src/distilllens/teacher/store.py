"""The folder of a teacher cache: a manifest, the head, shards of rows, a mark that all is there.

    manifest.json                what is stored, of which teacher
    head.safetensors             weight, bias
    translators.safetensors      of a tuned lens, through which the states were read
    shard-<hash>.safetensors     states of documents (``shards.py``)
    complete.json                written last: the hashes of all the others

A file appears under its name only when it is whole and on the disk, so a writer that is killed at
any byte loses at most the shard in progress.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

import torch

from distilllens.files import NO_LINK, is_part_of, sha256, write_json
from distilllens.head import Head
from distilllens.lens.translators import Translators, load_translators, translators_digest
from distilllens.stored import DamagedFile, read_stored
from distilllens.teacher.manifest import LOGIT, MANIFEST, Manifest
from distilllens.teacher.shards import (
    Shard,
    first_not_finite,
    open_tensors,
    shard_files,
    write_tensors,
)

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps two writers apart
    fcntl = None

MARK, HEAD, LOCK = "complete.json", "head.safetensors", "lock"
TRANSLATORS = "translators.safetensors"
# Names of files in a cache, beside the lock.
OURS = (MANIFEST, MARK, HEAD, TRANSLATORS, "shard-*.safetensors")
_FILES_OF_MARK = ("shards", "head", "manifest")


class ShardMark(TypedDict):
    """A shard in the mark: its size and its ``Shard.index_digest``."""

    bytes: int
    index_sha256: str


class HeadMark(TypedDict):
    """The file of the head in the mark."""

    bytes: int
    sha256: str


class _MaybeMarked(TypedDict, total=False):
    head: HeadMark
    manifest: str
    int8_error: dict[str, float]


class Mark(_MaybeMarked):
    """What a complete cache consists of. Version 0.1.0 noted the sizes of shards alone.

    Attributes:
        manifest: ``Manifest.digest``.
        int8_error: KL(exact, int8) in nats per token, by depth.
    """

    shards: dict[str, int | ShardMark]


def write_head(folder: Path, head: Head):
    """Write the head's tensors."""
    tensors = {"weight": head.weight} | ({} if head.bias is None else {"bias": head.bias})
    write_tensors(folder / HEAD, {n: t.detach().cpu().contiguous() for n, t in tensors.items()})


def read_head(folder: Path, manifest: Manifest, device) -> Head:
    """The head of a cache, on a device.

    Raises:
        DamagedFile: a file that is no head for the states of the manifest.
    """
    path = folder / HEAD
    with open_tensors(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, tensor in tensors.items():
        if (value := first_not_finite(tensor)) is not None:
            raise DamagedFile(f"{path}: {name} holds the number {value}")
    weight, bias = tensors.get("weight", torch.empty(0)), tensors.get("bias")
    fits = weight.ndim == 2 and weight.shape[1] == manifest.width
    if not fits or (bias is not None and bias.shape != weight.shape[:1]):
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        raise DamagedFile(f"{path} is no head for states of {manifest.width} numbers: {shapes}")
    bias = None if bias is None else bias.to(device)
    settings = manifest.head
    return Head(weight.to(device), bias, settings["scale"], settings["softcap"])


def read_translators(folder: Path, manifest: Manifest) -> Translators | None:
    """The translators that the states were read through; None for the logit lens.

    Raises:
        DamagedFile: a file that is missing, or not the one that the cache was written with.
    """
    file = folder / TRANSLATORS
    if manifest.readout == LOGIT:
        return None
    try:
        found, _ = load_translators(file)
    except FileNotFoundError as error:
        raise DamagedFile(f"{file} is missing; restore it, or write another cache") from error
    if translators_digest(found) != manifest.readout:
        raise DamagedFile(f"{file} was changed since the cache was written; restore it")
    return found


def write_mark(folder: Path, manifest: Manifest, **more):
    """Mark a cache as complete: from now on it can be read."""
    shards = {
        path.name: ShardMark(
            bytes=path.stat().st_size, index_sha256=Shard(path, manifest).index_digest
        )
        for path in shard_files(folder)
    }
    head = HeadMark(bytes=(folder / HEAD).stat().st_size, sha256=sha256(folder / HEAD))
    mark = Mark(shards=shards, head=head, manifest=manifest.digest, **more)
    write_json(folder / MARK, mark)


def read_mark(folder: Path, manifest: Manifest) -> Mark:
    """The mark of a cache whose head has the marked hash, and whose shards have the marked sizes.

    Raises:
        DamagedFile: there is no mark, or it does not describe the folder; with the first entry or
            file that is wrong.
    """
    file = folder / MARK
    mark: Mark = read_stored(file, Mark)
    if not mark["shards"]:
        raise DamagedFile(f"{file}: the entry 'shards' names no shard")
    missing = {"head", "manifest"} - mark.keys() if manifest.format > 1 else ()
    if missing:
        raise DamagedFile(f"{file}: the entry {min(missing)!r} is missing")
    _check_file(folder / HEAD, mark.get("head", {}).get("bytes"))
    shards = {path.name for path in shard_files(folder)}
    for name, entry in mark["shards"].items():
        if name not in shards:
            raise DamagedFile(f"{file}: the folder has no shard {name!r}")
        _check_file(folder / name, entry if isinstance(entry, int) else entry["bytes"])
    if "head" in mark and sha256(folder / HEAD) != mark["head"]["sha256"]:
        raise DamagedFile(f"the contents of {folder / HEAD} have changed")
    return mark


def _check_file(path, size):
    if not path.is_file():
        raise DamagedFile(f"{path} is missing")
    if size not in (None, path.stat().st_size):
        raise DamagedFile(f"{path} has {path.stat().st_size} bytes instead of {size}")


def index_digests(mark: Mark) -> dict[str, str | None]:
    """Name of each shard -> its ``index_digest``; None where version 0.1.0 marked it."""
    return {
        name: None if isinstance(entry, int) else entry["index_sha256"]
        for name, entry in mark["shards"].items()
    }


def check_manifest(folder: Path, manifest: Manifest):
    """Refuse a manifest that is not the one in the mark.

    Raises:
        DamagedFile: with what to do.
    """
    if _last_mark(folder).get("manifest", manifest.digest) != manifest.digest:
        raise DamagedFile(
            f"{folder / MANIFEST} does not have the hash in {MARK}: one of the two is damaged; "
            "restore it, or name another folder and write the cache again"
        )


def read_notes(folder: Path) -> dict:
    """What the last mark said beside the files, whether or not it still holds."""
    mark = _last_mark(folder)
    return {name: value for name, value in mark.items() if name not in _FILES_OF_MARK}


def _last_mark(folder):
    """The mark, whether or not it still holds; empty where it cannot be read."""
    try:
        return read_stored(folder / MARK, Mark)
    except DamagedFile:
        return {}


@contextmanager
def locked(folder: Path):
    """Nobody else writes the cache meanwhile; the system forgets the lock of a killed process.

    Raises:
        ValueError: somebody does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | NO_LINK, 0o666)
    except OSError as error:
        raise ValueError(
            f"teacher cache {folder}: cannot open its file {LOCK!r} ({error.strerror}); remove it "
            "if it is not a plain file"
        ) from error
    with open(lock, "r+", encoding="utf-8") as file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"teacher cache {folder} is being written by another run; wait for it"
            ) from error
        yield


def drop_remains(folder: Path, damaged: Iterable[str] = ()):
    """Remove what a killed writer left behind, and damaged shards."""
    for path in folder.iterdir():
        if is_part_of(path, *OURS) and not path.is_dir():
            path.unlink(missing_ok=True)
    for name in damaged:
        (folder / name).unlink(missing_ok=True)
