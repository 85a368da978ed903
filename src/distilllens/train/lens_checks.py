"""Checks of the fields of ``DistillLensConfig`` that say what the lens compares, and how."""

from __future__ import annotations

import math
import re

from distilllens.layer_map import LayerMap
from distilllens.train.schedule import PAIR_WEIGHTS, SCHEDULES

READOUTS = ("logit", "tuned")
# How vocabularies of two tokenizers are compared; None with one tokenizer for both.
CROSS_TOKENIZER = (None, "shared", "uld")


def check_lens_layers(spec):
    """Refuse a text that describes no layer map.

    Raises:
        ValueError: with how to write one.
    """
    number = str(spec).strip()
    if spec == "auto" or number == "exits" or (number.isdecimal() and number.strip("0")):
        return
    if re.fullmatch(r"[+-]?\d+(\.\d*)?", number):
        raise ValueError(f"lens_layers must be a whole number of pairs from 1, got {number}")
    try:
        LayerMap.parse(spec)
    except ValueError as error:
        choices = "" if ":" in number else '; or "auto", a number of pairs, or "exits"'
        raise ValueError(f"lens_layers: {error}{choices}") from error


def settled_pair_weights(given, lens_layers: str) -> str | list[float]:
    """The name or the list of numbers that ``lens_pair_weights`` is; "1,2" is [1, 2].

    Raises:
        ValueError: neither, a number below 0, zeros alone, or not as many as the pairs of a map.
    """
    names = " or ".join(PAIR_WEIGHTS)
    said = f"lens_pair_weights must be {names}, or a number for each pair such as [1, 2, 3]"
    if given is None or given in PAIR_WEIGHTS:
        return given or PAIR_WEIGHTS[0]
    numbers = given
    if isinstance(given, str):
        try:
            numbers = [float(part) for part in given.strip().strip("[]").split(",")]
        except ValueError:
            raise ValueError(f"{said}, got {given!r}") from None
    if not isinstance(numbers, list | tuple) or not numbers:
        raise ValueError(f"{said}, got {given!r}")
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ValueError(f"{said}, got {number!r} in it")
        if not (math.isfinite(number) and number >= 0):
            raise ValueError(f"lens_pair_weights must be finite and at least 0, got {number}")
    if not any(numbers):
        raise ValueError(f"lens_pair_weights are 0 for all pairs: {given!r}")
    asked, count = lens_layers.strip(), None
    if asked.isdecimal():
        count = int(asked)
    elif asked not in ("auto", "exits"):
        count = len(LayerMap.parse(asked))
    if count not in (None, len(numbers)):
        raise ValueError(
            f"lens_pair_weights must be one for each of the {count} pairs of lens_layers "
            f"{lens_layers}, got {len(numbers)}"
        )
    return [float(number) for number in numbers]


def check_cross_tokenizer(given):
    """Refuse what is no rule to compare two vocabularies by.

    Raises:
        ValueError: with the rules.
    """
    if given not in CROSS_TOKENIZER:
        known = ", ".join(CROSS_TOKENIZER[1:])
        raise ValueError(f"cross_tokenizer is one of {known}, or not set; got {given!r}")


def settle_cross_tokenizer(args):
    """With ``cross_tokenizer: uld`` both divergences are uld; refuse what goes with neither rule.

    Raises:
        ValueError: with the field, and what to do instead.
    """
    rule = args.cross_tokenizer
    check_cross_tokenizer(rule)
    if rule is None:
        if args.teacher_tokenizer_name_or_path is not None and args.teacher_server is None:
            raise ValueError(
                "teacher_tokenizer_name_or_path is read with cross_tokenizer only (or for a "
                "teacher_server); set that too, or leave it out"
            )
        return
    if args.feature_weight > 0:
        raise ValueError(
            "feature_weight does not go with cross_tokenizer: hidden states are compared at every "
            "target token, and two tokenizers share only some; leave one of them out"
        )
    if getattr(args, "on_policy_fraction", 0):
        raise ValueError(
            "on_policy_fraction does not go with cross_tokenizer: the teacher's tokens are made "
            "before training, and the student writes answers during it; leave one of them out"
        )
    splits = args.packing and args.packing_strategy != "bfd"
    if splits or args.truncation_mode != "keep_start":
        raise ValueError(
            "cross_tokenizer reads whole rows, cut off at their ends: it needs "
            "packing_strategy: bfd and truncation_mode: keep_start"
        )
    if rule != "uld":
        return
    for name, default in (("output_divergence", "reverse_kl"), ("lens_divergence", "jsd")):
        if getattr(args, name) not in (default, "uld"):
            raise ValueError(
                f"cross_tokenizer uld is a distance of its own: leave {name} out, or set "
                f"cross_tokenizer: shared for {getattr(args, name)}"
            )
        setattr(args, name, "uld")


def check_schedule(name):
    """Refuse what is no way in which the weight of the lens falls.

    Raises:
        ValueError: with those there are.
    """
    if name not in SCHEDULES:
        raise ValueError(f"lens_weight_schedule is one of {', '.join(SCHEDULES)}, got {name!r}")


def check_forms(args):
    """Refuse forms of the lens and the feature loss that do not exist or do not go together.

    Raises:
        ValueError: with the field, and what would be right.
    """
    from distilllens.sampling import check_fraction  # with torch

    check_schedule(args.lens_weight_schedule)
    check_fraction("lens_weight_until", args.lens_weight_until)
    others = (args.output_weight, args.cross_entropy_weight, args.feature_weight)
    if args.lens_weight > 0 and args.lens_weight_until < 1 and not any(others):
        raise ValueError(
            f"lens_weight_until {args.lens_weight_until} leaves nothing to learn from behind that "
            "share of the steps, because all other weights are 0; set output_weight, for example"
        )
    if args.lens_readout not in READOUTS:
        raise ValueError(f"lens_readout is one of {', '.join(READOUTS)}, got {args.lens_readout!r}")
    if args.lens_readout == "tuned" and not args.lens_norm:
        raise ValueError(
            "lens_readout tuned reads translated states through the final norm: it needs "
            "lens_norm: true"
        )
    if args.lens_layers.strip() == "exits" and not args.lens_norm:
        raise ValueError(
            "lens_layers exits compares with the teacher's output, which is read through its final "
            "norm: it needs lens_norm: true"
        )
    if args.feature_weight > 0 and args.teacher_cache is not None and args.lens_norm:
        raise ValueError(
            "feature_weight compares states before the final norm, and with lens_norm: true a "
            "teacher_cache stores them behind it: set lens_norm: false, or leave teacher_cache out"
        )
