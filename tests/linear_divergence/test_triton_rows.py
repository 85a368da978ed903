"""``impl="triton"``: the kernel in Triton's interpreter, compiled for GPUs, and what is refused."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distilllens.head import Head
from distilllens.linear_divergence import linear_cross_entropy, linear_divergence

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
compiles = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET is set: nothing is compiled"
)


def call(**options):
    head = Head(torch.ones(3, 2))
    return linear_divergence(torch.ones(1, 2), head, torch.ones(1, 2), head, **options)


@needs_triton
@pytest.mark.slow
def test_in_the_interpreter():
    """The laws of interpreted_triton_rows.py, in a process that loads Triton as an interpreter."""
    laws = Path(__file__).with_name("interpreted_triton_rows.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(laws)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, cwd=laws.parents[2], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]


@needs_triton
@compiles
@pytest.mark.slow
@pytest.mark.parametrize(("capability", "dtype"), [(80, "fp32"), (90, "bf16")])
def test_compiles_for_gpus(capability, dtype, tmp_path, monkeypatch):
    """Every divergence becomes machine code of an A100 and of an H100, with and without a cap."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from distilllens.linear_divergence import triton_rows

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = triton_rows._compare_row
    types = {"ours": f"*{dtype}", "theirs": f"*{dtype}", "nats": "*fp32"}
    for capped, name in enumerate(sorted(triton_rows._PARAMETERS)):
        constants = {"NAME": name, "A": 0.3, "B": 2.0, "GRADIENT": True, "BLOCK": 4096}
        constants |= {"OURS_CAPPED": capped % 2 == 0, "THEIRS_CAPPED": capped % 2 == 1}
        signature = {
            argument: "constexpr"
            if argument in constants
            else types.get(argument, "fp32" if argument.endswith(("inner", "outer")) else "i32")
            for argument in kernel.arg_names
        }
        source = ASTSource(kernel, signature, constants)
        target = GPUTarget("cuda", capability, 32)
        compiled = triton.compile(source, target=target, options={"num_warps": 8})
        assert compiled.asm["cubin"] and f"sm_{capability}" in compiled.asm["ptx"]


@needs_triton
@compiles
def test_off_a_gpu_it_is_refused():
    """One line: what is missing, and what would do."""
    message = r"'triton' cannot be taken: it runs on a CUDA device, .* on 'cpu'; 'chunked' runs any"
    with pytest.raises(ValueError, match=message):
        call(impl="triton")
    head, label = Head(torch.ones(3, 2)), torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(torch.ones(1, 2), head, label, impl="triton")


def test_without_the_package_it_is_refused(monkeypatch):
    """The package is named, and the engine that needs none."""
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "distilllens.linear_divergence.triton_rows", raising=False)
    door = sys.modules["distilllens.linear_divergence"]
    monkeypatch.delattr(door, "triton_rows", raising=False)
    with pytest.raises(ValueError, match=r"needs the package triton \(pip install .*'chunked'"):
        call(impl="triton")
    call()


def test_nobody_loads_triton_unasked():
    """Neither the import of the package nor a call of another engine."""
    program = (
        "import sys, torch, distilllens as d\n"
        "h = d.Head(torch.ones(3, 2))\n"
        "d.linear_divergence(torch.ones(1, 2), h, torch.ones(1, 2), h)\n"
        "assert 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
