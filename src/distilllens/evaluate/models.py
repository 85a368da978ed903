"""The models of an evaluation, found and checked before any weights are loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from distilllens.errors import first_line
from distilllens.fingerprints import file_hashes
from distilllens.loading import base_model_name, load_config, load_model, load_tokenizer
from distilllens.marks import check_noted_weights
from distilllens.names import unique_names
from distilllens.stored import DamagedFile, read_stored


@dataclass(frozen=True)
class Candidate:
    """A model of an evaluation: its tokenizer, configuration and file hashes, without weights."""

    label: str
    name: str
    tokenizer: object = field(repr=False)
    config: object = field(repr=False)
    hashes: dict[str, str] = field(repr=False)
    base: str | None = None  # of an adapter
    is_moved: bool = False  # whether the base is not where the adapter's own file looks for it
    trust_remote_code: bool = False

    def load(self, device, dtype: str = "auto"):
        """The model, on ``device`` and in eval mode.

        Raises:
            ValueError: the weights cannot be read.
        """
        trusted = self.trust_remote_code
        name = self.base if self.is_moved else self.name
        model = load_model("model", name, dtype=dtype, trust_remote_code=trusted)
        if self.is_moved:
            try:
                model.load_adapter(self.name)
            except Exception as error:  # a broken or missing file raises whatever it likes
                message = f"cannot load the adapter {self.name} of {self.base}: {first_line(error)}"
                raise ValueError(message) from error
        return model.requires_grad_(False).to(device).eval()


def find_models(names: Sequence[str], *, trust_remote_code: bool = False) -> list[Candidate]:
    """Candidates for folders and hub ids; a folder may hold a PEFT adapter.

    Args:
        trust_remote_code: whether code that comes with a model may run.

    Raises:
        ValueError: a name has no model, tokenizer or weights, damaged weights, a tokenizer without
            end-of-sequence token, or a model is named twice.
    """
    labels = zip(_labels(names), names, strict=True)
    return [_candidate(label, name, trust_remote_code) for label, name in labels]


def _labels(names):
    """``unique_names``, in which a checkpoint has the name of its run in front."""
    labels = unique_names(names)
    runs = [Path(name).resolve().parent.name for name in names]
    with_runs = [
        f"{run}_{label}" if re.fullmatch(r"checkpoint-\d+", label) else label
        for label, run in zip(labels, runs, strict=True)
    ]
    return with_runs if len({*with_runs}) == len(labels) else labels


def _moved_base(folder):
    """The base model of a run's adapter, by the folder in which the run began; None if not there.

    PEFT stores the path as the run named it, which is relative to that folder.
    """
    notes = [place / "run.json" for place in (folder, folder.resolve().parent)]
    try:
        base = read_stored(folder / "adapter_config.json", _Adapter)["base_model_name_or_path"]
        run = read_stored(next(note for note in notes if note.is_file()), _Run)
    except (DamagedFile, StopIteration):
        return None
    path = Path(run["working_directory"], base)
    # A folder of that name here may be another model.
    return None if not path.is_dir() or path.resolve() == Path(base).resolve() else str(path)


class _Adapter(TypedDict):
    base_model_name_or_path: str


class _Run(TypedDict):
    working_directory: str


def _candidate(label, name, trusted):
    folder = Path(name)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"model {name} is a file; name the folder that holds it")
    moved = _moved_base(folder)
    base = moved or base_model_name(folder)
    adapter = name if base else None
    config = load_config("model", base or name, adapter=adapter, trust_remote_code=trusted)
    hashes = file_hashes(name, config)
    if folder.is_dir() and not any(file.endswith((".safetensors", ".bin")) for file in hashes):
        raise ValueError(f"model {name} holds no weights (model.safetensors)")
    if base:
        hashes |= {f"base/{file}": value for file, value in file_hashes(base, config).items()}
        check_noted_weights(f"the base model {base!r} of the model {name!r}", base)
    check_noted_weights(f"the model {name!r}", name)
    has_tokenizer = not base or any(folder.glob("tokenizer*"))
    source = name if has_tokenizer else base
    tokenizer = load_tokenizer("model", source, trust_remote_code=trusted)
    if tokenizer.eos_token is None:
        raise ValueError(
            f"the tokenizer of {name} has no end-of-sequence token, so no answer would end; set "
            "eos_token in its tokenizer_config.json"
        )
    return Candidate(label, name, tokenizer, config, hashes, base, moved is not None, trusted)
