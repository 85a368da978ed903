"""Seconds of repeated calls, and peak memory: of this process, of a GPU, or tensor by tensor."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
import resource
import statistics
import time
import weakref
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def timed(call, repeats: int) -> dict:
    """Wall and processor seconds of ``repeats`` calls; the caller warms up first."""
    seconds, processor = [], []
    for _ in range(repeats):
        start, started = time.perf_counter(), time.process_time()
        call()
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - started)
    return {
        "repeats": repeats,
        "median_s": round(statistics.median(seconds), 4),
        "min_s": round(min(seconds), 4),
        "max_s": round(max(seconds), 4),
        "median_cpu_s": round(statistics.median(processor), 4),
    }


class PeakMemory:
    """``with PeakMemory() as peak: ...`` -> ``peak.bytes`` above what was resident at the start.

    On a CUDA ``device`` it is the memory that torch's allocator gave to tensors. Otherwise it is
    memory of the process, whose high-water mark Linux resets on request; on other systems the
    result is right only if the process never used more before.
    """

    def __init__(self, device: torch.device | None = None):
        self.device = device if device is not None and device.type == "cuda" else None

    def __enter__(self):
        gc.collect()
        if self.device:
            wait(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        else:
            _trim()
            _forget_peak()
            self.before = resident_bytes()
        return self

    def __exit__(self, *error):
        if self.device:
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self.before
        else:
            self.bytes = max(0, (_status("VmHWM") or _highest()) - self.before)


def wait(device: torch.device) -> None:
    """Wait until a GPU has finished all queued work; other devices queue nothing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def available_bytes() -> int:
    """Memory that a process can still allocate without swapping."""
    path = Path("/proc/meminfo")
    if path.exists():
        return int(re.search(r"MemAvailable:\s+(\d+)", path.read_text())[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    """Memory of this process that is in use now; where that is not known, the most it ever used."""
    return _status("VmRSS") or _highest()


def too_large(needs: int) -> str | None:
    """Why so many bytes are not allocated, or None; a quarter of the free memory stays free."""
    free = available_bytes()
    if needs <= 0.75 * free:
        return None
    return f"left out: takes {needs / 1e9:.0f} GB, {free / 1e9:.0f} GB are free"


class LiveBytes(TorchDispatchMode):
    """The largest number of bytes alive at one time in storages that are created inside it."""

    def __init__(self):
        super().__init__()
        self.tensors, self.most = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.tensors += [weakref.ref(x) for x in tree_leaves(result) if torch.is_tensor(x)]
        alive = [tensor for tensor in (made() for made in self.tensors) if tensor is not None]
        self.tensors = [weakref.ref(tensor) for tensor in alive]
        storages = (tensor.untyped_storage() for tensor in alive)
        self.most = max(self.most, sum({s.data_ptr(): s.nbytes() for s in storages}.values()))
        return result


def _status(name):
    path = Path("/proc/self/status")
    found = re.search(rf"{name}:\s+(\d+) kB", path.read_text()) if path.exists() else None
    return int(found[1]) * 1024 if found else None


def _highest():
    unit = 1 if os.uname().sysname == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _forget_peak():
    with contextlib.suppress(OSError):  # not Linux, or not allowed: see the class
        Path("/proc/self/clear_refs").write_text("5")


def _trim():
    # Free memory that the allocator keeps would be taken again unseen.
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
