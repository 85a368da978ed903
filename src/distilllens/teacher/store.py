"""A teacher cache on the disk: a manifest, the head, shards of rows, and a mark that all is there.

    manifest.json                what is stored, of which teacher
    head.safetensors             weight, bias
    shard-<hash>.safetensors     a shard: keys [M, 16], starts [M + 1], states [R, K, D]
                                 (int8: and scales [R, K])
    complete.json                written last: the shards and their sizes

A file appears under its name only when it is whole and on the disk, so a writer that is killed at
any byte loses at most the shard in progress.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from distilllens.files import NO_LINK, is_part_of, part_of, settle, write_json
from distilllens.head import Head
from distilllens.teacher.documents import KEY_BYTES

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps two writers apart
    fcntl = None

MANIFEST, MARK, HEAD, LOCK = "manifest.json", "complete.json", "head.safetensors", "lock"
STORED = ("auto", "int8")
# Names of files in a cache, beside the lock.
OURS = (MANIFEST, MARK, HEAD, "shard-*.safetensors")
_FORMAT = 1
_NOT_COMPARED = ("teacher_name", "teacher_files", "data", "library")


@dataclass(frozen=True)
class Manifest:
    """What a cache holds; two caches with equal entries are interchangeable.

    Attributes:
        teacher: a fingerprint of its tensors.
        tokenizer: a fingerprint.
        num_layers: of the teacher.
        depths: whose states are stored, beside the last one.
        normed: whether the states at ``depths`` have passed the final norm (the last always has).
        dtype: of the states, as the teacher gives them.
        stored: "auto" (as they are) or "int8" (with a float32 scale for each row).
        width: numbers in a state.
        precision: the autocast that the teacher ran under: "no", "bf16" or "fp16".
        head: ``scale`` and ``softcap``.
        teacher_name: for people; not compared.
        teacher_files: what can be known of a teacher by its name, without loading it; None for a
            model that had none.
        data: settings that the documents were cut with; told in messages, not compared.
        library: version of distilllens; not compared.
        format: version of this layout.
    """

    teacher: str
    tokenizer: str
    num_layers: int
    depths: list[int]
    normed: bool
    dtype: str
    stored: str
    width: int
    precision: str
    head: dict
    teacher_name: str
    teacher_files: dict | None
    data: dict
    library: str
    format: int = _FORMAT

    @property
    def num_states(self) -> int:
        """K: states stored for a position."""
        return len(self.depths) + 1

    @property
    def row_bytes(self) -> int:
        """Bytes on the disk for one position."""
        if self.stored == "int8":
            return self.num_states * (self.width + 4)
        return self.num_states * self.width * getattr(torch, self.dtype).itemsize

    def difference(self, other: Manifest) -> str | None:
        """The first entry in which they differ, as words, or None."""
        for entry in fields(self):
            ours, theirs = getattr(self, entry.name), getattr(other, entry.name)
            if entry.name not in _NOT_COMPARED and ours != theirs:
                return f"{entry.name} was {ours!r} and is now {theirs!r}"
        return None


def write_manifest(folder: Path, manifest: Manifest):
    """Write the manifest, making the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / MANIFEST, asdict(manifest))


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder; None where there is none.

    Raises:
        ValueError: one that cannot be read, or of another version of the layout.
    """
    file = folder / MANIFEST
    if not file.exists():
        return None
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        found = entries["format"]
        if found == _FORMAT:
            return Manifest(**entries)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"teacher cache {folder}: {MANIFEST} is not readable: {error}") from error
    raise ValueError(
        f"teacher cache {folder} has format {found!r}, this version reads {_FORMAT}; write it anew"
    )


def write_head(folder: Path, head: Head):
    """Write the head's tensors."""
    tensors = {"weight": head.weight} | ({} if head.bias is None else {"bias": head.bias})
    _write_tensors(folder / HEAD, {n: t.detach().cpu().contiguous() for n, t in tensors.items()})


def read_head(folder: Path, manifest: Manifest, device) -> Head:
    """The head of a cache, on a device."""
    with _opened(folder / HEAD) as file:
        tensors = {name: file.get_tensor(name).to(device) for name in file.keys()}  # noqa: SIM118
    return Head(tensors["weight"], tensors.get("bias"), **manifest.head)


def write_mark(folder: Path, **more):
    """Mark a cache as complete: from now on it can be read."""
    sizes = {path.name: path.stat().st_size for path in _shard_files(folder)}
    write_json(folder / MARK, {"shards": sizes, **more})


def read_mark(folder: Path) -> dict | None:
    """What ``write_mark`` wrote; None where a cache is not complete, or files of it are missing."""
    try:
        mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
        sizes = mark["shards"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    for name, size in sizes.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != size:
            return None
    return mark if (folder / HEAD).is_file() else None


def read_notes(folder: Path) -> dict:
    """What the last mark said beside the shards, whether or not it still holds."""
    try:
        mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
        return {name: value for name, value in mark.items() if name != "shards"}
    except (OSError, ValueError, AttributeError):
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


def drop_remains(folder: Path):
    """Remove what a killed writer, or a failing disk, left behind: parts, unreadable shards."""
    for path in folder.iterdir():
        if is_part_of(path, *OURS):
            path.unlink(missing_ok=True)
    for path in _shard_files(folder):
        if _keys_of(path) is None:
            path.unlink()


def shard_keys(folder: Path) -> Iterator[bytes]:
    """The keys of every readable shard, complete cache or not."""
    for path in _shard_files(folder):
        yield from _keys_of(path) or ()


def _keys_of(path):
    try:
        with _opened(path) as file:
            return _split_keys(file.get_tensor("keys"))
    except (ValueError, SafetensorError):
        return None


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
        # Named by all keys: two processes may both begin a shard with a document that each has.
        keys = b"".join(self._keys)
        name = blake2b(keys, digest_size=KEY_BYTES).hexdigest()
        keys = torch.frombuffer(bytearray(keys), dtype=torch.uint8)
        tensors = {"keys": keys.view(-1, KEY_BYTES), "starts": starts}
        rows = torch.cat(self._rows)
        if self._manifest.stored == "int8":
            tensors["states"], tensors["scales"] = quantize(rows)
        else:
            tensors["states"] = rows
        _write_tensors(self._folder / f"shard-{name}.safetensors", tensors)
        self._keys, self._rows, self._size = [], [], 0


class Shards:
    """The memory-mapped rows of a complete cache, by key."""

    def __init__(self, folder: Path, manifest: Manifest, names: list[str]):
        self._dtype = getattr(torch, manifest.dtype)
        self._files = [_opened(folder / name) for name in names]
        keys, shards, starts, stops = [], [], [], []
        for at, file in enumerate(self._files):
            bounds = file.get_tensor("starts")
            keys.append(file.get_tensor("keys"))
            shards.append(torch.full((len(bounds) - 1,), at))
            starts.append(bounds[:-1])
            stops.append(bounds[1:])
        self._keys = torch.cat(keys) if keys else torch.empty(0, KEY_BYTES, dtype=torch.uint8)
        # Sorted by the first eight bytes: 48 bytes a document, where a dictionary takes 300.
        words = self._keys.view(torch.int64)[:, 0] if keys else torch.empty(0, dtype=torch.int64)
        self._words, order = words.sort()
        self._keys = self._keys[order]
        columns = (torch.cat(column)[order] for column in (shards, starts, stops) if column)
        self._places = torch.stack([*columns], 1) if keys else None

    def __len__(self):
        return len(self._words)

    @property
    def num_rows(self) -> int:
        """Positions stored."""
        return 0 if self._places is None else int((self._places[:, 2] - self._places[:, 1]).sum())

    def find(self, key: bytes) -> tuple[int, int, int] | None:
        """``(shard, first row, end)`` of a document, or None."""
        wanted = torch.frombuffer(bytearray(key), dtype=torch.uint8)
        word = wanted.view(torch.int64)[0]
        at = int(torch.searchsorted(self._words, word))
        while at < len(self._words) and self._words[at] == word:
            if torch.equal(self._keys[at], wanted):
                return tuple(self._places[at].tolist())
            at += 1
        return None

    def rows(self, place: tuple[int, int, int]) -> Tensor:
        """The states ``[n, K, D]`` at a place that ``find`` gave."""
        shard, start, stop = place
        states = self._files[shard].get_slice("states")[start:stop]
        if states.dtype == torch.int8:
            scales = self._files[shard].get_slice("scales")[start:stop]
            return dequantize(states, scales, self._dtype)
        return states


def quantize(rows: Tensor) -> tuple[Tensor, Tensor]:
    """int8 ``[..., D]`` and a float32 scale ``[...]``: the largest number of a row becomes 127."""
    rows = rows.float()
    scales = rows.abs().amax(-1) / 127
    return (rows / scales.clamp_min(1e-38).unsqueeze(-1)).round_().to(torch.int8), scales


def dequantize(states: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows that ``quantize`` took, to half a step of its scale."""
    return (states.float() * scales.unsqueeze(-1)).to(dtype)


def _shard_files(folder):
    return sorted(folder.glob("shard-*.safetensors"))


def _split_keys(keys):
    whole = keys.numpy().tobytes()
    return [whole[at : at + KEY_BYTES] for at in range(0, len(whole), KEY_BYTES)]


def _opened(path):
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"teacher cache file {path} is not readable: {error}") from error


def _write_tensors(path, tensors):
    part = part_of(path)
    try:
        save_file(tensors, part)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    settle(part, path)
