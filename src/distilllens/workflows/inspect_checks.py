"""Bad arguments of ``distilllens inspect``, refused before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distilllens.workflows.outputs import check_count, check_folder, check_page


def check_inspection(
    output: Path | None,
    *,
    teacher: str | None,
    students: Sequence[str],
    model: str | None,
    prompt: str | None,
    data: Sequence[str] | None,
    limit: int,
    max_length: int,
    figures: Path | None,
    lens_readout: str = "logit",
) -> None:
    """Refuse arguments that do not go together; they are those of ``write_inspection``.

    Raises:
        ValueError: not one choice of models and one of texts, or a page that cannot be written.
        OSError: a folder without write permission.
        ImportError: matplotlib is missing.
    """
    if model is None and (teacher is None or not students):
        raise ValueError("name --teacher and at least one --student, or --model alone")
    if model is not None and (teacher is not None or students):
        raise ValueError("--model stands alone: leave out --teacher and --student, or --model")
    if (prompt is None) == (data is None):
        raise ValueError("give the text by either --prompt or --data")
    if prompt is not None and not prompt.strip():
        raise ValueError(f"--prompt is empty ({prompt!r}); give it some text")
    if lens_readout not in ("logit", "tuned"):
        raise ValueError(f"--lens_readout is logit or tuned, got {lens_readout!r}")
    if lens_readout == "tuned" and data is None:
        raise ValueError(
            "--lens_readout tuned needs --data: it is fitted to the records behind the first "
            f"{limit} (--limit), which are shown"
        )
    check_count("--limit", limit)
    check_count("--max_length", max_length)
    if output is None:
        raise ValueError("--output is missing: the page to write, such as page.html")
    check_page(output)
    if figures is not None:
        check_folder("--figures", figures)
    from distilllens.report.canvas import require_plotting  # imports torch

    require_plotting()
