"""Shards of a teacher cache: the states of documents, with checksums that reading verifies.

    shard-<hash of keys>.safetensors     keys [M, 16], starts [M + 1], checksums [M, 8],
                                         states [R, K, D] (int8: and scales [R, K])

Every byte is covered: the name is a hash of the keys, a checksum covers the rows of a document, and
a wrong bound between two documents gives two wrong checksums. Shards of format 1 have no checksums.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from xxhash import xxh3_64

from distilllens.files import part_of, settle
from distilllens.stored import DamagedFile
from distilllens.teacher.documents import KEY_BYTES
from distilllens.teacher.manifest import Manifest

_CHECKSUM_BYTES = 8
_CODES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}


class Place(NamedTuple):
    """Where a document is stored: the number of its shard, and its number there."""

    shard: int
    document: int


class Shard:
    """A shard, opened and checked: its index at once, the rows of a document when they are read.

    Raises:
        DamagedFile: a file that is no shard of this manifest's cache, or has changed.
    """

    def __init__(self, path: Path, manifest: Manifest):
        self.path = path
        self._dtype = getattr(torch, manifest.dtype)
        self._file = open_tensors(path)
        self._check_form(manifest)
        self.keys, self.starts = (self._file.get_tensor(name) for name in ("keys", "starts"))
        self._is_checked = "checksums" in self._file.keys()  # noqa: SIM118
        self._checksums = self._file.get_tensor("checksums") if self._is_checked else None
        if path.name != shard_name(self.keys):
            raise DamagedFile(f"{path}: the keys of its documents have changed")
        num_rows = self._file.get_slice("states").get_shape()[0]
        bounds = self.starts
        if bounds[0] != 0 or bounds[-1] != num_rows or (bounds[1:] < bounds[:-1]).any():
            raise DamagedFile(
                f"{path}: the bounds of its documents are not those of {num_rows} rows"
            )

    def _check_form(self, manifest):
        names = self._file.keys()
        slices = {name: self._file.get_slice(name) for name in names}
        found = {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}
        lengths = {name: shape[0] for name, (_, shape) in found.items() if shape}
        documents, rows = lengths.get("keys", 0), lengths.get("states", 0)
        states = [rows, manifest.num_states, manifest.width]
        expected = {"keys": ("U8", [documents, KEY_BYTES]), "starts": ("I64", [documents + 1])}
        if manifest.stored == "int8":
            expected |= {"states": ("I8", states), "scales": ("F32", states[:2])}
        else:
            expected["states"] = (_CODES[manifest.dtype], states)
        if "checksums" in found:
            expected["checksums"] = ("U8", [documents, _CHECKSUM_BYTES])
        if found != expected:
            raise DamagedFile(f"{self.path} holds {_listed(found)} instead of {_listed(expected)}")

    def __len__(self):
        return len(self.keys)

    @property
    def index_digest(self) -> str:
        """SHA-256 of keys, bounds and checksums: of everything, as checksums cover the rows."""
        digest = hashlib.sha256()
        for tensor in (self.keys, self.starts, self._checksums):
            digest.update(b"" if tensor is None else tensor.numpy().tobytes())
        return digest.hexdigest()

    def rows(self, document: int) -> Tensor:
        """The states ``[n, K, D]`` of a document, verified.

        Raises:
            DamagedFile: rows that are not those that were written; without checksums, rows that are
                not finite.
        """
        part = slice(*self.starts[document : document + 2].tolist())
        states, scales = self._file.get_slice("states")[part], None
        if states.dtype == torch.int8:
            scales = self._file.get_slice("scales")[part]
        if not self._is_checked:
            if (value := first_not_finite(states if scales is None else scales)) is not None:
                raise DamagedFile(f"{self.path}: document {document} holds the number {value}")
        elif _checksum(states, scales) != self._checksums[document].numpy().tobytes():
            raise DamagedFile(f"{self.path}: the states of document {document} have changed")
        return states if scales is None else dequantize(states, scales, self._dtype)


class Shards:
    """The memory-mapped rows of a complete cache, by key.

    Args:
        index_digests: name of a shard -> the ``index_digest`` that it must have, or None.

    Raises:
        DamagedFile: a shard that is damaged, as far as its index shows.
    """

    def __init__(self, folder: Path, manifest: Manifest, index_digests: Mapping[str, str | None]):
        self._shards = [Shard(folder / name, manifest) for name in index_digests]
        for shard, digest in zip(self._shards, index_digests.values(), strict=True):
            if digest not in (None, shard.index_digest):
                raise DamagedFile(f"{shard.path}: its index is not the one that was written")
        none = torch.empty(0, KEY_BYTES, dtype=torch.uint8)
        keys = torch.cat([none, *(shard.keys for shard in self._shards)])
        # Sorted by the first eight bytes: 64 bytes a document, where a dictionary takes 300.
        self._words, order = keys.view(torch.int64)[:, 0].sort()
        self._keys = keys[order]
        places = [torch.empty(0, 2, dtype=torch.int32)]
        for at, shard in enumerate(self._shards):
            documents = torch.arange(len(shard), dtype=torch.int32)
            places.append(torch.stack([torch.full_like(documents, at), documents], 1))
        self._places = torch.cat(places)[order]

    def __len__(self):
        return len(self._words)

    @property
    def num_rows(self) -> int:
        """Positions stored."""
        return sum(int(shard.starts[-1]) for shard in self._shards)

    def find(self, key: bytes) -> Place | None:
        """Where a document is, or None."""
        wanted = torch.frombuffer(bytearray(key), dtype=torch.uint8)
        word = wanted.view(torch.int64)[0]
        at = int(torch.searchsorted(self._words, word))
        while at < len(self._words) and self._words[at] == word:
            if torch.equal(self._keys[at], wanted):
                return Place(*self._places[at].tolist())
            at += 1
        return None

    def rows(self, place: Place) -> Tensor:
        """The states ``[n, K, D]`` at a place that ``find`` gave, verified.

        Raises:
            DamagedFile: rows that are not those that were written.
        """
        return self._shards[place.shard].rows(place.document)


class ShardWriter:
    """Collects documents and writes them out a shard at a time."""

    def __init__(self, folder: Path, manifest: Manifest, shard_bytes: int):
        self._folder, self._manifest, self._shard_bytes = folder, manifest, shard_bytes
        self._keys, self._rows, self._size = [], [], 0

    def add(self, key: bytes, rows: Tensor):
        """Take the rows ``[n, K, D]`` of a document."""
        self._keys.append(key)
        self._rows.append(rows.cpu())
        self._size += len(rows) * self._manifest.row_bytes
        if self._size >= self._shard_bytes:
            self.flush()

    def flush(self):
        """Write what was collected, if anything."""
        if not self._keys:
            return
        starts = torch.tensor([0, *(len(rows) for rows in self._rows)]).cumsum(0)
        keys = _as_table(self._keys)
        states, scales = torch.cat(self._rows), None
        if self._manifest.stored == "int8":
            states, scales = quantize(states)
        parts = [slice(*bounds) for bounds in pairwise(starts.tolist())]
        checksums = [_checksum(states[p], None if scales is None else scales[p]) for p in parts]
        tensors = {"keys": keys, "starts": starts, "checksums": _as_table(checksums)}
        tensors |= {"states": states} | ({} if scales is None else {"scales": scales})
        write_tensors(self._folder / shard_name(keys), tensors)
        self._keys, self._rows, self._size = [], [], 0


def shard_files(folder: Path) -> list[Path]:
    """The files of a folder that have a shard's name, sorted."""
    return sorted(folder.glob(f"shard-{'[0-9a-f]' * 2 * KEY_BYTES}.safetensors"))


def shard_name(keys: Tensor) -> str:
    """The name of the shard with these keys ``[M, 16]``.

    All keys count: two processes may both begin a shard with a document that each has.
    """
    name = blake2b(keys.numpy().tobytes(), digest_size=KEY_BYTES).hexdigest()
    return f"shard-{name}.safetensors"


def damage_of(path: Path, manifest: Manifest) -> str | None:
    """What is wrong with a shard, or None; reads all of it."""
    try:
        shard = Shard(path, manifest)
        for document in range(len(shard)):
            shard.rows(document)
    except DamagedFile as error:
        return str(error)
    return None


def open_tensors(path: Path):
    """A file of tensors, memory-mapped.

    Raises:
        DamagedFile: it cannot be read.
    """
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise DamagedFile(f"{path} is not readable: {error}") from error


def write_tensors(path: Path, tensors: dict[str, Tensor]):
    """Write a file that has its name only when it is whole and on the disk."""
    part = part_of(path)
    part.unlink(missing_ok=True)  # a link would be followed
    try:
        save_file(tensors, part)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    settle(part, path)


def first_not_finite(numbers: Tensor) -> float | None:
    """A number of a tensor that is NaN or infinite, or None if all are finite."""
    if numbers.numel() == 0:
        return None
    # Both propagate NaN, and need no copy of the tensor's size.
    extremes = torch.stack(torch.aminmax(numbers)).tolist()
    return next((value for value in extremes if value - value != 0), None)


def quantize(rows: Tensor) -> tuple[Tensor, Tensor]:
    """int8 ``[..., D]`` and a float32 scale ``[...]``: the largest number of a row becomes 127."""
    rows = rows.float()
    scales = rows.abs().amax(-1) / 127
    return (rows / scales.clamp_min(1e-38).unsqueeze(-1)).round_().to(torch.int8), scales


def dequantize(states: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows that ``quantize`` took, to half a step of its scale."""
    return (states.float() * scales.unsqueeze(-1)).to(dtype)


def _checksum(states, scales):
    """XXH3 of a document's rows: at the speed of memory, where a SHA-256 would slow reading."""
    digest = xxh3_64()
    for tensor in (states, scales):
        if tensor is not None:
            digest.update(tensor.view(torch.uint8).numpy())
    return digest.digest()


def _as_table(values):
    """uint8 ``[M, bytes]`` of M byte strings of equal length."""
    whole = torch.frombuffer(bytearray(b"".join(values)), dtype=torch.uint8)
    return whole.view(len(values), -1)


def _listed(form):
    return ", ".join(f"{name} {dtype}{shape}" for name, (dtype, shape) in sorted(form.items()))
