"""The judge's server."""

from __future__ import annotations

from distilllens.generate.server import OPENAI, QuestionRefused, ServerFailed, Stopped
from distilllens.generate.server import Server as _Server

__all__ = ["OPENAI", "QuestionRefused", "Server", "ServerFailed", "Stopped"]


class Server(_Server):
    """A server whose messages are about the judge's."""

    who, asker = "the judge's server", "a judge"
