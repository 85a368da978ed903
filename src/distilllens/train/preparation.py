"""A run's data as tokens and labels; whatever is left out of them is counted and said."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import getfile
from itertools import accumulate, pairwise
from pathlib import Path

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase
from trl import is_conversational_from_value, maybe_convert_to_chatml

from distilllens.data import format_instruction
from distilllens.data.alignment import Aligner
from distilllens.data.encode import Encoding, encode, template_fields
from distilllens.data.streams import PLACE, CountedFilter
from distilllens.files import sha256
from distilllens.loading import with_chat_template
from distilllens.targets import IGNORED, has_target
from distilllens.train.chat_templates import assistant_tokens, check_marks, unmarked
from distilllens.train.pairs import Pairs, check_pairable, pair_columns
from distilllens.train.streams import StreamedTrainer, settle_streams, truncated

logger = logging.getLogger(__name__)
# Columns of what was noticed of a row, beside its tokens and labels.
_NOTES = ["lost", "wrote_bos"]


class RowError(ValueError):
    """A row of the data that cannot be encoded.

    Attributes:
        kind: of the data, such as "training".
        index: of the row, from 0.
        reason: what is wrong with it.
        place: the file and line of a streamed row, or None.
    """

    def __init__(self, kind: str, index: int, begins: str, reason: str, place: str | None = None):
        super().__init__(kind, index, begins, reason, place)  # processes hand it on by these
        self.kind, self.index, self.begins, self.reason = kind, index, begins, reason
        self.place = place

    def __str__(self):
        what = f"{self.kind} example {self.index} (counted from 0{self.begins})"
        return f"{self.place or what}: {self.reason}"


class PreparedTrainer(StreamedTrainer):
    """``SFTTrainer`` whose rows are encoded by ``distilllens.data``, as everywhere else.

    Its tokens and labels are those of SFTTrainer, except that a beginning-of-sequence token which a
    text writes itself is not doubled. Rows without a target are left out before they are packed.
    Rows that hold ``instruction`` and ``output``, and nothing that SFTTrainer reads, become prompt
    and completion by Alpaca's template.

    Raises:
        ValueError: a row that cannot be encoded, by its number from 0; data without a row or
            without a target.
    """

    def __init__(self, model, args=None, *, train_dataset=None, processing_class=None, **kwargs):
        if isinstance(train_dataset, Dataset) and len(train_dataset) == 0:
            raise ValueError("the training data hold no example; they need at least one")
        settle_streams(args, train_dataset, kwargs.get("eval_dataset"))
        if getattr(args, "assistant_only_loss", False):
            _check_marks(args, processing_class, train_dataset, kwargs.get("formatting_func"))
        if _trains_answers(train_dataset, args, kwargs.get("formatting_func")):
            args = copy.copy(args)
            args.completion_only_loss = True
        self.pairs = None  # of a teacher with another tokenizer
        super().__init__(
            model,
            args=args,
            train_dataset=train_dataset,
            processing_class=processing_class,
            **kwargs,
        )

    def _prepare_dataset(
        self, dataset, processing_class, args, packing, formatting_func, dataset_name
    ):
        name = {"train": "training", "eval": "evaluation"}
        kind = name.get(dataset_name, f"evaluation ({dataset_name})")
        if isinstance(dataset, Dataset) and dataset.format["type"] == "custom":
            # SFTTrainer refuses it, and says what to do.
            super()._prepare_dataset(dataset, processing_class, args, packing, None, dataset_name)
        first = next(iter(dataset), None)
        if first is None:
            raise ValueError(f"the {kind} data hold no example; they need at least one")
        alone = copy.copy(args)  # for rows on their own, neither shuffled nor packed
        alone.shuffle_dataset = False
        if packing:  # "bfd" keeps the beginning of a long row, and the others split it
            alone.truncation_mode = "keep_start"
            alone.max_length = args.max_length if args.packing_strategy == "bfd" else None
        if getattr(args, "cross_tokenizer", None) is not None:
            check_pairable(dataset, kind)
            if self.pairs is None:
                self.pairs = Pairs.of(args, processing_class)
        if "input_ids" not in first and isinstance(processing_class, PreTrainedTokenizerBase):
            row = _Row(
                tokenizer=processing_class,
                kind=kind,
                limit=alone.max_length if alone.truncation_mode == "keep_start" else None,
                text_field=args.dataset_text_field,
                completion_only=self.completion_only_loss,
                assistant_only=args.assistant_only_loss,
                chat_template=self.chat_template,
                formatting_func=formatting_func,
                aligner=None if self.pairs is None else self.pairs.aligner,
                code=tuple(sha256(Path(getfile(part))) for part in _CODE),
            )
            with args.main_process_first(desc=f"encoding {kind} data"):
                dataset = _encoded(dataset, [*first], row, args.dataset_num_proc)
            if self.pairs is not None:
                dataset = self.pairs.take(kind, dataset)
        num_given, limit = _num_rows(dataset), alone.max_length
        if num_given is None:  # SFTTrainer would leave out what is cut to nothing, without a word
            alone.max_length = None
        dataset = super()._prepare_dataset(
            dataset, processing_class, alone, False, formatting_func, dataset_name
        )
        if num_given is None:
            dataset = truncated(dataset, limit, alone.truncation_mode)
        dataset = _with_targets(dataset, num_given, f"{kind} examples", limit)
        if packing:
            dataset = super()._prepare_dataset(
                dataset, processing_class, args, True, None, dataset_name
            )
            # Of a row that is split, a pack may hold no target.
            return _with_targets(dataset, _num_rows(dataset), f"packs of {kind} examples")
        return dataset.shuffle(seed=args.seed) if args.shuffle_dataset else dataset


@dataclass(frozen=True)
class _Row:
    """Encodes one row of a data set, with what was noticed of it."""

    tokenizer: object
    kind: str
    limit: int | None
    text_field: str
    completion_only: bool
    assistant_only: bool
    chat_template: str | None
    formatting_func: Callable | None
    aligner: Aligner | None
    # datasets finds rows in its cache by these fields, and would take those of older code for ours.
    code: tuple[str, ...]

    def __call__(self, row: Mapping, index: int) -> dict:
        try:
            return self._encoded(row)
        except ValueError as error:
            place = row.get(PLACE)
            raise RowError(self.kind, index, _begins(row), str(error), place) from error

    def _encoded(self, row):
        example = self._example(row)
        template = {} if self.chat_template is None else {"chat_template": self.chat_template}
        said = None
        if self.assistant_only:
            messages = example.get("messages") or [*example["prompt"], *example["completion"]]
            ids, said = assistant_tokens(messages, self.tokenizer, example, **template)
            if not any(said):
                raise ValueError(unmarked(messages))
        if said and "messages" in example:
            found = Encoding(ids[: self.limit], 0, [], False)
        else:
            found = encode(example, self.tokenizer, self.limit, **template)
        labels = list(found.ids)
        if self.completion_only:
            labels[: found.first] = [IGNORED] * found.first
        if said:
            marked = zip(labels, said, strict=False)
            labels = [label if is_said else IGNORED for label, is_said in marked]
        lost = ""  # of no matter where every token is a target
        if self.completion_only and found.lost:
            lost = self.tokenizer.decode(found.lost) or str(found.lost)
        pairs = {}
        if self.aligner is not None:
            pairs = pair_columns(self.aligner, example, found.ids, labels, **template)
        return {
            **pairs,
            "input_ids": found.ids,
            "labels": labels,
            "lost": lost,
            "wrote_bos": found.wrote_bos,
        }

    def _example(self, row):
        if self.formatting_func is not None:
            return {"text": self.formatting_func(row)}
        row = {name: value for name, value in row.items() if value is not None}
        row = _in_messages(row)
        row.pop(PLACE, None)
        for fields in (("prompt", "completion"), ("messages",)):
            if {*fields} <= row.keys():
                return {name: row[name] for name in fields} | template_fields(row)
        if self.text_field in row:
            return {"text": row[self.text_field]}
        if _is_instruction(row, self.text_field):
            return format_instruction(row)
        raise ValueError(
            f"it has the fields {sorted(row)}; it needs prompt and completion, messages, "
            f"{self.text_field}, or instruction and output"
        )


def _in_messages(row):
    """A row whose turns have "from" and "value" with role and content, as SFTTrainer reads it."""
    if not is_conversational_from_value(row):
        return row
    return maybe_convert_to_chatml(copy.deepcopy(row))  # it writes into the turns


def _check_marks(args, tokenizer, dataset, formatting_func):
    """``check_marks`` of a data set, as far as it and its tokenizer are there already."""
    is_known = isinstance(dataset, Dataset | IterableDataset)
    if not is_known or not isinstance(tokenizer, PreTrainedTokenizerBase):
        return  # which SFTTrainer says
    row = {n: value for n, value in next(iter(dataset), {}).items() if value is not None}
    if formatting_func or not row or {"input_ids", "images", "image"} & row.keys():
        return
    if args.chat_template_path is not None:
        tokenizer = with_chat_template(tokenizer, args.chat_template_path)
    check_marks(tokenizer, _in_messages(row))


# What decides the tokens of a row.
_CODE = (encode, format_instruction, assistant_tokens, Aligner, pair_columns, _Row)


def _is_instruction(row, text_field):
    """Whether a row holds an instruction and its answer, and nothing that SFTTrainer reads."""
    fields = {name for name, value in row.items() if value is not None}
    others = [
        {"prompt", "completion"},
        {"messages"},
        {"conversations"},
        {"input_ids"},
        {text_field},
    ]
    return {"instruction", "output"} <= fields and not any(other <= fields for other in others)


def _trains_answers(dataset, args, formatting_func):
    """Whether a data set of instructions leaves it to us that their answers are the targets."""
    asked = getattr(args, "completion_only_loss", None)
    skipped = (getattr(args, "dataset_kwargs", None) or {}).get("skip_prepare_dataset")
    if not isinstance(dataset, Dataset | IterableDataset):
        return False  # which SFTTrainer says
    if formatting_func or skipped or asked is not None:
        return False
    return _is_instruction(next(iter(dataset), {}), args.dataset_text_field)


def _encoded(dataset, columns, row, num_proc):
    """A data set as ``input_ids`` and ``labels``, after warnings of what was noticed."""
    settings = {"with_indices": True, "remove_columns": columns}
    if not isinstance(dataset, Dataset):
        dataset = dataset.map(row, **settings).map(_SayOnce(row), with_indices=True)
        return dataset.select_columns(["input_ids", "labels"])  # rows may differ in their fields
    settings |= {"num_proc": num_proc, "desc": f"Tokenizing {row.kind} data"}
    dataset = dataset.map(row, **settings)
    lost = [(index, text) for index, text in enumerate(dataset["lost"]) if text]
    if lost:
        _say_lost(row, f"{len(lost)} of {len(dataset)}", *lost[0])
    if num := sum(dataset["wrote_bos"]):
        _say_bos(row, f"{num} of {len(dataset)}")
    return dataset.remove_columns(_NOTES)


class _SayOnce:
    """Says what is noticed of a stream at the first row of which it is."""

    def __init__(self, row):
        self.row, self.said = row, set()

    def __call__(self, example, index):
        new = {note for note in _NOTES if example[note]} - self.said
        self.said |= new
        if "lost" in new:
            _say_lost(self.row, "some", index, example["lost"])
        if "wrote_bos" in new:
            _say_bos(self.row, "some")
        return {}


def _say_lost(row, how_many, index, text):
    logger.warning(
        "in %s %s examples, prompt and completion together do not begin with the tokens of the "
        "prompt alone (first in example %d, counted from 0, whose prompt alone ends in %r): their "
        "targets begin where the two differ, and an answer is generated after other tokens than in "
        "training; end prompts at a token's end, or use a chat template that writes a prompt the "
        "same with and without its answer",
        how_many,
        row.kind,
        index,
        text,
    )


def _say_bos(row, how_many):
    logger.warning(
        "%s %s examples begin with %r themselves; it is not added a second time",
        how_many,
        row.kind,
        row.tokenizer.bos_token,
    )


def _num_rows(dataset):
    """How many rows a data set has; None for a stream."""
    return len(dataset) if isinstance(dataset, Dataset) else None


def _with_targets(dataset, num_given, what, max_length=None):
    """The rows or packs with a target; how many of those given have none is said.

    Raises:
        ValueError: none has one.
    """
    if num_given is None:
        advice = "raise max_length, shorten the prompts, or check their labels"
        counted = CountedFilter(_has_target, what, "have no response token", advice)
        return dataset.filter(counted, with_indices=True)
    kept = dataset.filter(_has_target, desc=f"Counting {what}")
    within = "" if max_length is None else f" within max_length {max_length}"
    if len(kept) == 0:
        raise ValueError(
            f"none of the {num_given} {what} has a response token{within}; raise max_length, "
            "shorten the prompts, or check their labels"
        )
    if len(kept) < num_given:
        logger.warning(
            "%d of %d %s have no response token%s; they are left out",
            num_given - len(kept),
            num_given,
            what,
            within,
        )
    return kept if len(kept) < len(dataset) else dataset


def _has_target(row):
    labels, ends = row["labels"], accumulate(row.get("seq_lengths") or [len(row["labels"])])
    return any(has_target(labels[start:end]) for start, end in pairwise([0, *ends]))


def _begins(row):
    """What a row begins with, so that it can be found in its file."""
    texts = [row.get(name) for name in ("prompt", "messages", "text")]
    text = next((text for text in texts if text), None)
    if isinstance(text, list):
        asked = [m.get("content") for m in text if isinstance(m, Mapping) and m["role"] == "user"]
        text = next(iter(asked), None)
    return f", begins {text[:40]!r}" if isinstance(text, str) else ""
