"""The devices that an estimate knows by name: figures of the vendors' data sheets."""

from __future__ import annotations

from dataclasses import dataclass

from distilllens.errors import did_you_mean


@dataclass(frozen=True)
class Device:
    """What an estimate needs of a device.

    Args:
        name: as ``--device`` takes it.
        title: for people.
        memory: bytes.
        half, full: dense flops a second in bfloat16 (t4: float16) and in float32 without TF32.
        bandwidth: bytes a second to and from its memory.
        link: bytes a second to another device, in one direction.
        efficiency: what steps reach of the flops and of the bandwidth (docs/estimate.md).
        overhead: seconds of a step outside of products: data, optimizer, log.
        has_bfloat16: whether products in bfloat16 are fast.
        source: of the figures.
    """

    name: str
    title: str
    memory: int
    half: float
    full: float
    bandwidth: float
    link: float
    source: str
    efficiency: tuple[float, float] = (0.2, 0.8)
    overhead: float = 0.02
    has_bfloat16: bool = True

    @property
    def is_cpu(self) -> bool:
        """Whether it is the processor."""
        return self.link == 0


_NVIDIA = "https://www.nvidia.com/en-us/data-center/"
_GB = 10**9  # of the sheets: what a device has beyond it is left to the driver and to fragments


def _gpu(name, title, gb, half, full, bandwidth, link, source, **more):
    rates = (half * 1e12, full * 1e12, bandwidth * 1e9, link * 1e9)
    return Device(name, title, gb * _GB, *rates, source, **more)


_ADA = "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
_A10G = (
    "https://d1.awsstatic.com/product-marketing/ec2/NVIDIA_AWS_A10G_DataSheet_FINAL_02_17_2022.pdf"
)
_SHEETS = (  # GB; TFLOP/s in bfloat16 without sparsity, in float32; GB/s of memory, of the link
    _gpu("h100", "NVIDIA H100 SXM", 80, 989, 67, 3350, 450, f"{_NVIDIA}h100/"),
    _gpu("h200", "NVIDIA H200 SXM", 141, 989, 67, 4800, 450, f"{_NVIDIA}h200/"),
    _gpu("a100-80gb", "NVIDIA A100 80GB SXM", 80, 312, 19.5, 2039, 300, f"{_NVIDIA}a100/"),
    _gpu("a100-40gb", "NVIDIA A100 40GB SXM", 40, 312, 19.5, 1555, 300, f"{_NVIDIA}a100/"),
    _gpu("l40s", "NVIDIA L40S", 48, 362, 91.6, 864, 32, f"{_NVIDIA}l40s/"),
    _gpu("rtx4090", "NVIDIA GeForce RTX 4090", 24, 165, 82.6, 1008, 32, _ADA),
    _gpu("a10g", "NVIDIA A10G", 24, 70, 35, 600, 32, _A10G),
    _gpu("t4", "NVIDIA T4", 16, 65, 8.1, 320, 16, f"{_NVIDIA}tesla-t4/", has_bfloat16=False),
)
DEVICES = {device.name: device for device in _SHEETS}
NAMES = (*DEVICES, "cpu")


def check_device(name: str | None) -> None:
    """Refuse a name that is not in the table.

    Raises:
        ValueError: with the names that are.
    """
    if name is not None and name not in NAMES:
        hint = did_you_mean(name, NAMES)
        raise ValueError(f"--device {name!r} is not known{hint}; known: {', '.join(NAMES)}")


def check_options(device: str | None, num_devices: int, price: float | None) -> None:
    """Refuse a device that is not known, no devices, and a price below 0.

    Raises:
        ValueError: with the value, and what would be right.
    """
    check_device(device)
    if num_devices < 1:
        raise ValueError(f"--num_devices must be at least 1, got {num_devices}")
    if price is not None and not 0 <= price < float("inf"):
        raise ValueError(f"--price must be a number of at least 0 for an hour, got {price}")
