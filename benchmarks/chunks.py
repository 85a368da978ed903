"""linear_divergence by chunk size: the reason for the default."""

from __future__ import annotations

from benchmarks import loss

ABOUT = "our engine at chunk sizes 16 to 1024"
measure, seconds = loss.measure, loss.seconds


def cases(options) -> list[dict]:
    """N 2048, float32; the default is the row without a chunk size in the part `loss`."""
    tokens, sizes = (32, (4, 8)) if options.toy else (2048, (16, 32, 64, 128, 256, 512, 1024))
    base = {"engine": "chunked", "tokens": tokens, "dtype": "float32", "repeats": 2}
    return [loss.finished({**base, "chunk": size}, options) for size in sizes]
