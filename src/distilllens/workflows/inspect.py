"""The inspector's work: models and texts, one reading of all, a page. It imports torch."""

from __future__ import annotations

from functools import partial

import torch
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from distilllens.data import load_records, to_training_examples
from distilllens.data.encode import encode_example
from distilllens.files import write_atomically
from distilllens.layer_map import LayerMap
from distilllens.lens import LogitLens
from distilllens.lens.reading import Passage, inspect_models
from distilllens.loading import (
    check_tokenizers,
    check_vocabulary,
    find_tokenizer,
    least_positions,
    load_config,
    load_model,
    shortest_names,
)
from distilllens.report import inspector_sections, render_page, save_figures, token_text


def run(args) -> str:
    """Read the models of the flags, write page and figures; returns what was written, a sentence.

    Raises:
        ValueError: models, tokenizers, depths or texts that do not go together.
        OSError: a file that cannot be written.
    """
    transformers_logging.disable_progress_bar()
    names = [args.model] if args.model else [args.teacher, *args.student]
    roles = ["model"] if args.model else ["teacher", *["student"] * len(args.student)]
    models = list(zip(roles, names, strict=True))
    trusted = args.trust_remote_code
    configs = [load_config(role, name, trust_remote_code=trusted) for role, name in models]
    tokenizer = _shared_tokenizer(models, args)
    documents, count = _documents(args, tokenizer, least_positions(configs))
    lenses = [_lens(role, name, args) for role, name in models]
    largest = max(int(document.ids.max()) for document in documents)
    for (role, name), lens in zip(models, lenses, strict=True):
        check_vocabulary(f"{role} {name!r}", lens.model, largest)
    trained = [
        LayerMap.resolve_or_none(args.lens_layers, student.num_layers, lenses[0].num_layers) or ()
        for student in lenses[1:]
    ]
    found = inspect_models(
        lenses[0],
        tqdm(documents, desc="reading", unit="text", disable=len(documents) == 1),
        lenses[1:],
        trained=trained,
    )
    labels = _labels(names)
    sections = inspector_sections(found, labels, partial(token_text, tokenizer))
    teacher, *students = labels
    title = f"{', '.join(students)} beside {teacher}" if students else f"Logit lens of {teacher}"
    page = render_page(title, _lead(args, models, trained, count), sections)
    return _write(args, page, sections)


def _write(args, page, sections):
    write_atomically(args.output, page)
    written = f"wrote {args.output} ({len(page.encode()) / 1e6:.1f} MB)"
    if args.figures is None:
        return written
    args.figures.mkdir(parents=True, exist_ok=True)
    save_figures(sections, args.figures)
    return f"{written}, and the figures into {args.figures}"


def _shared_tokenizer(models, args):
    """The first model's that has one; all others must number the same tokens alike."""
    found = [
        (name, find_tokenizer(role, name, trust_remote_code=args.trust_remote_code))
        for role, name in models
    ]
    there = [(name, tokenizer) for name, tokenizer in found if tokenizer is not None]
    if not there:
        raise ValueError(f"no tokenizer lies beside {models[0][1]!r}; save one into its folder")
    for name, tokenizer in there[1:]:
        try:
            check_tokenizers(tokenizer, there[0][1])
        except ValueError as error:
            raise ValueError(f"{name!r} beside {there[0][0]!r}: {error}") from error
    return there[0][1]


def _lens(role, name, args):
    model = load_model(
        role, name, dtype=getattr(torch, args.dtype), trust_remote_code=args.trust_remote_code
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return LogitLens(model.to(device).eval())


def _documents(args, tokenizer, positions):
    """The texts as documents, and how they were chosen, a sentence."""
    if args.prompt is not None:
        return [_prompt(args.prompt, tokenizer, positions)], "one prompt"
    records = load_records(args.data)
    length = min(args.max_length, positions or args.max_length)
    encoded = [
        encode_example(example, tokenizer)
        for example in to_training_examples(records[: args.limit])
    ]
    documents = [d for ids, first in encoded if (d := target_passage(ids, first, length))]
    if not documents:
        raise ValueError(
            f"none of the {len(encoded)} records has a response within {length} tokens; "
            "raise --max_length, or shorten the prompts"
        )
    return documents, f"the first {len(encoded)} of {len(records)} records, {length} tokens at most"


def target_passage(ids: list[int], first: int, length: int) -> Passage | None:
    """An encoded example as a document, its targets within ``length`` to look at; None without."""
    ids = torch.tensor(ids[:length], dtype=torch.long)
    # A position is read for the token behind it: the first of a text is nobody's prediction.
    places = torch.arange(max(first, 1), max(first, 1, len(ids))) - 1
    return Passage(ids, places) if len(places) else None


def _prompt(text, tokenizer, positions):
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.long)
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


def _lead(args, models, trained, count):
    said = "; ".join(f"{role}: {name}" for role, name in models)
    pairs = dict.fromkeys(str(m) for m in trained if m)
    paired = f" Paired depths, student:teacher: {' and '.join(pairs)}." if pairs else ""
    return f"{said}. Read from {count}, in {args.dtype}.{paired}"
