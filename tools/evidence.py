"""Write the tables and the figure of docs/evidence.md from the rows in studies/results.

usage: python tools/evidence.py    (the figure needs the extra "plot")
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE, FIGURE = ROOT / "docs" / "evidence.md", ROOT / "docs" / "evidence.png"
RESULTS = ROOT / "studies" / "results"
TITLES = {
    "stories260k_few": "stories260K, 160 texts × 10",
    "smollm2_few": "SmolLM2, 250 rows × 10",
    "smollm2_once": "SmolLM2, 2,500 rows once",
    "smollm2_more": "SmolLM2, 1,000 rows × 10",
    "smollm2_many": "SmolLM2, 8,000 rows once",
}
METRIC, RANGE = "kl", 0.15  # nats; what is farther away stands at the edge, with its value


def with_tables(text: str) -> str:
    """The page with the tables that each study has left in RESULTS between its marks."""

    def table(found):
        return f"{found[1]}\n{tables_of(found[2])}\n<!-- end -->"

    return re.sub(r"(<!-- study: (\w+) -->)\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def tables_of(name: str) -> str:
    """A study's scores, differences and depths; sentences and learning rates are a link away."""
    text = (RESULTS / f"{name}.md").read_text("utf-8")
    head, *sections = re.split(r"^(?=### )", text, flags=re.MULTILINE)
    kept = [part.strip() for part in sections if not part.startswith("### Learning rates")]
    link = (
        f"Sentences, and learning rates that were tried: [{name}.md](../studies/results/{name}.md)."
    )
    return "\n\n".join([head.splitlines()[0], *kept, link])


def differences(name: str) -> list[tuple[str, dict]]:
    """Method -> its difference from the baseline, the best first."""
    study = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    found = [
        (method, row)
        for method, one in study["methods"].items()
        for row in one.get("differences", ())
        if row["metric"] == METRIC
    ]
    return sorted(found, key=lambda each: each[1]["difference"])


def draw(path: Path):
    """A panel a study: differences with their intervals; hollow where one seed gives none."""
    from matplotlib.figure import Figure

    there = [name for name in TITLES if (RESULTS / f"{name}.json").exists()]
    panels = {name: differences(name) for name in there}
    heights = [len(rows) + 1.6 for rows in panels.values()]
    figure = Figure(figsize=(8, 0.21 * sum(heights) + 0.6), layout="constrained")
    axes = figure.subplots(len(panels), sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    for panel, (name, rows) in zip(axes, panels.items(), strict=True):
        panel.axvline(0, color="0.6", linewidth=1)
        for place, (_, row) in enumerate(rows):
            _point(panel, place, row)
        panel.set_yticks(range(len(rows)), [method for method, _ in rows], fontsize=7)
        panel.set_ylim(len(rows) - 0.4, -0.6)
        panel.set_xlim(-RANGE, RANGE)
        panel.set_title(TITLES[name], fontsize=9, loc="left")
        panel.grid(axis="x", alpha=0.3)
    axes[-1].set_xlabel(
        "KL(teacher ‖ student), nats per token: difference from forward KL without a lens"
    )
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _point(panel, place, row):
    value, has_interval = row["difference"], row["low"] is not None
    color = {"better": "tab:green", "worse": "tab:red"}.get(row["verdict"], "0.35")
    if abs(value) > RANGE:
        side = 1 if value > 0 else -1
        text = f"{value:+.2f} {'→' if side > 0 else '←'}".replace("-", "−")
        where = {"ha": "right" if side > 0 else "left", "va": "center", "fontsize": 7}
        panel.text(side * RANGE * 0.99, place, text, color=color, **where)
        return
    if has_interval:
        panel.plot([row["low"], row["high"]], [place, place], color=color, linewidth=1.5)
    face = color if has_interval else "white"
    panel.plot(value, place, "o", color=color, markerfacecolor=face, markersize=4)


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text("utf-8")), "utf-8")
    draw(FIGURE)
