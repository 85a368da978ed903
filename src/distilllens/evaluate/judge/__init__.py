"""A language model scores answers beside their references, through any OpenAI-compatible server."""

from distilllens.evaluate.judge.judge import Judge

__all__ = ["Judge"]
