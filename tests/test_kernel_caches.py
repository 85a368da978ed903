"""Memory on the CPU does not grow with the number of shapes that a process has met."""

import os
import subprocess
import sys

import pytest

from distilllens.kernel_caches import VARIABLES

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc")

# torch comes first, as in a program that uses the package late.
GROWTH = """
import torch, re
import distilllens

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024

weight = torch.randn(256, 256).bfloat16()
torch.randn(1, 256).bfloat16() @ weight
before = resident()
for rows in range(1, 600):
    torch.randn(rows, 256).bfloat16() @ weight
print(resident() - before)
"""


def growth(**environment):
    """MiB that 600 shapes of a bfloat16 product cost."""
    inherited = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", GROWTH],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return int(done.stdout)


def test_bfloat16_products_of_many_shapes_take_bounded_memory():
    as_torch_does = growth(**dict.fromkeys(VARIABLES, "1024"))
    if as_torch_does < 100:
        pytest.skip("this processor's bfloat16 products keep little per shape")
    assert growth() < as_torch_does / 3


def test_numbers_in_the_environment_are_kept():
    code = f"import distilllens, os; print(*(os.environ[name] for name in {VARIABLES}))"
    environment = os.environ | {VARIABLES[0]: "7", VARIABLES[1]: "9"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["7", "9"]
