"""Bounds on what torch keeps of its CPU kernels."""

from __future__ import annotations

import os

# oneDNN, and ideep between torch and oneDNN, keep a compiled product for every shape that they
# meet, 1024 in each of two caches and every thread. Batches of text have a new shape at nearly
# every step, so a training run in bfloat16 grows by gigabytes. A step needs some thirty products;
# the caches are read when the first of them runs.
VARIABLES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
_CAPACITY = "64"


def bound_kernel_caches():
    """Let torch keep 64 compiled CPU products, unless the environment has another number."""
    for variable in VARIABLES:
        os.environ.setdefault(variable, _CAPACITY)
