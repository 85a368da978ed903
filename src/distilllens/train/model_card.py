"""The README.md of a trained model: its teacher, its start and its loss."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from distilllens.objective import TERMS
from distilllens.places import is_local

LIBRARIES = ("distilllens", "trl", "transformers", "torch")
_MARK = "with DistillLens (arXiv 2602.13567)."


def versions() -> dict[str, str]:
    """The versions of the libraries that affect a run's result."""
    return {name: version(name) for name in LIBRARIES}


def model_card(
    model_name: str,
    student: str,
    teacher: str | None,
    objective,
    lens_norm: bool,
    *,
    lens_readout: str = "logit",
    on_policy_fraction: float = 0.0,
    datasets: str | Sequence[str] = (),
    more_tags: Iterable[str] = (),
    adapter_folder: str | None = None,
) -> str:
    """Markdown that begins with the hub's metadata.

    Args:
        student: what training started from; the base model of an adapter.
        on_policy_fraction: the share of steps on answers of the student's own.
        datasets: the id of a data set on the hub; or the names of all sources of the data, of which
            those that are such ids go into the metadata, too.
        adapter_folder: where a PEFT adapter was saved, to show how to load it; None for a model.
    """
    how, tags = "supervised fine-tuning", ["trl", "sft"]
    if teacher is not None:
        how, tags = "knowledge distillation", [*tags, "distillation"]
        if objective.lens_weight > 0:
            how, tags = f"{how} through the logit lens", [*tags, "logit-lens"]
    tags = dict.fromkeys([*tags, *more_tags])
    library = "transformers"
    if adapter_folder is not None:
        library, tags = "peft", {**tags, "lora": None}
    # The hub takes names of its own alone.
    base = [f"base_model: {student}"] if _is_hub_id(student) else []
    sources = [] if isinstance(datasets, str) else [*datasets]
    ids = [name.partition("[")[0] for name in sources]  # of org/name[split]
    ids = [name for name in dict.fromkeys(ids) if "/" in name and _is_hub_id(name)]
    ids = [datasets] if isinstance(datasets, str) else ids
    data = ["datasets:", *(f"- {json.dumps(name)}" for name in ids)] if ids else []
    lists = ["tags:", *(f"- {_plain(tag)}" for tag in tags), *data]
    head = ["---", f"library_name: {library}", *base, *lists, "---"]
    read = "yes" if lens_norm else "no"
    read += ", behind a tuned lens" if lens_readout == "tuned" else ""
    rows = _sft_rows(student) if teacher is None else _rows(student, teacher, objective, read)
    if on_policy_fraction:
        rows.append(("steps on the student's own answers", f"{on_policy_fraction:g} of all"))
    rows += [("trained on", ", ".join(map(_code, sources)))] if sources else []
    return "\n".join(
        [
            *head,
            "",
            f"# {_literal(model_name)}",
            "",
            f"Made by {how} {_MARK}",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in rows),
            "",
            *([] if adapter_folder is None else _loading(student, adapter_folder)),
            "Versions: " + ", ".join(map(" ".join, versions().items())) + ".",
            "",
        ]
    )


def _plain(tag):
    """A tag as YAML reads it."""
    return tag if re.fullmatch(r"[a-zA-Z][\w-]*", tag) else json.dumps(tag)


def _is_hub_id(name):
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and not is_local(name)


def _loading(base, folder):
    folder = f"from_pretrained({json.dumps(folder, ensure_ascii=False)})"
    return [
        f"This is an adapter of {_code(base)}, which is loaded with it:",
        "",
        "```python",
        "from peft import AutoPeftModelForCausalLM",
        "from transformers import AutoTokenizer",
        "",
        f"model = AutoPeftModelForCausalLM.{folder}",
        f"tokenizer = AutoTokenizer.{folder}",
        "```",
        "",
    ]


def may_write_card(path: Path) -> bool:
    """Whether there is no file at a path, or one that ``model_card`` has written."""
    if not path.exists() and not path.is_symlink():
        return True
    return path.is_file() and _MARK in path.read_text(encoding="utf-8", errors="replace")


def _literal(text):
    """A text that Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|$~&])", r"\\\1", " ".join(str(text).split()))


def _code(text):
    """A text as code in a cell of a table, with whatever it contains."""
    text = " ".join(str(text).split()).replace("|", r"\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"


def _sft_rows(student):
    return [("started from", _code(student)), ("loss", "cross-entropy")]


def _rows(student, teacher, objective, read):
    weights = {term: getattr(objective, term.weight_field) for term in TERMS}
    weights = {term: weight for term, weight in weights.items() if weight or not term.optional}
    norm = ("lens reads through the final norm", read)
    names = ", ".join(term.label.removesuffix(" divergence") for term in weights)
    return [
        ("student started from", _code(student)),
        ("teacher", _code(teacher)),
        (
            "layer map (student:teacher)",
            f"`{objective.layer_map}`"
            if objective.lens_weight or objective.needs_features()
            else "none",
        ),
        *((t.label, _divergence(objective, t)) for t in weights if t.divergence_field),
        *([norm] if any(t.has_pairs and weight > 0 for t, weight in weights.items()) else []),
        (f"weights ({names})", ", ".join(f"{weight:g}" for weight in weights.values())),
        ("temperature", f"{objective.temperature:g}"),
    ]


def _divergence(objective, term):
    if getattr(objective, term.weight_field) == 0:
        return "none (weight 0)"
    kwargs = getattr(objective, term.kwargs_field) if term.kwargs_field else {}
    given = ", ".join(f"{key} {value:g}" for key, value in kwargs.items())
    name = getattr(objective, term.divergence_field)
    return f"{name} ({given})" if given else name
