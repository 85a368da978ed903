"""The records of a training run: files, data sets and mixtures, loaded whole or streamed."""

from __future__ import annotations

import logging
import math
import random
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

from distilllens.data import (
    data_files,
    drop_long_prompts,
    encode_example,
    load_hub,
    load_records,
    to_training_examples,
)
from distilllens.data.format import has_short_prompt
from distilllens.data.records import place_of
from distilllens.data.sources import Source, file_source, load_sources, sources_of
from distilllens.data.streams import PLACE, CountedFilter, RecordStream
from distilllens.train.chat_templates import check_marks
from distilllens.train.preparation import RowError
from distilllens.workflows.identity import rows_identity

logger = logging.getLogger(__name__)
_FEW = 8  # tokens, where whether a conversation can be written is all that is asked


def load_all(job, tokenizer, args) -> dict[str, list[dict] | RecordStream]:
    """Role ("train", "eval") -> records with prompts of at most ``max_prompt_length`` tokens.

    With ``dataset_streaming``, those of "train" are a stream.

    Raises:
        ValueError: data that cannot be read, with file and line; no record is left; ``chat``
            without a chat template.
    """
    if job.chat and tokenizer.chat_template is None:
        raise ValueError(
            "chat is set, and the student's tokenizer has no chat template; set "
            "chat_template_path, or leave chat out to train on Alpaca's template"
        )
    records = _evaluated(job)
    if job.dataset_streaming:
        records = {"train": _streamed(job, tokenizer, args), **records}
    elif job.datasets is not None:
        whole = [*chain.from_iterable(load_sources(sources_of(job.datasets), chat=job.chat))]
        records = {**_split(whole, job.test_split_size), **records}
    elif job.dataset_name is not None:
        split, config = job.dataset_train_split, job.dataset_config
        records = {"train": load_hub(job.dataset_name, split, config, chat=job.chat), **records}
    else:
        records = {"train": load_records(job.train_file, chat=job.chat), **records}
    return records if job.max_prompt_length is None else _short(job, tokenizer, records)


def _evaluated(job):
    """The evaluation data, if they are named, as a part of what ``load_all`` returns."""
    if job.eval_file:
        return {"eval": load_records(job.eval_file, chat=job.chat)}
    if job.dataset_test_split is None:
        return {}
    split, config = job.dataset_test_split, job.dataset_config
    if not job.dataset_streaming:
        return {"eval": load_hub(job.dataset_name, split, config, chat=job.chat)}
    # Without the training split, which loading would prepare, too.
    source = Source(job.dataset_name, name=config, split=split)
    return {"eval": [*RecordStream((source,), chat=job.chat).records()]}


def sources_named(values) -> tuple[Source, ...]:
    """The sources of the training data that fields name.

    Args:
        values: field -> value.
    """
    if values.get("datasets") is not None:
        return sources_of(values["datasets"])
    if (name := values.get("dataset_name")) is not None:
        split = values.get("dataset_train_split") or "train"
        return (Source(name, name=values.get("dataset_config"), split=split),)
    files = values.get("train_file") or []
    return (file_source([files] if isinstance(files, str) else files),)


def _streamed(job, tokenizer, args):
    seed = args.seed if args.data_seed is None else args.data_seed
    stream = RecordStream(
        sources_named(vars(job)), chat=job.chat, seed=seed, buffer_size=job.dataset_shuffle_buffer
    )
    if (limit := job.max_prompt_length) is None:
        return stream
    problem = f"have prompts longer than max_prompt_length {limit}"
    keeps = CountedFilter(
        partial(_is_short, tokenizer, limit), "train records", problem, "raise max_prompt_length"
    )
    return replace(stream, keeps=keeps)


def _is_short(tokenizer, limit, example):
    return has_short_prompt(example, tokenizer, limit, example[PLACE])


def _split(records, size):
    """Records for training, and of ``size`` (a share or a number) for evaluation, if it is set.

    They are the same for every seed, so that runs can be compared.
    """
    if size is None:
        return {"train": records}
    num = math.ceil(size * len(records)) if size < 1 else round(size)
    if num >= len(records):
        raise ValueError(
            f"test_split_size {size:g} leaves nothing to train on: the mixture has "
            f"{len(records)} records"
        )
    drawn = {*random.Random(0).sample(range(len(records)), num)}
    return {
        "train": [record for n, record in enumerate(records) if n not in drawn],
        "eval": [records[n] for n in sorted(drawn)],
    }


def _short(job, tokenizer, records):
    """The records without those with a longer prompt; a stream leaves them out itself."""
    found, limit = {}, job.max_prompt_length
    for role, rows in records.items():
        if isinstance(rows, RecordStream):
            found[role] = rows
            continue
        found[role], dropped = drop_long_prompts(rows, tokenizer, limit, chat=job.chat)
        if dropped:
            logger.warning(
                "leaving out %d of %d %s records with prompts longer than max_prompt_length %d",
                *(dropped, len(rows), role, limit),
            )
    return found


def examples_of(job, args, tokenizer, records) -> dict[str, list[dict] | RecordStream]:
    """Role -> the records as training examples, of which the first is written as in training.

    A stream stays one: it makes examples of its records itself.

    Raises:
        ValueError: a conversation that the chat template cannot write, or whose answers it does
            not mark for ``assistant_only_loss``.
    """
    examples = {}
    for role, rows in records.items():
        is_stream = isinstance(rows, RecordStream)
        examples[role] = rows if is_stream else to_training_examples(rows, chat=job.chat)
        record = rows.first if is_stream else rows[0]
        first, place = first_of(examples[role]), place_of(record, f"the first {role} record")
        try:
            if args.assistant_only_loss:
                check_marks(tokenizer, first)
            if is_conversation(first):
                encode_example(first, tokenizer, _FEW)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        if job.chat and not is_conversation(first):
            logger.warning(
                "chat changes instruction records only: the %s records, of %s, are trained on as "
                "they are",
                role,
                " and ".join(first),
            )
    return examples


def first_of(examples) -> dict:
    """The first training example of a list or a stream."""
    return examples.first_example if isinstance(examples, RecordStream) else examples[0]


def is_conversation(example) -> bool:
    """Whether a chat template writes a training example."""
    return "messages" in example or isinstance(example.get("prompt"), list)


@contextmanager
def placed(examples):
    """Name file and line of a row that cannot be encoded in this block.

    Args:
        examples: as ``examples_of`` returns them.
    """
    try:
        yield
    except RowError as error:
        rows = examples.get({"training": "train", "evaluation": "eval"}.get(error.kind), ())
        if isinstance(rows, RecordStream) or error.index >= len(rows):
            raise
        raise ValueError(f"{place_of(rows[error.index], str(error))}: {error.reason}") from error


def rows_of(job, records) -> dict[str, str]:
    """Role -> fingerprint of the records that ``files_of`` does not name."""
    if job.train_file is not None and not job.dataset_streaming:
        return {}
    return {
        role: rows.fingerprint() if isinstance(rows, RecordStream) else rows_identity(rows)
        for role, rows in records.items()
        if role == "train" or job.eval_file is None
    }


def files_of(job) -> list[Path]:
    """The data files that a run reads whole, and that name themselves in its recipe."""
    files = [*(() if job.dataset_streaming else job.train_file or ()), *(job.eval_file or ())]
    return list(data_files(files, warn=False)) if files else []


def names_of(job) -> list[str]:
    """The sources of the training data for a model card: of files, their names without folders."""
    sources = sources_named(vars(job))
    return [
        name
        for source in sources
        for name in ([Path(f).name for f in source.files] if source.files else [source.label])
    ]


def described(job, records) -> str:
    """The sources of the training data in words, with their shares, for those of a mixture."""
    sources = sources_named(vars(job))
    streamed = "streamed" if isinstance(records["train"], RecordStream) else ""
    if job.datasets is None and not streamed:
        return ""
    total = sum(source.fraction or 0 for source in sources)
    parts = []
    for source in sources:
        share = f" ({source.fraction / total:.3g} of the rows)" if source.fraction else ""
        share = f" ({source.rows} rows)" if source.rows else share
        parts.append(source.label + share)
    return " ".join(filter(None, [streamed, "from", ", ".join(parts)]))
