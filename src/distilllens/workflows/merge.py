"""``distilllens merge``: an adapter added to its base model, as a folder of its own."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from distilllens.lens.probe import logits_of, probe_ids, undisturbed
from distilllens.loading import find_tokenizer, is_adapter_folder, size_in_words
from distilllens.train.finite import check_weights
from distilllens.train.merging import load_adapted, merged
from distilllens.workflows.model_folder import write_model
from distilllens.workflows.outputs import check_new_folder

logger = logging.getLogger(__name__)


def check_merging(run: str, output: Path):
    """Refuse what cannot be merged, before anything is loaded.

    Raises:
        ValueError: no folder, a folder without an adapter, or an output that is not empty.
        OSError: a folder that cannot be written.
    """
    folder = Path(run)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ValueError(f"{run} {what}; name the folder of a LoRA run")
    if not is_adapter_folder(run):
        if (folder / "config.json").is_file():
            raise ValueError(f"{run} is a whole model; it has no adapter to merge")
        raise ValueError(f"{run} has no adapter_config.json; name the folder of a LoRA run")
    check_new_folder("--output", output)


def merge(
    run: str, output: str | Path, *, dtype: str = "auto", trust_remote_code: bool = False
) -> str:
    """Write a folder of plain transformers: the base model with the adapter's weights added.

    The folder has its name only once it is complete.

    Args:
        run: the folder of an adapter, such as that of a LoRA run.
        dtype: "auto" (that of the files of the base model), "float32", "bfloat16" or "float16".
            The weights are added in it.

    Returns:
        Where it is, and how far its predictions are from those of base model and adapter.

    Raises:
        ValueError: an adapter or base model that cannot be loaded or merged.
        OSError: a folder that cannot be written.
    """
    output = Path(output)
    check_merging(run, output)
    loading = {"trust_remote_code": trust_remote_code}
    tokenizer = find_tokenizer("model", run, **loading)
    logger.info("loading the base model and the adapter in %s", run)
    model = load_adapted("model", run, dtype=dtype, **loading).requires_grad_(False)
    before = _predictions(model)
    plain = merged(model)
    check_weights("model", plain)
    distance = float((before.exp() * (before - _predictions(plain))).sum(-1).mean())
    write_model(plain, tokenizer, output)
    return (
        f"wrote {output}: {size_in_words(plain)}; KL(with adapter ‖ merged) is "
        f"{max(distance, 0):.1e} nats per token on a few tokens, from rounding to that dtype"
    )


def _predictions(model):
    """Log probabilities ``[2, T, V]`` of a few tokens, in float64."""
    with torch.no_grad(), undisturbed(model):
        ids = probe_ids(model, 2, 16)
        return logits_of(model(input_ids=ids)).double().log_softmax(-1)
