"""Numbers become figures and pages. The only room that draws."""

from distilllens.report.canvas import require_plotting
from distilllens.report.figures import plot_divergence_by_depth
from distilllens.report.inspector import inspector_sections
from distilllens.report.notebook import Shown, show
from distilllens.report.page import render_page, save_figures
from distilllens.report.tokens import token_text

__all__ = [
    "Shown",
    "inspector_sections",
    "plot_divergence_by_depth",
    "render_page",
    "require_plotting",
    "save_figures",
    "show",
    "token_text",
]
