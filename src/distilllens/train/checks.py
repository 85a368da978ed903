"""What must hold for arguments and data before a run may start."""

from __future__ import annotations

from datasets import Dataset, IterableDataset

from distilllens.architectures import check_writes_text
from distilllens.fingerprints import Unshared
from distilllens.loading import check_lengths, check_vocabulary
from distilllens.objective import WEIGHT_FIELDS
from distilllens.targets import has_target
from distilllens.train.collation import Collation


def check_arguments(model, teacher, args, compute_loss_func):
    """Refuse arguments of a trainer that leave nothing to learn, or that replace the loss.

    Raises:
        ValueError: with the argument; or a student that does not write text.
    """
    if not isinstance(model, str):
        check_writes_text(model)
    there = (teacher, args.teacher_cache, args.teacher_server)
    if all(each is None for each in there) and args.cross_entropy_weight == 0:
        raise ValueError(
            "nothing to learn from: there is no teacher and cross_entropy_weight is 0; set "
            "teacher_model_name_or_path or teacher_cache, or cross_entropy_weight: 1 for "
            "plain SFT"
        )
    if not any(getattr(args, name) for name in WEIGHT_FIELDS):
        *others, last = WEIGHT_FIELDS
        raise ValueError(f"{', '.join(others)} and {last} are all 0")
    teachers = teacher if isinstance(teacher, list) else [teacher]
    if not isinstance(model, str) and any(each is model for each in teachers):
        raise ValueError("student and teacher are the same object; pass a copy as the teacher")
    if compute_loss_func is not None:
        raise ValueError(
            "compute_loss_func is not supported: it reads logits, and the loss builds none; "
            "override compute_loss in a subclass"
        )


def check_packed_weights(model):
    """Refuse a student in 4 bits on a CPU for which bitsandbytes packs the weights.

    A forward in eval mode packs them, and from then on their kernel has no backward (bitsandbytes
    0.50): the loss would be right, and the gradients would lack whatever passes through a layer.

    Raises:
        ValueError: with what can be trained instead.
    """
    for name, module in model.named_modules():
        packs = getattr(module, "support_avx512bf16_for_cpu", False)
        if packs and module.weight.device.type == "cpu":
            raise ValueError(
                f"a student in 4 bits cannot be trained on this CPU: bitsandbytes computes {name} "
                "without gradients here; train on a GPU, or leave load_in_4bit out"
            )


def check_answers(args, eval_dataset, score_answers):
    """Refuse ``eval_generate`` without data to answer or a callable that scores.

    Raises:
        ValueError: one of them is missing.
    """
    if args.eval_generate and (score_answers is None or eval_dataset is None):
        raise ValueError(
            "eval_generate needs an eval_dataset and score_answers: a callable "
            "(model, tokenizer, (process, number of processes)) -> {metric: (sum, count)}; "
            "distilllens train passes one that generates answers and computes Rouge-L"
        )


def survey(dataset, kind: str) -> tuple[int, int]:
    """``(longest, largest)``: the longest document in tokens and the largest token id.

    Raises:
        ValueError: no row has a target.
    """
    longest, largest = 0, 0
    rows = dataset.with_format(None)
    for ids in rows["input_ids"]:
        longest, largest = max(longest, len(ids)), max(largest, *ids, 0)
    if "seq_lengths" in dataset.column_names:  # packed: positions restart with every document
        longest = max((max(lengths) for lengths in rows["seq_lengths"]), default=0)
    if "labels" not in dataset.column_names:
        return longest, largest
    if not any(map(has_target, rows["labels"])):
        raise ValueError(
            f"none of the {len(dataset)} {kind} examples has a response token; "
            "raise max_length, shorten the prompts, or check their labels"
        )
    return longest, largest


def check_data(who: str, model, collation: Collation):
    """Refuse data that a model cannot read.

    Raises:
        ValueError: sequences beyond its positions, tokens beyond its vocabulary, no target at all.
    """
    max_length = collation.args.max_length
    for kind, dataset in collation.datasets():
        longest, largest, is_known = max_length or 0, 0, False
        if isinstance(dataset, Dataset) and "input_ids" in dataset.column_names:
            (longest, largest), is_known = survey(dataset, kind), True
        elif not isinstance(dataset, IterableDataset):
            continue  # prepared by the user's own collator
        check_lengths(who, model.config, longest, is_known=is_known)
        check_vocabulary(who, model, largest)


def check_shared(unshared: Unshared, collation: Collation):
    """Refuse data with a token that student and teacher do not share.

    Raises:
        ValueError: with the token and its row; streamed data, which cannot be searched for it.
    """
    for kind, dataset in collation.datasets() if unshared else ():
        if not isinstance(dataset, Dataset):
            raise ValueError(
                "student and teacher have different added tokens, and a "
                f"{type(dataset).__name__} cannot be searched for them; load the data whole"
            )
        if "input_ids" in dataset.column_names:
            names = (f"row {number} of the {kind} data" for number in range(len(dataset)))
            unshared.check(dataset.with_format(None)["input_ids"], collation.tokenizer, names)


def check_counts(collation: Collation):
    """Refuse fewer training rows than a batch where those are left out.

    Raises:
        ValueError: no step would be taken.
    """
    dataset, args = collation.train_dataset, collation.args
    if not isinstance(dataset, Dataset) or not args.dataloader_drop_last:
        return
    batch = args.per_device_train_batch_size * collation.accelerator.num_processes
    if len(dataset) < batch:
        raise ValueError(
            f"{len(dataset)} training rows are fewer than a batch of {batch}, and "
            "dataloader_drop_last leaves it out: no step would be taken; lower "
            "per_device_train_batch_size, or set dataloader_drop_last to false"
        )
