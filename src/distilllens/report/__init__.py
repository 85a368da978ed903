"""Numbers become figures. The only room that draws."""

from distilllens.report.figures import plot_divergence_by_depth

__all__ = ["plot_divergence_by_depth"]
