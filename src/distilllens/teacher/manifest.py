"""What a teacher cache holds: its manifest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypedDict

import torch

from distilllens.files import write_json
from distilllens.stored import DamagedFile, check_stored, read_stored

MANIFEST = "manifest.json"
STORED = ("auto", "int8")
LOGIT = "logit"
# 2: checksums of documents, hashes in the mark. Caches of format 1 are read and added to.
FORMATS = (1, 2)
_DTYPES = ("float64", "float32", "bfloat16", "float16")
# The entry of the file with the hash of all others; adding documents may change some of them.
_SEAL = "sha256"
_NOT_COMPARED = ("teacher_name", "teacher_files", "data", "library", "format")


class HeadSettings(TypedDict):
    """What a ``Head`` has beside its tensors."""

    scale: float
    softcap: float | None


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
        readout: "logit", or ``translators_digest`` of what the states at ``depths`` passed through
            before the final norm.
        format: version of this layout; not compared.
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
    head: HeadSettings
    teacher_name: str
    teacher_files: dict | None
    data: dict
    library: str
    readout: str = LOGIT
    format: int = FORMATS[-1]

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

    @property
    def digest(self) -> str:
        """SHA-256 of the entries that are compared; adding documents does not change it."""
        entries = asdict(self).items()
        # Caches from before there was a read-out to choose keep their digests.
        plain = {"readout"} if self.readout == LOGIT else set()
        return _hash({n: value for n, value in entries if n not in plain.union(_NOT_COMPARED)})

    def difference(self, other: Manifest) -> str | None:
        """The first entry in which they differ, as words, or None."""
        for entry in fields(self):
            ours, theirs = getattr(self, entry.name), getattr(other, entry.name)
            if entry.name not in _NOT_COMPARED and ours != theirs:
                return f"{entry.name} was {ours!r} and is now {theirs!r}"
        return None


def write_manifest(folder: Path, manifest: Manifest):
    """Write the manifest, creating the folder if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = asdict(manifest)
    write_json(folder / MANIFEST, {**entries, _SEAL: _hash(entries)})


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder; None where there is none.

    Raises:
        ValueError: one that is damaged, was changed, is not ours, or has another version of the
            layout. What an earlier version wrote has no hash, and its names may have changed.
    """
    file = folder / MANIFEST
    if not file.exists():
        return None
    try:
        found = read_stored(file, TypedDict("Versioned", {"format": int}))["format"]
        if found in FORMATS:
            entries = read_stored(file, dict[str, Any])
            seal = entries.pop(_SEAL, None)
            manifest = check_stored(entries, Manifest, str(file))
            _check_values(file, manifest)
            if seal is not None and seal != _hash(entries):
                raise DamagedFile(f"{file} was changed: its entries do not have the hash in it")
            return manifest
    except DamagedFile as error:
        raise DamagedFile(
            f"{error}; no teacher cache can be read or written there: restore the file, or name "
            "another folder and write the cache again"
        ) from error
    raise ValueError(
        f"teacher cache {folder} has format {found}, this version reads "
        f"{' and '.join(map(str, FORMATS))}; write it anew"
    )


def _hash(entries):
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _check_values(file, manifest):
    """Refuse entries of the right type that no cache has."""
    layers, depths, head = manifest.num_layers, manifest.depths, manifest.head
    fine = {
        "num_layers": (layers >= 1, "at least 1"),
        "width": (manifest.width >= 1, "at least 1"),
        "dtype": (manifest.dtype in _DTYPES, f"one of {', '.join(_DTYPES)}"),
        "stored": (manifest.stored in STORED, f"one of {', '.join(STORED)}"),
        "depths": (
            len(set(depths)) == len(depths) and all(0 <= depth <= layers for depth in depths),
            f"different depths from 0 to {layers}",
        ),
        "head": (
            head["scale"] != 0 and (head["softcap"] is None or head["softcap"] > 0),
            "a scale that is not 0 and a softcap above 0 or null",
        ),
    }
    for name, (is_fine, right) in fine.items():
        if not is_fine:
            found = getattr(manifest, name)
            raise DamagedFile(f"{file}: the entry {name!r} is {found!r}; it must be {right}")
