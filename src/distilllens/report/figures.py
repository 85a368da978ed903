"""PNG figures, drawn with matplotlib (the ``plot`` extra), which loads on first use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike

from distilllens.report.canvas import new_figure


def plot_divergence_by_depth(
    path: str | PathLike,
    depths: Sequence[tuple[int, int]],
    curves: Mapping[str, Sequence[float]],
    *,
    title: str = "Divergence from the teacher, by depth",
    ylabel: str = "Jensen-Shannon divergence (nats per token)",
) -> None:
    """Draw one line a model over pairs (student depth, teacher depth), and save it as a PNG.

    Args:
        path: the file to write; its folder exists.
        depths: the pairs, rising.
        curves: label -> one value a pair, in nats per token, >= 0.

    Raises:
        ValueError: no pair, no curve, or a curve of another length than ``depths``.
        ImportError: matplotlib is missing; the message says how to install it.
    """
    if not depths or not curves:
        raise ValueError("a figure by depth needs at least one pair of depths and one curve")
    for label, values in curves.items():
        if len(values) != len(depths):
            raise ValueError(f"curve {label!r} has {len(values)} values for {len(depths)} depths")
    figure = new_figure(6.4, 4.0)
    axes = figure.subplots()
    for marker, (label, values) in zip("os^Dvx" * len(curves), curves.items(), strict=False):
        axes.plot(range(len(depths)), values, marker=marker, label=label)
    axes.set_xticks(range(len(depths)), [f"{student}:{teacher}" for student, teacher in depths])
    axes.set_xlabel("depth (student : teacher)")
    axes.set_ylabel(ylabel)
    axes.set_title(title)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150, format="png", facecolor="white")
