"""``distilllens inspect``: models and texts, read at every depth, on one HTML page."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from distilllens.data import load_records, to_training_examples
from distilllens.data.encode import encode_examples, encode_text
from distilllens.layer_map import LayerMap
from distilllens.lens import LogitLens, tuned_lens
from distilllens.lens.reading import Passage, inspect_models
from distilllens.lens.surgery import cut_of
from distilllens.loading import (
    check_tokenizers,
    check_vocabulary,
    find_tokenizer,
    least_positions,
    load_config,
    load_model,
    saved_dtype,
    size_in_words,
)
from distilllens.names import shortest_names
from distilllens.report import (
    figure_names,
    inspector_sections,
    render_page,
    save_figures,
    token_text,
)
from distilllens.workflows.inspect_checks import check_inspection
from distilllens.workflows.inspect_kinds import (
    as_read,
    check_kinds,
    encode_pairs,
    note_of,
    tokens_of,
)
from distilllens.workflows.outputs import check_figures, write_page

logger = logging.getLogger(__name__)


def write_inspection(
    output: str | Path,
    *,
    teacher: str | None = None,
    students: Sequence[str] = (),
    model: str | None = None,
    prompt: str | None = None,
    data: Sequence[str] | None = None,
    limit: int = 8,
    max_length: int = 512,
    lens_layers: str | int = "auto",
    lens_readout: str = "logit",
    dtype: str = "auto",
    figures: str | Path | None = None,
    trust_remote_code: bool = False,
) -> str:
    """Read models at every depth, write the page and figures; returns a line on what was written.

    Args:
        output: the page to write.
        teacher, students: folders or hub ids; or
        model: a single model, for the classic logit lens.
        prompt: a text of which every token is read; of encoder-decoders, what the encoder reads,
            and every token of the first model's answer is read; or
        data: data files of which the tokens that predict a response are read.
        limit: number of records of ``data`` to read.
        max_length: number of tokens to read of a record.
        lens_layers: the depth pairs used in training, to be marked.
        lens_readout: "logit", or "tuned": each inner depth is read through an affine map, fitted to
            the model's own output on the records of ``data`` behind the first ``limit``.
        dtype: "auto" (each model as it was saved), "float32", "bfloat16" or "float16".
        figures: a folder for all figures as PNG and SVG; none by default.

    Raises:
        ValueError: arguments, models, tokenizers, depths or texts that do not go together.
        OSError: a file that cannot be written.
        ImportError: matplotlib is missing.
    """
    output, figures = Path(output), figures and Path(figures)
    check_inspection(
        output,
        teacher=teacher,
        students=students,
        model=model,
        prompt=prompt,
        data=data,
        limit=limit,
        max_length=max_length,
        figures=figures,
        lens_readout=lens_readout,
    )
    names = [model] if model else [teacher, *students]
    roles = ["model"] if model else ["teacher", *["student"] * len(students)]
    models = list(zip(roles, names, strict=True))
    loading = {"trust_remote_code": trust_remote_code}
    configs = [load_config(role, name, **loading) for role, name in models]
    encodes = check_kinds(models, configs)
    tokenizer, differences = _shared_tokenizer(models, **loading)
    positions = least_positions(configs)
    fitting = ()
    if prompt is not None:
        passages, source = [_prompt(prompt, tokenizer, positions)], "one prompt"
    else:
        length, records = min(max_length, positions or max_length), load_records(data)
        passages, source = _passages(records, tokenizer, limit, length, encodes)
        if lens_readout == "tuned":
            fitting = _fitting_passages(records[limit:], tokenizer, limit, length, encodes)
    ids = [tokens_of(passage) for passage in passages]
    names_of_texts = [f"text {number}" for number in range(1, len(passages) + 1)]
    for unshared in differences:
        unshared.check(ids, tokenizer, names_of_texts)
    found, note = _read(models, passages, fitting, lens_layers, dtype, loading)
    labels = _labels(names)
    sections = inspector_sections(found, labels, partial(token_text, tokenizer))
    first, *others = labels
    title = f"{', '.join(others)} beside {first}" if others else f"Logit lens of {first}"
    dtypes = (
        [dtype] if dtype != "auto" else [saved_dtype(config) or "float32" for config in configs]
    )
    source += ", through a lens tuned on the records behind them" if fitting else ""
    lead = _lead(models, source, dtypes, found.trained) + note
    page = render_page(title, lead, sections)
    return _write(output, page, figures, sections)


def _read(models, passages, fitting, lens_layers, dtype, loading):
    """The models at every depth, each on all passages: an Inspection, and a note on its kind."""
    lenses = [_lens(role, name, dtype, **loading) for role, name in models]
    largest = max(max(tokens_of(passage)) for passage in (*passages, *fitting))
    for (role, name), lens in zip(models, lenses, strict=True):
        check_vocabulary(f"{role} {name!r}", lens.model, largest)
    passages, fitting = as_read(lenses[0], passages), as_read(lenses[0], fitting)
    if fitting:
        lenses = [
            _fitted(role, lens, fitting) for (role, _), lens in zip(models, lenses, strict=True)
        ]
    trained = [pairs_of(lens_layers, student, lenses[0]) for student in lenses[1:]]
    bar = tqdm(passages, desc="reading", unit="text", disable=len(passages) == 1)
    return inspect_models(lenses[0], bar, lenses[1:], trained=trained), note_of(lenses[0])


def pairs_of(lens_layers: str | int, student: LogitLens, teacher: LogitLens) -> LayerMap | tuple:
    """The depth pairs of training for two models; none for "auto" between shallow ones."""
    layers, cut = (student.num_layers, teacher.num_layers), cut_of(student.model.config)
    return LayerMap.resolve_or_none(lens_layers, *layers, cut) or ()


def _write(output, page, figures, sections):
    if figures is not None:
        check_figures(figures, figure_names(sections))
    write_page(output, page)
    written = f"wrote {output} ({len(page.encode()) / 1e6:.1f} MB)"
    if figures is None:
        return written
    figures.mkdir(parents=True, exist_ok=True)
    save_figures(sections, figures)
    return f"{written}, and the figures into {figures}"


def _shared_tokenizer(models, **loading):
    """The first model's that has one, and the added tokens that it and each other do not share."""
    found = [(name, find_tokenizer(role, name, **loading)) for role, name in models]
    there = [(name, tokenizer) for name, tokenizer in found if tokenizer is not None]
    if not there:
        raise ValueError(f"no tokenizer found for {models[0][1]!r}; save one into its folder")
    differences = []
    for name, tokenizer in there[1:]:
        try:
            differences.append(check_tokenizers(tokenizer, there[0][1]))
        except ValueError as error:
            raise ValueError(f"{name!r} beside {there[0][0]!r}: {error}") from error
    return there[0][1], differences


def _lens(role, name, dtype, **loading):
    logger.info("loading %s", name)
    model = load_model(role, name, every_kind=True, dtype=dtype, **loading)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    logger.info("%s: %s, on %s", role, size_in_words(model.requires_grad_(False)), device)
    return LogitLens(model.to(device).eval())


def _fitted(role, lens, passages):
    """A lens tuned on passages."""
    bar = tqdm(passages, desc=f"tuned lens of the {role}", unit="text", leave=False)
    lens, count = tuned_lens(lens, bar)
    logger.info("the tuned lens of the %s is fitted to %d tokens of other records", role, count)
    return lens


def _fitting_passages(records, tokenizer, limit, length, encodes):
    """Passages of the records that are not shown."""
    if not records:
        raise ValueError(
            f"--lens_readout tuned is fitted to the records behind the first {limit}, and --data "
            "has no more; lower --limit, or give more data"
        )
    return _passages(records, tokenizer, len(records), length, encodes)[0]


def _passages(records, tokenizer, limit, length, encodes):
    """The responses of the first records, and how they were chosen, a sentence."""
    examples = to_training_examples(records[:limit])
    names = [f"record {number}" for number in range(1, len(examples) + 1)]
    if encodes:
        encoded = encode_pairs(examples, tokenizer, names, length)
        passages = [Passage(ids, torch.arange(len(ids)), source) for source, ids in encoded]
    else:
        encoded = encode_examples(examples, tokenizer, names, length)
        passages = [p for ids, first in encoded if (p := target_passage(ids, first, length))]
    if not passages:
        raise ValueError(
            f"none of the {len(encoded)} records has a response within {length} tokens; "
            "raise --max_length, or shorten the prompts"
        )
    return passages, f"the first {len(encoded)} of {len(records)} records, {length} tokens at most"


def target_passage(ids: list[int], first: int, length: int) -> Passage | None:
    """The targets of an encoded example within its first ``length`` tokens; None without any."""
    ids = torch.tensor(ids[:length], dtype=torch.long)
    # A position predicts the token after it, so nothing predicts the first token.
    places = torch.arange(max(first, 1), max(first, 1, len(ids))) - 1
    return Passage(ids, places) if len(places) else None


def _prompt(text, tokenizer, positions):
    ids = torch.tensor(encode_text(text, tokenizer), dtype=torch.long)
    if len(ids) == 0:
        raise ValueError(f"the prompt {text!r} has no token; give it some text")
    if positions is not None and len(ids) > positions:
        raise ValueError(
            f"the prompt has {len(ids)} tokens, beyond the {positions} positions of these models; "
            "shorten it"
        )
    return Passage(ids, torch.arange(len(ids)))


def _labels(names):
    """``shortest_names``; models named twice are numbered."""
    labels = shortest_names(names)
    if len(set(labels)) == len(labels):
        return labels
    return [f"{label} ({number})" for number, label in enumerate(labels)]


def _lead(models, source, dtypes, trained):
    shown = "; ".join(f"{role}: {name}" for role, name in models)
    pairs = dict.fromkeys(",".join(f"{s}:{t}" for s, t in each) for each in trained if each)
    paired = f" Paired depths, student:teacher: {' and '.join(pairs)}." if pairs else ""
    precision = " and ".join(dict.fromkeys(dtypes))
    return f"{shown}. Read from {source}, in {precision}.{paired}"
