"""Numbers become figures and pages. The only room that draws."""

from distilllens.report.canvas import require_plotting
from distilllens.report.figures import plot_divergence_by_depth
from distilllens.report.inspector import inspector_sections
from distilllens.report.page import render_page, save_figures
from distilllens.report.run_report import (
    Observations,
    Run,
    again_section,
    measured_section,
    observation_sections,
    run_sections,
    training_section,
)
from distilllens.report.texts import Sample
from distilllens.report.tokens import token_text

__all__ = [
    "Observations",
    "Run",
    "Sample",
    "again_section",
    "inspector_sections",
    "measured_section",
    "observation_sections",
    "plot_divergence_by_depth",
    "render_page",
    "require_plotting",
    "run_sections",
    "save_figures",
    "token_text",
    "training_section",
]


def __getattr__(name):
    if name == "show":  # its home is distilllens.show: it reads models, and this room does not
        import distilllens

        return distilllens.show
    raise AttributeError(f"module 'distilllens.report' has no attribute {name!r}")
