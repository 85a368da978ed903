"""The teacher of a run that a server runs."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path

from datasets import Dataset, IterableDataset

from distilllens.generate.predictions_server import PredictionsServer
from distilllens.generate.server import KEY
from distilllens.loading import check_tokenizers, find_tokenizer
from distilllens.teacher import ServedTeacher
from distilllens.teacher.served import top_predictions
from distilllens.train.checks import check_shared
from distilllens.train.collation import Collation

logger = logging.getLogger(__name__)
_RETRIES, _TIMEOUT = 5, 600.0
_FIRST_TOKENS = 64
# Texts of tokens that may differ between a server's decoding and ours.
_MOST_ODD = 0.1


def find_served(collation: Collation) -> ServedTeacher:
    """The teacher at ``teacher_server``, asked once: for the beginning of the training data.

    Raises:
        ValueError: no such model, another tokenizer, or a server without log-probabilities of
            prompts.
        OSError: the server does not answer.
    """
    args = collation.args
    _check_named_tokenizer(collation)
    logger.info("asking the teacher's server %s", args.teacher_server)
    server = PredictionsServer(
        args.teacher_server,
        args.teacher_server_model,
        key_variable=KEY,
        retries=_RETRIES,
        timeout=_TIMEOUT,
    )
    with ExitStack() as stack:
        stack.enter_context(server)
        ids = _first_tokens(collation)
        found = server.settle(ids, args.teacher_server_top_k)
        top = top_predictions(found, args.teacher_server_top_k)
        check_texts(server.texts, collation.tokenizer)
        stack.callback(server.stop)  # before it is closed: no request is tried again
        opened = stack.pop_all()
    logger.info(
        "the teacher is %s at %s; %d of its tokens are compared at each position, and all others "
        "as one, which holds %.2g of its probability in the first %d tokens",
        *(server.model, args.teacher_server, top.ids.shape[1], float(top.tail.mean()), len(ids)),
    )
    ask = partial(server.predictions, top_k=args.teacher_server_top_k)
    teacher = ServedTeacher(ask, args.teacher_server_top_k)
    teacher.model, teacher.name = server.model, f"{server.model} at {args.teacher_server}"
    weakref.finalize(teacher, opened.close)
    return teacher


def check_texts(texts: Mapping[int, str], tokenizer):
    """Refuse a server whose tokens are others than the student's.

    Args:
        texts: token -> its text, as the server says it; empty if it says none.

    Raises:
        ValueError: more than a tenth of them differ, with the first.
    """
    odd, num_compared = [], 0
    for token, text in texts.items():
        known = token < len(tokenizer)
        ours = {tokenizer.decode([token]), str(tokenizer.convert_ids_to_tokens(token))}
        if known and any("\ufffd" in each for each in (text, *ours)):
            continue  # a part of a character
        if not known and not text:
            continue  # a row of padding
        num_compared += 1
        if not known or text.strip() not in {each.strip() for each in ours}:
            odd.append((token, text, tokenizer.decode([token]) if known else None))
    if len(odd) > _MOST_ODD * num_compared:
        token, theirs, ours = odd[0]
        raise ValueError(
            "the teacher's server has another tokenizer than the student: token "
            f"{token} is {theirs!r} there, and {'not known' if ours is None else repr(ours)} to "
            f"the student ({len(odd)} of {num_compared} tokens differ)"
        )


def _check_named_tokenizer(collation):
    """The teacher's tokenizer, where it is named or the model's name is a folder here."""
    args = collation.args
    name = args.teacher_tokenizer_name_or_path
    if name is None and Path(str(args.teacher_server_model)).is_dir():
        name = args.teacher_server_model
    if name is None:
        return
    tokenizer = find_tokenizer("teacher", name, trust_remote_code=args.trust_remote_code)
    if tokenizer is not None:
        check_shared(check_tokenizers(collation.tokenizer, tokenizer), collation)


def _first_tokens(collation):
    dataset = collation.train_dataset
    known = isinstance(dataset, Dataset | IterableDataset)
    for row in islice(dataset, 8) if known else ():
        ids = row.get("input_ids") or []
        if len(ids) > 1:
            return list(ids[:_FIRST_TOKENS])
    return list(collation.tokenizer("A first question to the teacher.")["input_ids"])
