"""The README.md of a trained model: its teacher, its start and its loss."""

from __future__ import annotations

from importlib.metadata import version

LIBRARIES = ("distilllens", "trl", "transformers", "torch")


def model_card(
    model_name: str, student: str, teacher: str | None, objective, lens_norm: bool
) -> str:
    """Markdown that begins with the hub's metadata."""
    how, tags = "supervised fine-tuning", ["trl", "sft"]
    if teacher is not None:
        how, tags = "knowledge distillation", ["trl", "distillation"]
        if objective.lens_weight > 0:
            how, tags = f"{how} through the logit lens", [*tags, "logit-lens"]
    head = ["---", "library_name: transformers", "tags:", *(f"- {tag}" for tag in tags), "---"]
    rows = _sft_rows(student) if teacher is None else _rows(student, teacher, objective, lens_norm)
    return "\n".join(
        [
            *head,
            "",
            f"# {model_name}",
            "",
            f"Made by {how} with DistillLens (arXiv 2602.13567).",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in rows),
            "",
            "Versions: " + ", ".join(f"{name} {version(name)}" for name in LIBRARIES) + ".",
            "",
        ]
    )


def _sft_rows(student):
    return [("started from", f"`{student}`"), ("loss", "cross-entropy")]


def _rows(student, teacher, objective, lens_norm):
    output = lens = "none (weight 0)"
    if objective.output_weight > 0:
        output = _divergence(objective.output_divergence, objective.output_kwargs)
    if objective.lens_weight > 0:
        lens = _divergence(objective.lens_divergence, objective.lens_kwargs)
    return [
        ("student started from", f"`{student}`"),
        ("teacher", f"`{teacher}`"),
        (
            "layer map (student:teacher)",
            f"`{objective.layer_map}`" if objective.lens_weight else "none",
        ),
        ("output divergence", output),
        ("lens divergence", lens),
        ("lens reads through the final norm", "yes" if lens_norm else "no"),
        (
            "weights (output, lens, cross-entropy)",
            f"{objective.output_weight:g}, {objective.lens_weight:g}, "
            f"{objective.cross_entropy_weight:g}",
        ),
        ("temperature", f"{objective.temperature:g}"),
    ]


def _divergence(name, kwargs):
    given = ", ".join(f"{key} {value:g}" for key, value in kwargs.items())
    return f"{name} ({given})" if given else name
