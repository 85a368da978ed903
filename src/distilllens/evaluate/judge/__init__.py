"""An LLM judge scores answers and references, through any OpenAI-compatible server."""

from distilllens.evaluate.judge.judge import Judge

__all__ = ["Judge"]
