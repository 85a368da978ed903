"""Figures and HTML pages from numbers; the only package that draws."""

from distilllens.report.by_depth import plot_divergence_by_depth
from distilllens.report.canvas import require_plotting
from distilllens.report.inspector import inspector_sections
from distilllens.report.page import Section, figure_names, render_page, save_figures
from distilllens.report.run_report import (
    Observations,
    Run,
    measurements_section,
    observation_sections,
    reproduce_section,
    run_sections,
    training_section,
)
from distilllens.report.texts import Listing, Sample
from distilllens.report.tokens import token_text

__all__ = [
    "Listing",
    "Observations",
    "Run",
    "Sample",
    "Section",
    "figure_names",
    "inspector_sections",
    "measurements_section",
    "observation_sections",
    "plot_divergence_by_depth",
    "render_page",
    "reproduce_section",
    "require_plotting",
    "run_sections",
    "save_figures",
    "token_text",
    "training_section",
]


def __getattr__(name):
    if name == "show":  # an alias: show reads models, so it is defined outside of this package
        import distilllens

        return distilllens.show
    raise AttributeError(f"module 'distilllens.report' has no attribute {name!r}")
