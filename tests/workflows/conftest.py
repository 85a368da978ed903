"""The inspection fixture of the report tests."""

from report.conftest import inspected

__all__ = ["inspected"]
