"""The models of an evaluation: found and checked before any of them is loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from distilllens.evaluate.benchmarks import unique_names
from distilllens.fingerprints import file_hashes


@dataclass(frozen=True)
class Candidate:
    """A model by name, with what is known of it before its weights are read."""

    label: str
    name: str
    tokenizer: object = field(repr=False)
    config: object = field(repr=False)
    hashes: dict[str, str] = field(repr=False)

    def load(self, device, dtype: str = "auto"):
        """The model, for reading: on ``device``, in eval mode.

        Raises:
            ValueError: weights that cannot be read.
        """
        try:
            model, found = AutoModelForCausalLM.from_pretrained(
                self.name, dtype=dtype, output_loading_info=True
            )
        except Exception as error:  # whatever a broken or missing file makes of itself
            raise ValueError(f"cannot load the model {self.name!r}: {_reason(error)}") from error
        # transformers draws them at random, with no more than a warning.
        if lacking := [*sorted(found["missing_keys"]), *sorted(map(str, found["mismatched_keys"]))]:
            raise ValueError(
                f"the weights of {self.name} lack {lacking[0]}, or have it in another shape "
                f"({len(lacking)} in all)"
            )
        return model.to(device).eval()


def find_models(names: Sequence[str]) -> list[Candidate]:
    """Candidates for folders and hub ids; a folder may hold an adapter of PEFT.

    Raises:
        ValueError: no model or tokenizer there, no weights, no end-of-sequence token, one twice.
    """
    return [_candidate(label, name) for label, name in zip(unique_names(names), names, strict=True)]


def _candidate(label, name):
    folder = Path(name)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"model {name} is a file; name the folder that holds it")
    base = _base_of(folder)
    config = _from(AutoConfig, base or name, f"the model {name!r}")
    hashes = file_hashes(name, config)
    if folder.is_dir() and not any(file.endswith((".safetensors", ".bin")) for file in hashes):
        raise ValueError(f"model {name} holds no weights (model.safetensors)")
    if base:
        hashes |= {f"base/{file}": value for file, value in file_hashes(base, config).items()}
    has_tokenizer = not base or any(folder.glob("tokenizer*"))
    source = name if has_tokenizer else base
    tokenizer = _from(AutoTokenizer, source, f"a tokenizer for the model {name!r}")
    if tokenizer.eos_token is None:
        raise ValueError(
            f"the tokenizer of {name} has no end-of-sequence token, so no answer would end; set "
            "eos_token in its tokenizer_config.json"
        )
    return Candidate(label, name, tokenizer, config, hashes)


def _base_of(folder):
    """The model that an adapter was trained on; None for a whole model."""
    try:
        text = (folder / "adapter_config.json").read_text(encoding="utf-8")
        return json.loads(text)["base_model_name_or_path"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"model {folder}: adapter_config.json cannot be read") from error


def _from(kind, name, what):
    try:
        return kind.from_pretrained(name)
    except Exception as error:  # whatever a broken or missing file makes of itself
        raise ValueError(f"cannot load {what}: {_reason(error)}") from error


def _reason(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]
