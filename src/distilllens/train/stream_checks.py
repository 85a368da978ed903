"""Settings of a run that streamed training data cannot have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def check_stream_settings(values: Mapping[str, Any]):
    """Refuse settings of a run that a streamed training set cannot have.

    Args:
        values: field -> value of those that are set.

    Raises:
        ValueError: with the field.
    """
    if (values.get("max_steps") or 0) <= 0:
        raise ValueError("streamed training data need max_steps: their length is not known")
    if values.get("teacher_cache"):
        raise ValueError(
            "teacher_cache cannot be used with streamed training data: it must hold every document "
            "before the first step; leave dataset_streaming out, or train without the cache"
        )
    sampling = str(values.get("train_sampling_strategy") or "random")
    if sampling in ("group_by_length", "batch_rebalance"):
        raise ValueError(
            f"train_sampling_strategy {sampling} needs the lengths of all rows, which streamed "
            "training data do not have"
        )
    for name in ("eval_strategy", "save_strategy", "logging_strategy"):
        value = values.get(name)
        if str(getattr(value, "value", value)) == "epoch":
            raise ValueError(f"{name} epoch has no end in streamed training data; set it to steps")
    if values.get("lens_readout") == "tuned":
        raise ValueError(
            "lens_readout tuned is fitted to rows drawn from all training data, and streamed data "
            "cannot be drawn from; load them whole, or set lens_readout: logit"
        )
