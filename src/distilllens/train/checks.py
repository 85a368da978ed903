"""What must hold between student, teacher, tokenizers and data before a run may start."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from distilllens.train.config import DistillLensConfig

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def check_arguments(model, teacher, args, compute_loss_func, compute_metrics):
    """Refuse arguments of a trainer that leave nothing to learn, or ask for logits.

    Raises:
        ValueError: with the argument.
    """
    if not isinstance(args, DistillLensConfig):
        raise ValueError(f"args must be a DistillLensConfig, got {type(args).__name__}")
    if teacher is None and args.teacher_cache is None and args.cross_entropy_weight == 0:
        raise ValueError(
            "nothing to learn from: there is no teacher and cross_entropy_weight is 0; set "
            "teacher_model_name_or_path or teacher_cache, or cross_entropy_weight: 1 for "
            "plain SFT"
        )
    weights = (args.cross_entropy_weight, args.output_weight, args.lens_weight)
    if not any(weights):
        raise ValueError("cross_entropy_weight, output_weight and lens_weight are all 0")
    if teacher is not None and teacher is model and not isinstance(model, str):
        raise ValueError("student and teacher are the same object; pass a copy as the teacher")
    for name, value in (
        ("compute_loss_func", compute_loss_func),
        ("compute_metrics", compute_metrics),
    ):
        if value is not None:
            raise ValueError(
                f"{name} is not supported: the loss is the objective of args, and no logits "
                "are built; use a callback for metrics of your own"
            )


def check_answers(args, eval_dataset, score_answers):
    """Refuse ``eval_generate`` without data to answer or a callable that scores.

    Raises:
        ValueError: with what it needs.
    """
    if args.eval_generate and (score_answers is None or eval_dataset is None):
        raise ValueError(
            "eval_generate needs an eval_dataset and score_answers: a callable "
            "(model, tokenizer, (process, number of processes)) -> {metric: (sum, count)}; "
            "distilllens train passes one that generates and takes Rouge-L"
        )


def load_teacher_tokenizer(path: str, **kwargs):
    """The teacher's tokenizer, or None where its folder has none.

    Raises:
        ValueError: a tokenizer that is there and cannot be read.
    """
    folder = Path(path)
    if folder.is_dir() and not any((folder / name).exists() for name in _TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(path, **kwargs)
    except Exception as error:  # whatever a broken file makes of itself
        reason = str(error).split("\n")[0]
        raise ValueError(f"cannot load the teacher's tokenizer from {path!r}: {reason}") from error


def survey(dataset, kind: str) -> tuple[int, int]:
    """``(longest, largest)``: the longest document in tokens and the largest token id.

    Raises:
        ValueError: no row has a target, a label that is not -100 behind its first position.
    """
    longest, largest = 0, 0
    rows = dataset.with_format(None)
    for ids in rows["input_ids"]:
        longest, largest = max(longest, len(ids)), max(largest, *ids, 0)
    if "seq_lengths" in dataset.column_names:  # packed: positions restart with every document
        longest = max((max(lengths) for lengths in rows["seq_lengths"]), default=0)
    if "labels" not in dataset.column_names:
        return longest, largest
    num_targets = sum(any(label != -100 for label in labels[1:]) for labels in rows["labels"])
    if num_targets == 0:
        raise ValueError(
            f"none of the {len(dataset)} {kind} examples has a response token; "
            "raise max_length, shorten the prompts, or check their labels"
        )
    return longest, largest


def check_lengths(who: str, config, max_length: int | None, default: int | None, longest: int):
    """Refuse sequences that are longer than a model's positions.

    ``max_length`` beyond the positions is refused when it was asked for or when the data need it;
    the default of a length is no wish.

    Raises:
        ValueError: with the length and the number of positions.
    """
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return
    if max_length is not None and max_length > positions and max_length != default:
        raise ValueError(
            f"max_length {max_length} is beyond the {who}'s {positions} positions; "
            f"set max_length to {positions} or less"
        )
    if longest > positions:
        raise ValueError(
            f"the data hold a sequence of {longest} tokens, beyond the {who}'s {positions} "
            f"positions; set max_length to {positions} or less"
        )


def check_vocabulary(who: str, model, largest: int):
    """Refuse token ids that a model has no embedding for.

    Raises:
        ValueError: with the id and the number of rows.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if largest >= rows:
        raise ValueError(
            f"the data hold token {largest}, but the {who} has only {rows} embeddings: "
            "its tokenizer is another one"
        )
