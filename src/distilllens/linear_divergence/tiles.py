"""How large the tiles of a chunk are, and how their rows lie in memory."""

from __future__ import annotations

import torch
from torch import Tensor

_BYTES = 256 * 2**20  # of four float32 tiles
_BYTES_ACCELERATOR = 2 * 2**30
_BYTES_KERNEL = 2**30  # of two tiles
# cuBLAS uses its fast kernels if rows, and the sizes along them, are multiples of 16 bytes. Rows
# are padded to 128 bytes, one transaction, so that Triton too can load several numbers at a time.
_PRODUCT_BYTES, _ROW_BYTES = 16, 128


def default_chunk_size(
    num_tokens: int, vocab_size: int, device: torch.device, kernel_dtype: torch.dtype | None = None
) -> int:
    """The largest power of two whose tiles fit the budget, from 16 up to N.

    The torch comparison is counted as four float32 tiles. Its budget is 256 MiB on the CPU, where
    larger tiles are no faster (LOG.md), and on a device whose free memory is not known. Elsewhere
    it is 2 GiB, because every operation is a launch there and products need a thousand rows or more
    to be fast. A Triton kernel needs only two tiles of ``kernel_dtype``; its budget is 1 GiB.

    The tiles never take more than a quarter of the free memory, even if fewer than 16 rows fit. On
    a device that is nearly full, sums may therefore round differently from call to call unless a
    ``chunk_size`` is given.
    """
    free = free_bytes(device)
    if kernel_dtype is not None:
        budget, row = _BYTES_KERNEL, 2 * kernel_dtype.itemsize * vocab_size
    else:
        large = free is not None and device.type != "cpu"
        budget, row = (_BYTES_ACCELERATOR if large else _BYTES), 4 * 4 * vocab_size
    size = max(16, _power_of_two(budget // row))
    if free is not None:
        size = min(size, _power_of_two(free // 4 // row))
    return max(1, min(num_tokens, size))


def _power_of_two(number):
    return 1 << max(number, 1).bit_length() - 1


def free_bytes(device: torch.device) -> int | None:
    """What can be allocated on ``device`` without swapping, or None if that is not known.

    On the CPU this is what the Linux kernel calls available, page cache included; the limit of a
    container is not considered. On CUDA it is the driver's free memory plus what the allocator
    keeps unused. Neither waits for a stream.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type == "cpu":
        try:
            with open("/proc/meminfo", encoding="ascii") as lines:
                return next(1024 * int(x.split()[1]) for x in lines if x.startswith("MemAvailable"))
        except (OSError, StopIteration):
            return None
    return None


def alignment_matters(device: torch.device) -> bool:
    """Whether products of unaligned rows are slow; on the CPU padding gains nothing in bfloat16."""
    return device.type == "cuda"


def new_tile(hidden: Tensor, rows: int, size: int) -> Tensor:
    """An uninitialised ``[rows, size]`` tile like ``hidden``.

    Where alignment matters, it is a view of a tile whose rows are multiples of 128 bytes, so it may
    not be contiguous; its rows may be read and written up to ``stride(0)``.
    """
    unit = _ROW_BYTES // hidden.dtype.itemsize
    width = -(-size // unit) * unit if alignment_matters(hidden.device) else size
    return hidden.new_empty(rows, width)[:, :size]


def product_slices(hidden: Tensor, size: int) -> list[slice]:
    """The vocabulary in slices, whose products are taken one after another.

    One slice, except where alignment matters and ``size`` is not a multiple of 16 bytes: then the
    largest multiple, and the few words that are left.
    """
    aligned = size - size % (_PRODUCT_BYTES // hidden.dtype.itemsize)
    if not alignment_matters(hidden.device) or aligned in (0, size):
        return [slice(0, size)]
    return [slice(0, aligned), slice(aligned, size)]
