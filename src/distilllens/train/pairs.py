"""What a teacher with another tokenizer reads of a run's rows, and where they are compared."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from datasets import Dataset

from distilllens.data.alignment import Aligner, aligner_of
from distilllens.fingerprints import tokenizer_fingerprint
from distilllens.loading import find_tokenizer
from distilllens.targets import IGNORED
from distilllens.teacher.aligned import PaddingCollator, Paired
from distilllens.teacher.documents import document_of
from distilllens.vocabularies import Vocabularies

# Below, most of what a teacher knows would be thrown away.
LEAST_SHARE = 0.5
_COLUMNS = ("key", "input_ids", "labels", "places", "num_targets", "end", "problem")
_PREFIX = "teacher_"


class Pairs(Mapping):
    """The documents of a run's data, by their keys, as a teacher's tokenizer reads them.

    Args:
        aligner: of the two tokenizers.
        rule: how their vocabularies are compared, as ``cross_tokenizer``.

    Attributes:
        tables: kind of data -> what the teacher reads of each row.
        shares: kind of data -> targets that are compared, and all.
    """

    def __init__(self, aligner: Aligner, rule: str):
        self.aligner, self.rule = aligner, rule
        tokenizer = aligner.teacher.tokenizer
        pad = tokenizer.pad_token_id
        self.collator = PaddingCollator(tokenizer.eos_token_id or 0 if pad is None else pad)
        self.tables, self.shares, self._rows = {}, {}, {}

    @classmethod
    def of(cls, args, tokenizer) -> Pairs | None:
        """Those of a run whose student has a tokenizer; None with one tokenizer for both.

        Raises:
            ValueError: a teacher without a tokenizer.
        """
        if args.cross_tokenizer is None:
            return None
        name = args.teacher_tokenizer_name_or_path or args.teacher_model_name_or_path
        given = args.teacher_model_init_kwargs or {}
        hub = {key: given[key] for key in ("revision", "trust_remote_code") if key in given}
        hub = {"trust_remote_code": args.trust_remote_code, **hub}
        theirs = None if name is None else find_tokenizer("teacher", name, **hub)
        if theirs is None:
            where = "" if name is None else f", and the folder {name} has none"
            raise ValueError(
                f"cross_tokenizer needs the teacher's tokenizer{where}; name it by "
                "teacher_tokenizer_name_or_path"
            )
        return cls(aligner_of(tokenizer, theirs), args.cross_tokenizer)

    def __getitem__(self, key: bytes) -> Paired:
        kind, number = self._rows[key]
        row = self.tables[kind][number]
        compared, total = self.shares[kind]
        return Paired(row["input_ids"], row["labels"], row["places"], total / max(compared, 1))

    def __iter__(self):
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, kind: str, dataset: Dataset) -> Dataset:
        """Keep the columns of ``pair_columns``; returns the others, which the student reads.

        Raises:
            ValueError: fewer than half of the targets can be compared.
        """
        names = {_PREFIX + name: name for name in _COLUMNS}
        table = dataset.select_columns([*names]).rename_columns(names)
        self.tables[kind] = table
        # The first of equal documents counts, and training before evaluation.
        for number, key in enumerate(table["key"]):
            self._rows.setdefault(key, (kind, number))
        counts = table.select_columns(["places", "num_targets"]).with_format("arrow")[:]
        compared = int(np.asarray(counts["places"].combine_chunks().value_lengths()).sum())
        self.shares[kind] = compared, int(np.asarray(counts["num_targets"]).sum())
        self._check(kind)
        return dataset.remove_columns([*names])

    def share(self, kind: str = "training") -> float:
        """The share of the targets of a kind of data that are compared."""
        compared, total = self.shares[kind]
        return compared / max(total, 1)

    def vocabularies(self) -> Vocabularies:
        """The two vocabularies, with the tokens that end an answer of the training data as one.

        Raises:
            ValueError: they share no token, and the rule needs some.
        """
        ends = self.tables["training"]["end"]
        return self.aligner.vocabularies(self.rule, next((tuple(e) for e in ends if e), None))

    @property
    def student_tokenizer(self) -> str:
        """The fingerprint of the student's tokenizer."""
        return tokenizer_fingerprint(self.aligner.student.tokenizer)

    def _check(self, kind):
        if self.share(kind) >= LEAST_SHARE:
            return
        problems = [problem for problem in self.tables[kind]["problem"] if problem]
        why = "their tokens rarely end at the same character"
        if problems:
            most = max({*problems}, key=problems.count)
            why = f"in {problems.count(most)} of {len(self.tables[kind])} rows {most}"
        compared, total = self.shares[kind]
        raise ValueError(
            f"student and teacher can be compared at only {self.share(kind):.1%} of the target "
            f"tokens of the {kind} data ({compared:,} of {total:,}): {why}; at least "
            f"{LEAST_SHARE:.0%} are needed, so choose models whose tokenizers are closer"
        )


def pair_columns(
    aligner: Aligner, example: Mapping, ids: list[int], labels: list[int], **settings
) -> dict:
    """What a teacher reads of one example, as columns of a data set.

    Args:
        example, settings: as for ``Aligner``.
        ids, labels: the student's.

    Raises:
        ValueError: the teacher's tokenizer cannot write the example.
    """
    found = aligner(example, ids, **settings)
    targets = [at for at in range(len(ids) - 1) if labels[at + 1] != IGNORED]
    number = {position: place for place, position in enumerate(targets)}
    both = zip(found.student, found.teacher, strict=True)
    kept = [(number[ours], theirs) for ours, theirs in both if ours in number]
    last = kept[-1][1] if kept else 0
    # A compared position is named by the label of the token behind it.
    tokens = [*found.ids, aligner.teacher.tokenizer.eos_token_id or 0][: last + 2]
    compared = {theirs + 1 for _, theirs in kept}
    values = {
        "key": document_of(ids, labels).key,
        "input_ids": tokens,
        "labels": [t if at in compared else IGNORED for at, t in enumerate(tokens)],
        "places": [place for place, _ in kept],
        "num_targets": len(targets),
        "end": list(found.end or ()),
        "problem": found.problem,
    }
    return {_PREFIX + name: values[name] for name in _COLUMNS}


def check_pairable(dataset, kind):
    """Refuse data that a teacher's tokenizer cannot read.

    Raises:
        ValueError: streamed data, or tokens instead of texts.
    """
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"cross_tokenizer reads the {kind} data before training, and a "
            f"{type(dataset).__name__} cannot be; load it whole"
        )
    if "input_ids" in dataset.column_names:
        raise ValueError(
            f"cross_tokenizer needs texts that both tokenizers read, and the {kind} data hold "
            "input_ids; pass them as prompt and completion, messages or text"
        )
