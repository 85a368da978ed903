"""Evaluation of models: answers to benchmarks, metrics, and scores with standard errors."""
