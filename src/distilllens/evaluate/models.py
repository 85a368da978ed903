"""The models of an evaluation, found and checked before any weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from distilllens.fingerprints import file_hashes
from distilllens.loading import (
    base_model_name,
    load_config,
    load_model,
    load_tokenizer,
    unique_names,
)
from distilllens.marks import check_weights


@dataclass(frozen=True)
class Candidate:
    """A model of an evaluation: its tokenizer, configuration and file hashes, without weights."""

    label: str
    name: str
    tokenizer: object = field(repr=False)
    config: object = field(repr=False)
    hashes: dict[str, str] = field(repr=False)
    trust_remote_code: bool = False

    def load(self, device, dtype: str = "auto"):
        """The model, on ``device`` and in eval mode.

        Raises:
            ValueError: the weights cannot be read.
        """
        trusted = self.trust_remote_code
        model = load_model("model", self.name, dtype=dtype, trust_remote_code=trusted)
        return model.to(device).eval()


def find_models(names: Sequence[str], *, trust_remote_code: bool = False) -> list[Candidate]:
    """Candidates for folders and hub ids; a folder may hold a PEFT adapter.

    Args:
        trust_remote_code: whether code that comes with a model may run.

    Raises:
        ValueError: a name has no model, tokenizer or weights, damaged weights, a tokenizer without
            end-of-sequence token, or a model is named twice.
    """
    labels = zip(unique_names(names), names, strict=True)
    return [_candidate(label, name, trust_remote_code) for label, name in labels]


def _candidate(label, name, trusted):
    folder = Path(name)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"model {name} is a file; name the folder that holds it")
    base = base_model_name(folder)
    adapter = name if base else None
    config = load_config("model", base or name, adapter=adapter, trust_remote_code=trusted)
    hashes = file_hashes(name, config)
    if folder.is_dir() and not any(file.endswith((".safetensors", ".bin")) for file in hashes):
        raise ValueError(f"model {name} holds no weights (model.safetensors)")
    if base:
        hashes |= {f"base/{file}": value for file, value in file_hashes(base, config).items()}
        check_weights(f"the base model {base!r} of the model {name!r}", base)
    check_weights(f"the model {name!r}", name)
    has_tokenizer = not base or any(folder.glob("tokenizer*"))
    source = name if has_tokenizer else base
    tokenizer = load_tokenizer("model", source, trust_remote_code=trusted)
    if tokenizer.eos_token is None:
        raise ValueError(
            f"the tokenizer of {name} has no end-of-sequence token, so no answer would end; set "
            "eos_token in its tokenizer_config.json"
        )
    return Candidate(label, name, tokenizer, config, hashes, trusted)
