"""What tells one model or tokenizer from another, cheaply."""

from __future__ import annotations

import hashlib
from pathlib import Path

from distilllens.train.checks import PROBE

_WEIGHTS = ("*.safetensors", "*.bin", "*.pt")
_SAMPLE_BYTES = 2**20


def fingerprint(name: str, config) -> dict:
    """What tells one model from another: its configuration and, of a folder, its weights.

    Of each file of weights the size and the first and last MiB count: a retrained model differs
    there, and a large one need not be read whole.
    """
    settings = hashlib.sha256(config.to_json_string(use_diff=False).encode())
    weights = hashlib.sha256()
    folder = Path(name)
    files = [file for pattern in _WEIGHTS for file in sorted(folder.glob(pattern))]
    for file in files if folder.is_dir() else ():
        weights.update(f"{file.name} {file.stat().st_size}".encode())
        with open(file, "rb") as stream:
            weights.update(stream.read(_SAMPLE_BYTES))
            stream.seek(max(file.stat().st_size - _SAMPLE_BYTES, 0))
            weights.update(stream.read(_SAMPLE_BYTES))
    return {"config": settings.hexdigest()[:16], "weights": weights.hexdigest()[:16]}


def tensor_fingerprint(model) -> str:
    """What tells one model object from another: names, shapes, 256 numbers of each tensor."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        numbers = tensor.detach().flatten()
        numbers = numbers[:: max(1, len(numbers) // 256)].float().cpu()
        digest.update(numbers.numpy().tobytes())
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer) -> str:
    """What tells one tokenizer from another: its vocabulary, and how it splits a text."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    split = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    return hashlib.blake2b(repr((vocabulary, split)).encode(), digest_size=8).hexdigest()
