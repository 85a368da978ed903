"""``distilllens prune``: a teacher with some of its blocks only, as a folder of its own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from distilllens.data import load_records, to_training_examples
from distilllens.data.encode import encode_examples
from distilllens.data.records import place_of
from distilllens.layer_map import Cut, parse_blocks
from distilllens.lens import LogitLens, capture
from distilllens.lens.probe import undisturbed
from distilllens.lens.surgery import cut_config, cut_of, student_from_blocks
from distilllens.loading import (
    check_vocabulary,
    find_tokenizer,
    least_positions,
    load_config,
    size_in_words,
)
from distilllens.train.finite import check_weights
from distilllens.train.merging import load_merged
from distilllens.workflows.model_folder import write_model
from distilllens.workflows.outputs import check_count, check_new_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pruned:
    """What ``prune`` has written.

    Attributes:
        line: where it is, in words.
        cut: the blocks that stay.
        scores: of each block of the teacher, how much it changes the stream; None if not measured.
    """

    line: str
    cut: Cut
    scores: tuple[float, ...] | None

    def table(self) -> str:
        """The scores as lines of text; empty if none were measured."""
        if self.scores is None:
            return ""
        rows = [
            f"{block:5}  {score:8.4f}  {'kept' if block in self.cut.blocks else '-'}"
            for block, score in enumerate(self.scores)
        ]
        return "\n".join(["block    change", *rows])


def check_pruning(
    output: Path,
    blocks: int | str | Sequence[int],
    by: str,
    data,
    drop_ends: bool,
    limit: int,
    max_length: int,
):
    """Refuse arguments that contradict each other, before anything is loaded.

    Raises:
        ValueError: blocks that cannot be read, importance without data or with blocks by index, or
            a folder that exists and is not empty.
        OSError: a folder that cannot be written.
    """
    blocks = parse_blocks(blocks, "--blocks")
    check_count("--limit", limit)
    check_count("--max_length", max_length)
    if by not in ("even", "importance"):
        raise ValueError(f"--by must be even or importance, got {by!r}")
    if by == "importance" and not isinstance(blocks, int):
        raise ValueError(
            "--by importance chooses the blocks itself: give --blocks their number, or leave it out"
        )
    if by == "importance" and not data:
        raise ValueError("--by importance needs --data, texts on which the blocks are measured")
    if by == "even" and (data or drop_ends):
        raise ValueError("--data and --drop_ends belong to --by importance")
    if by == "importance" and blocks < 2 and not drop_ends:
        raise ValueError(
            "--by importance keeps the first and the last block: --blocks must be at least 2, or "
            "set --drop_ends"
        )
    check_new_folder("--output", output)


def prune(
    model: str,
    blocks: int | str | Sequence[int],
    output: str | Path,
    *,
    by: str = "even",
    data: Sequence[str] | None = None,
    drop_ends: bool = False,
    limit: int = 64,
    max_length: int = 512,
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> Pruned:
    """Write a folder of plain transformers: a model with some of its blocks, and its tokenizer.

    The folder has its name only once it is complete.

    Args:
        model: a folder or hub id; of the folder of an adapter, its base model with the adapter
            merged.
        blocks: how many, or which (``layer_map.parse_blocks``).
        by: "even", or "importance": the blocks that change the stream most over ``data``.
        data: files, as ``train_file`` takes them.
        drop_ends: whether "importance" may drop the first and the last block.
        limit: number of records of ``data`` to read.
        max_length: number of tokens to read of a record.
        dtype: "auto" (as the model is saved), "float32", "bfloat16" or "float16".

    Raises:
        ValueError: arguments, model, blocks or data that do not go together; a model that cannot be
            cut exactly.
        OSError: a folder that cannot be written.
    """
    output, blocks = Path(output), parse_blocks(blocks, "--blocks")
    check_pruning(output, blocks, by, data, drop_ends, limit, max_length)
    loading = {"trust_remote_code": trust_remote_code}
    config = load_config("model", model, **loading)
    cut_config(config, blocks)  # before its weights are loaded
    tokenizer = find_tokenizer("model", model, **loading)
    texts = None
    if by == "importance":
        longest = min(max_length, least_positions([config]) or max_length)
        texts = _texts(data, tokenizer, limit, longest)
    logger.info("loading %s", model)
    teacher = load_merged("model", model, dtype=dtype, **loading).requires_grad_(False)
    check_weights("model", teacher)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    logger.info("model: %s, on %s", size_in_words(teacher), device)
    teacher.to(device).eval()
    scores = None
    if texts is not None:
        lens = LogitLens(teacher)
        check_vocabulary(f"model {model!r}", teacher, max(map(max, texts)))
        scores = block_changes(lens, tqdm(texts, desc="measuring", unit="text"))
        blocks = most_important(scores, blocks, drop_ends=drop_ends)
    logger.info("cutting, and comparing with the model's own forward without the other blocks")
    student, _ = student_from_blocks(teacher, blocks)
    cut = cut_of(student.config)
    write_model(student, tokenizer, output)
    size = f"{size_in_words(student)}, of {size_in_words(teacher)}"
    kept = ", ".join(map(str, cut.blocks))
    line = f"wrote {output}: {len(cut.blocks)} of {cut.of} blocks ({kept}); {size}"
    return Pruned(line, cut, None if scores is None else tuple(scores))


def block_changes(lens: LogitLens, texts) -> list[float]:
    """Of each block, 1 - the cosine of the stream before and after it: a mean over all tokens.

    0 is a block that only scales the stream; 2 is the most.

    Args:
        texts: an iterable of token ids, a list for each text.

    Source: block influence, Men et al. 2024, arXiv 2403.03853.
    """
    depths, count = range(lens.num_layers + 1), 0
    sums = torch.zeros(lens.num_layers, dtype=torch.float64)
    with undisturbed(lens.model):
        for ids in texts:
            ids = torch.tensor([ids], device=lens.model.device)
            states = capture(lens, depths, input_ids=ids)
            for block in range(lens.num_layers):
                before, after = states[block].double(), states[block + 1].double()
                cosine = torch.nn.functional.cosine_similarity(before, after, dim=-1)
                sums[block] += (1 - cosine).sum().cpu()
            count += ids.numel()
    return (sums / count).tolist()


def most_important(scores: Sequence[float], number: int, *, drop_ends: bool) -> tuple[int, ...]:
    """The blocks with the highest scores, rising; of equal ones the first.

    Args:
        drop_ends: otherwise the first and the last block are among them whatever their scores.
    """
    ends = () if drop_ends else (0, len(scores) - 1)
    ranked = sorted(range(len(scores)), key=lambda block: (block not in ends, -scores[block]))
    return tuple(sorted(ranked[:number]))


def _texts(data, tokenizer, limit, length):
    if tokenizer is None:
        raise ValueError("--by importance needs the model's tokenizer, and its folder has none")
    examples = to_training_examples(load_records(data)[:limit])
    names = [place_of(example, f"record {n}") for n, example in enumerate(examples, 1)]
    encoded = encode_examples(examples, tokenizer, names, length)
    texts = [ids[:length] for ids, _ in encoded if len(ids)]
    if not texts:
        raise ValueError(f"none of the {len(examples)} records of --data has a token")
    return texts
