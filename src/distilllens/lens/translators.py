"""The tuned lens: an affine map of the stream at each depth, before the model's own read-out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from distilllens.files import write_atomically
from distilllens.stored import DamagedFile


class Translators(nn.Module):
    """Affine maps ``h -> h + h A^T + b`` of a model's stream, one a depth; new ones change nothing.

    A lens that reads through them (``LogitLens.tuned``) shows what the stream says of the output in
    the coordinates of the last block, which final norm and head were trained on.

    Args:
        depths: their depths, each once.
        width: D, of the stream.

    Attributes:
        weight: ``[K, D, D]``, A of the K depths in rising order.
        bias: ``[K, D]``, b.

    Raises:
        ValueError: no depth, one that is not a whole number >= 0, or a depth given twice.

    Source: the tuned lens, arXiv 2303.08112.
    """

    def __init__(self, depths: Iterable[int], width: int):
        super().__init__()
        self.depths = tuple(sorted(depths))
        if not self.depths or len(set(self.depths)) < len(self.depths) or self.depths[0] < 0:
            raise ValueError(
                f"translators need different depths from 0, at least one; got {list(self.depths)}"
            )
        # In its files, which name the depths.
        self.register_buffer("numbers", torch.tensor(self.depths))
        self.weight = nn.Parameter(torch.zeros(len(self.depths), width, width))
        self.bias = nn.Parameter(torch.zeros(len(self.depths), width))
        self.register_load_state_dict_post_hook(_check_loaded)

    @property
    def width(self) -> int:
        """D, of the stream."""
        return self.bias.shape[1]

    def forward(self, depth: int, hidden: Tensor) -> Tensor:
        """The stream ``[..., D]`` at a depth, translated; as it is at depths without a map.

        Computed in the dtype of the maps (under autocast in autocast's), returned in that of
        ``hidden``.
        """
        if depth not in self.depths:
            return hidden
        at = self.depths.index(depth)
        change = F.linear(hidden.to(self.weight.dtype), self.weight[at], self.bias[at])
        return hidden + change.to(hidden.dtype)

    def extra_repr(self) -> str:
        """The depths and the width."""
        return f"depths={list(self.depths)}, width={self.width}"


def _check_loaded(translators, _):
    """Refuse the maps of other depths, which may be as many."""
    found = translators.numbers.tolist()
    if found != list(translators.depths):
        raise ValueError(f"they are of the depths {found}, not of {list(translators.depths)}")


def save_translators(file: str | Path, translators: Translators, **about: str):
    """Write translators to a ``.safetensors`` file, which appears whole or not at all.

    Args:
        about: noted in the file, such as the model that they belong to.
    """
    tensors = {name: t.cpu().contiguous() for name, t in translators.state_dict().items()}
    write_atomically(Path(file), save(tensors, about))


def load_translators(file: str | Path) -> tuple[Translators, dict[str, str]]:
    """The translators of a file, on the CPU, and what was noted with them.

    Raises:
        FileNotFoundError: no file.
        DamagedFile: a file that cannot be read or holds other things, or numbers that are not
            finite.
    """
    path = Path(file)
    try:
        with safe_open(path, framework="pt") as opened:
            about = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        found = Translators(tensors["numbers"].tolist(), tensors["bias"].shape[-1])
        found.load_state_dict(tensors)
    except FileNotFoundError:
        raise
    except (SafetensorError, KeyError, IndexError, ValueError, RuntimeError, OSError) as error:
        raise DamagedFile(f"{path} holds no translators of a tuned lens: {error}") from error
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise DamagedFile(f"{path}: {name} holds numbers that are not finite")
    return found, about


def translators_digest(translators: Translators) -> str:
    """SHA-256 of the depths and of the numbers of all maps, in hexadecimal."""
    found = hashlib.sha256(repr(translators.depths).encode())
    for tensor in (translators.weight, translators.bias):
        found.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
