"""The inspection that the report tests read too."""

from report.conftest import inspected

__all__ = ["inspected"]
