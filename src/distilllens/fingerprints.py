"""Fingerprints: what distinguishes models and tokenizers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from distilllens.files import sha256

# A text that tokenizers split differently.
PROBE = "It's 3.14 o'clock:\n\tnaïve café, 東京 — <tag> {x: 1}\n\nDone.  Two  spaces!"
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt")
# Files that decide a model's output; not optimizer states or training arguments beside them.
_DECIDING = ("*.safetensors", "*model*.bin", "*config.json", "tokenizer*", "vocab*", "merges.txt")
_DECIDING += ("special_tokens_map.json", "added_tokens.json", "*.jinja", "*.py")
_DECIDING += ("spiece.model", "sentencepiece*.model", "chat_template.json", "*.index.json")
_SAMPLES, _SAMPLE_BYTES = 512, 2**12
# Entries of a configuration that do not change what the model computes.
_IRRELEVANT = ("_name_or_path", "architectures", "transformers_version", "use_cache")


def fingerprint(name: str, config) -> dict:
    """A fingerprint of a model by name: its configuration, the hub's commit, a folder's weights.

    The weights of an adapter's base model count where they are in a folder. From each weight file
    it takes the size and 512 evenly spaced samples of 4 KiB: a retrained
    model differs there, and a large file need not be read whole. A change between samples goes
    unnoticed. Python files in the folder are read whole.
    """
    weights = hashlib.sha256(str(getattr(config, "_commit_hash", None)).encode())
    folder = Path(name)
    folders = [folder, *_base_folder(folder)] if folder.is_dir() else []
    for file in (f for each in folders for p in _WEIGHTS for f in sorted(each.glob(p))):
        add_samples(weights, file, name=file.name)
    for file in sorted(folder.glob("*.py")) if folder.is_dir() else ():
        weights.update(file.read_bytes())
    return {
        "config": hashlib.sha256(_settings(config)).hexdigest()[:16],
        "weights": weights.hexdigest()[:16],
    }


def add_samples(digest, file: Path, name: str = ""):
    """Add the size of a file, its name and 512 evenly spaced samples of 4 KiB to a hash."""
    size = file.stat().st_size
    digest.update(f"{name} {size}".encode())
    last = max(size - _SAMPLE_BYTES, 0)
    with open(file, "rb") as stream:
        for at in sorted({last * sample // (_SAMPLES - 1) for sample in range(_SAMPLES)}):
            stream.seek(at)
            digest.update(stream.read(_SAMPLE_BYTES))


def _base_folder(adapter):
    """The folder of an adapter's base model, if that is a folder."""
    try:
        entries = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        base = Path(str(entries["base_model_name_or_path"]))
    except (OSError, ValueError, LookupError, TypeError):
        return []
    return [base] if base.is_dir() else []


def tensor_fingerprint(model, tensors: Iterable[tuple[str, object]] | None = None) -> str:
    """A fingerprint of a model object: configuration, adapters and tensors.

    From each tensor it takes name, shape, dtype and 256 numbers.

    Args:
        tensors: of ``model.state_dict()``, for a model that does not hold them itself.
    """
    # The dtype comes from the tensors; the configuration has that of the file, if any.
    digest = hashlib.blake2b(_settings(model.config, "dtype"), digest_size=8)
    adapters = getattr(model, "peft_config", None), getattr(model, "active_adapters", None)
    if adapters[0]:
        digest.update(repr(adapters).encode())
    for name, tensor in model.state_dict().items() if tensors is None else tensors:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        numbers = tensor.detach().flatten()
        numbers = numbers[:: max(1, len(numbers) // 256)].float().cpu()
        digest.update(numbers.numpy().tobytes())
    return digest.hexdigest()


def file_hashes(name: str, config) -> dict[str, str]:
    """The SHA-256 of each file that decides a model's output; for the hub, the commit."""
    folder = Path(name)
    if not folder.is_dir():
        return {"commit": str(getattr(config, "_commit_hash", None))}
    files = {file for pattern in _DECIDING for file in folder.glob(pattern)}
    return {file.name: sha256(file) for file in sorted(files)}


def _settings(config, *irrelevant):
    ignored = {*_IRRELEVANT, *irrelevant}
    entries = {key: value for key, value in config.to_dict().items() if key not in ignored}
    return json.dumps(entries, sort_keys=True, default=str).encode()


def tokenizer_fingerprint(tokenizer) -> str:
    """A fingerprint of a tokenizer: its vocabulary, and how it splits a text."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    split = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    return hashlib.blake2b(repr((vocabulary, split)).encode(), digest_size=8).hexdigest()


class OtherTokenizer(ValueError):
    """Two tokenizers number tokens differently, or split texts differently."""


@dataclass(frozen=True)
class Unshared:
    """Added tokens that two tokenizers do not share; false if there are none.

    Attributes:
        tokens: id -> (the student's token, the teacher's), None where one has none.
    """

    tokens: Mapping[int, tuple[str | None, str | None]]

    def __bool__(self) -> bool:
        return bool(self.tokens)

    def check(self, rows: Iterable[Sequence[int]], tokenizer, names: Iterable[str]):
        """Refuse texts with such a token, for the other tokenizer reads them differently.

        Args:
            rows: the token ids of each text, by ``tokenizer``, which is one of the two.
            names: of the texts, in messages.

        Raises:
            OtherTokenizer: with the first token and its text.
        """
        written = {name: i for i, pair in self.tokens.items() for name in pair if name is not None}
        for name, ids in zip(names, rows, strict=True) if self else ():
            found = next((i for i in ids if i in self.tokens), None)
            if found is None:
                text = tokenizer.decode(ids)
                found = next((i for token, i in written.items() if token in text), None)
            if found is not None:
                raise OtherTokenizer(
                    f"{_difference(found, *self.tokens[found])}, and {name} has it"
                )


def compare_tokenizers(student, teacher) -> Unshared:
    """The added tokens that two tokenizers do not share; every other difference is refused.

    Raises:
        OtherTokenizer: an id is another token for each, or they split a text differently.
    """
    ours, theirs = ({i: t for t, i in each.get_vocab().items()} for each in (student, teacher))
    different = {
        i: (ours.get(i), theirs.get(i))
        for i in sorted(ours.keys() | theirs.keys())
        if ours.get(i) != theirs.get(i)
    }
    added = [{None, *each.get_added_vocab()} for each in (student, teacher)]
    for i, pair in different.items():
        if not (pair[0] in added[0] and pair[1] in added[1]):
            raise OtherTokenizer(
                f"{_difference(i, *pair)} ({len(ours)} and {len(theirs)} tokens); "
                "distil between models that share one"
            )
    ours, theirs = (
        each(PROBE, add_special_tokens=False)["input_ids"] for each in (student, teacher)
    )
    if ours != theirs:
        at = next(
            (k for k, pair in enumerate(zip(ours, theirs, strict=False)) if len({*pair}) > 1), -1
        )
        raise OtherTokenizer(
            "student and teacher have different tokenizers: they share a vocabulary but split "
            f"{PROBE!r} differently, first at token {at}"
        )
    return Unshared(different)


def _difference(number, ours, theirs):
    ours, theirs = ("missing" if token is None else repr(token) for token in (ours, theirs))
    return (
        f"student and teacher have different tokenizers: token {number} is {ours} for the student "
        f"and {theirs} for the teacher"
    )
