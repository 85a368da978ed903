"""Sizes of tiles, and where their rows begin."""

import sys

import pytest
import torch

from distilllens.linear_divergence import tiles
from distilllens.linear_divergence.tiles import default_chunk_size, new_tile, product_slices


@pytest.mark.parametrize(
    ("device", "free", "rows", "vocabulary", "expected"),
    [
        # The CPU: 256 MiB, 16 to N rows.
        ("cpu", 2**36, 10**6, 50257, 256),
        ("cpu", 2**36, 10**6, 151936, 64),
        ("cpu", 2**36, 10**6, 10**7, 16),
        ("cpu", 2**36, 47, 31, 47),
        ("cpu", 2**36, 0, 31, 1),
        # A quarter of what is free, below 16 rows too: 512 MiB / 4 = 128 MiB, 8 MiB / 4 = 2 MiB.
        ("cpu", 2**29, 10**6, 50257, 128),
        ("cpu", 2**23, 10**6, 50257, 2),
        ("cpu", 0, 10**6, 50257, 1),
        ("cpu", None, 10**6, 50257, 256),
        # An accelerator: 2 GiB, a quarter of what is free, and as the CPU if that is unknown.
        ("cuda", 2**36, 10**6, 50257, 2048),
        ("cuda", 2**36, 10**6, 151936, 512),
        ("cuda", 2**30, 10**6, 151936, 64),
        ("cuda", 2**36, 47, 31, 47),
        ("mps", None, 10**6, 50257, 256),
    ],
)
def test_default_chunks(device, free, rows, vocabulary, expected, monkeypatch):
    """A power of two of which four float32 tiles fit the budget and the free memory."""
    monkeypatch.setattr(tiles, "free_bytes", lambda asked: free)
    assert default_chunk_size(rows, vocabulary, torch.device(device)) == expected


def test_free_bytes(monkeypatch):
    """Plausible on Linux, None where it is unknown; on CUDA the driver's and the allocator's."""
    free = tiles.free_bytes(torch.device("cpu"))
    assert free > 2**20 if sys.platform == "linux" else free is None
    assert tiles.free_bytes(torch.device("meta")) is None
    for name, value in {
        "mem_get_info": (700, 1000),
        "memory_reserved": 90,
        "memory_allocated": 40,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert tiles.free_bytes(torch.device("cuda")) == 700 + 90 - 40


@pytest.mark.parametrize(
    ("dtype", "vocabulary", "free", "expected"),
    [
        # 1 GiB of two tiles: 2^30 / (2 x 2 x 50257) = 5341 rows, of 151936 words 1766.
        (torch.bfloat16, 50257, 2**36, 4096),
        (torch.bfloat16, 151936, 2**36, 1024),
        (torch.float32, 50257, 2**36, 2048),
        # A quarter of what is free: 2^28 / (2 x 2 x 50257) = 1335 rows.
        (torch.bfloat16, 50257, 2**30, 1024),
    ],
)
def test_default_chunks_of_a_kernel(dtype, vocabulary, free, expected, monkeypatch):
    """A kernel holds two tiles in their own dtype, so a chunk may have more rows."""
    monkeypatch.setattr(tiles, "free_bytes", lambda asked: free)
    device = torch.device("cuda")
    assert default_chunk_size(10**6, vocabulary, device, dtype) == expected
    assert default_chunk_size(47, vocabulary, device, dtype) == 47


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("vocabulary", [1, 31, 47, 5003, 50257])
def test_rows_of_a_tile_are_aligned(vocabulary, dtype, monkeypatch):
    """Every row begins at a multiple of 128 bytes; Triton sees a multiple of 16 numbers."""
    monkeypatch.setattr(tiles, "alignment_matters", lambda device: True)
    hidden = torch.empty(3, 8, dtype=dtype)
    tile = new_tile(hidden, 5, vocabulary)
    assert tile.shape == (5, vocabulary) and tile.dtype == dtype and tile.stride(1) == 1
    assert tile.stride(0) * dtype.itemsize % 128 == 0 and tile.stride(0) % 16 == 0
    assert tile.stride(0) - vocabulary < 128 // dtype.itemsize
    # The last row may be read to its full width.
    assert tile.untyped_storage().nbytes() == 5 * tile.stride(0) * dtype.itemsize


@pytest.mark.parametrize(
    ("dtype", "vocabulary", "expected"),
    [
        (torch.bfloat16, 50257, [50256, 50257]),
        (torch.bfloat16, 50260, [50256, 50260]),
        (torch.float32, 50259, [50256, 50259]),
        (torch.float64, 47, [46, 47]),
        (torch.bfloat16, 151936, [151936]),
        (torch.bfloat16, 7, [7]),
    ],
)
def test_products_are_aligned(dtype, vocabulary, expected, monkeypatch):
    """The largest multiple of 16 bytes and the rest; one slice where that is all or nothing."""
    monkeypatch.setattr(tiles, "alignment_matters", lambda device: True)
    slices = product_slices(torch.empty(1, 1, dtype=dtype), vocabulary)
    assert [words.stop for words in slices] == expected
    assert [words.start for words in slices] == [0, *expected[:-1]]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_nothing_is_padded_off_cuda(device):
    """Tiles are contiguous, and products take the whole vocabulary at once."""
    hidden = torch.empty(3, 8, device=device)
    assert new_tile(hidden, 5, 47).is_contiguous()
    assert product_slices(hidden, 47) == [slice(0, 47)]
    assert tiles.alignment_matters(torch.device("cuda"))
