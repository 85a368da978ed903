"""The device of an estimate: one of the table, or this machine, which is measured."""

from __future__ import annotations

import functools
import time
from dataclasses import replace

import torch

from distilllens.linear_divergence.tiles import free_bytes
from distilllens.workflows.estimate_devices import DEVICES, Device, check_device

_MEASURED = "measured here: a matrix product and a copy"


def device_of(name: str | None = None) -> Device:
    """The device of a name; by default this machine's, its accelerator if it has one.

    Raises:
        ValueError: as ``check_device``.
    """
    check_device(name)
    if name in DEVICES:
        return DEVICES[name]
    if name is None and torch.cuda.is_available():
        return _own_gpu()
    memory = _own_memory()
    half, full, bandwidth = (_rate(torch.bfloat16), _rate(torch.float32), _bandwidth())
    threads = torch.get_num_threads()
    title = f"this machine's processor, {threads} thread{'s' * (threads > 1)}"
    return Device(
        "cpu",
        title,
        memory,
        half,
        full,
        bandwidth,
        0,
        _MEASURED,
        efficiency=(0.68, 1.0),
        overhead=0.05,
    )


def shared(device: Device, num: int, *, is_measured_alone: bool = True) -> Device:
    """A processor as each of ``num`` processes has it; other devices are not shared.

    Args:
        is_measured_alone: with all cores, which the processes then divide.
    """
    if not device.is_cpu or num == 1:
        return device
    part = num if is_measured_alone else 1
    return replace(
        device,
        title=f"{device.title}, shared by {num} processes",
        memory=device.memory // num,
        half=device.half / part,
        full=device.full / part,
        bandwidth=device.bandwidth / part,
    )


def _own_gpu():
    """The sheet of this machine's GPU, with its memory; an unknown one is measured."""
    found = torch.cuda.get_device_properties(0)
    words = found.name.lower().replace(" ", "")
    for sheet in DEVICES.values():
        plain = sheet.name.split("-")[0]
        if plain in words and found.total_memory > 0.9 * sheet.memory:
            return Device(**{**vars(sheet), "title": found.name, "memory": found.total_memory})
    device = torch.device("cuda")
    rates = (_rate(torch.bfloat16, device), _rate(torch.float32, device), _bandwidth(device))
    return Device("cuda", found.name, found.total_memory, *rates, 32e9, _MEASURED)


def _own_memory():
    """Bytes that can be used here without swapping."""
    return free_bytes(torch.device("cpu")) or 8 * 10**9


@functools.cache
def _rate(dtype, device=None):
    """Flops a second of the best of a few products of 1,024 rows; on the CPU by processor time."""
    size = 1024 if device is None else 8192
    left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    seconds = _best(lambda: left @ right, device)
    return 2 * size**3 / seconds


@functools.cache
def _bandwidth(device=None):
    """Bytes a second of the best of a few copies, read and written."""
    numbers = torch.ones(2**24 if device is None else 2**28, device=device)
    target = torch.empty_like(numbers)
    return 2 * numbers.nbytes / _best(lambda: target.copy_(numbers), device)


def _best(call, device, repeats=4):
    """The fewest seconds of a call. With one thread, other programs do not count."""
    alone = device is None and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    found = []
    for _ in range(repeats):
        start = clock()
        call()
        if device is not None:
            torch.cuda.synchronize(device)
        found.append(clock() - start)
    return max(min(found), 1e-9)
