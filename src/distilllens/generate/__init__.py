"""Prompts in, answers out: a transformers backend and a vLLM backend."""
