"""``impl="triton"`` and "auto": the interpreter, code for GPUs, the choice, what is refused."""

import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from linear_divergence.problems import problem, results

from distilllens.head import Head
from distilllens.linear_divergence import linear_cross_entropy, linear_divergence

MODULE = "distilllens.linear_divergence.triton_rows"
door = sys.modules["distilllens.linear_divergence"]  # the package also has a function of that name
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
    """The tests of interpreted_triton_rows.py, in a process that loads Triton's interpreter."""
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
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_padded_rows_are_loaded_16_bytes_at_a_time(dtype, tmp_path, monkeypatch):
    """Of an odd vocabulary, too; without padding every number is a load of its own."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    padded = compiled("jsd", dtype, 90, aligned=("ours", "theirs", "our_width", "their_width"))
    odd = compiled("jsd", dtype, 90, aligned=("ours", "theirs"))
    for size in ("b16", "b32"):
        assert f"ld.global.{size}" not in padded.asm["ptx"]
    assert "ld.global.v4.b32" in padded.asm["ptx"] and "ld.global.v4.b32" not in odd.asm["ptx"]


def compiled(name, dtype, capability, *, aligned=(), capped=(False, False)):
    """The kernel as machine code; ``aligned`` arguments are multiples of 16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from distilllens.linear_divergence import triton_rows

    kernel = triton_rows._compare_row
    types = {"ours": f"*{dtype}", "theirs": f"*{dtype}", "nats": "*fp32"}
    constants = {"NAME": name, "A": 0.3, "B": 2.0, "GRADIENT": True, "BLOCK": 4096}
    constants |= {"OURS_CAPPED": capped[0], "THEIRS_CAPPED": capped[1]}
    signature = {
        argument: "constexpr"
        if argument in constants
        else types.get(argument, "fp32" if argument.endswith(("inner", "outer")) else "i32")
        for argument in kernel.arg_names
    }
    places = [at for at, argument in enumerate(kernel.arg_names) if argument in aligned]
    hints = {(at,): [["tt.divisibility", 16]] for at in places}
    source = ASTSource(kernel, signature, constants, hints)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"num_warps": 8})


@needs_triton
@compiles
@pytest.mark.slow
@pytest.mark.parametrize(("capability", "dtype"), [(80, "fp32"), (90, "bf16")])
def test_compiles_for_gpus(capability, dtype, tmp_path, monkeypatch):
    """Every divergence becomes machine code of an A100 and of an H100, with and without a cap."""
    from distilllens.linear_divergence import triton_rows

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for at, name in enumerate(sorted(triton_rows._PARAMETERS)):
        capped = (at % 2 == 0, at % 2 == 1)
        found = compiled(name, dtype, capability, capped=capped)
        assert found.asm["cubin"] and f"sm_{capability}" in found.asm["ptx"]


@needs_triton
@compiles
def test_off_a_gpu_it_is_refused():
    """One line: what is missing, and what works instead."""
    message = r"'triton' needs a CUDA device, but .* on 'cpu'; 'chunked' runs on every device"
    with pytest.raises(ValueError, match=message):
        call(impl="triton")
    head, label = Head(torch.ones(3, 2)), torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(torch.ones(1, 2), head, label, impl="triton")


def test_without_the_package_it_is_refused(monkeypatch):
    """The message names the package and the engine that needs none; "auto" never mentions it."""
    install(monkeypatch, None)
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, MODULE)
    with pytest.raises(ValueError, match=r"needs the package triton \(pip install .*'chunked'"):
        call(impl="triton")
    monkeypatch.setattr(door, "_is_faster_with_kernel", lambda device: True)
    call()


def install(monkeypatch, module):
    """Put ``module`` in the place of triton_rows.py."""
    monkeypatch.setitem(sys.modules, MODULE, module)
    monkeypatch.setattr(door, "triton_rows", module, raising=False)
    monkeypatch.delattr(door, "triton_rows")


class Kernel(types.ModuleType):
    """A stand-in for triton_rows.py that notes its calls, and compares in torch."""

    class KernelError(RuntimeError):
        pass

    def __init__(self, fails=False):
        super().__init__(MODULE)
        self.fails, self.calls = fails, []

    def why_not(self, device):
        return None

    def comparison(self, name, params, temperature, dtype):
        self.calls.append(name)
        if not self.fails:
            return None

        def compare_rows(*tiles, **options):
            raise self.KernelError("Triton could not start its kernel")

        return compare_rows


@pytest.mark.parametrize(
    ("device", "capability", "hip", "expected"),
    [
        ("cuda", (9, 0), None, True),
        ("cuda", (8, 0), None, True),
        ("cuda", (7, 5), None, False),
        ("cuda", (9, 4), "7.0", False),
        ("cpu", None, None, False),
        ("mps", None, None, False),
        ("meta", None, None, False),
    ],
)
def test_where_auto_is_triton(device, capability, hip, expected, monkeypatch):
    """On NVIDIA GPUs of capability 8.0 or above; "chunked" and "reference" never load it."""
    kernel = Kernel()
    install(monkeypatch, kernel)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device = torch.device(device)
    assert door._kernel("auto", device) is (kernel if expected else None)
    assert door._kernel("chunked", device) is door._kernel("reference", device) is None


def test_auto_without_a_working_package_is_chunked(monkeypatch):
    """A package that cannot be imported, for whatever reason, is as good as none."""

    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == MODULE:
                raise OSError("libcuda.so.1: cannot open shared object file")

    install(monkeypatch, None)
    monkeypatch.delitem(sys.modules, MODULE)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    monkeypatch.setattr(door, "_is_faster_with_kernel", lambda device: True)
    assert door._kernel("auto", torch.device("cuda")) is None
    with pytest.raises(OSError, match="libcuda"):
        call(impl="triton")


def test_a_kernel_that_does_not_compile(monkeypatch):
    """With "auto": one warning, the bits of the torch engine, no second try; "triton" raises."""
    kernel = Kernel(fails=True)
    install(monkeypatch, kernel)
    monkeypatch.setattr(door, "_broken", set())
    monkeypatch.setattr(door, "_is_faster_with_kernel", lambda device: True)
    given = problem(7, dtype=torch.float32)
    expected = results(given, "jsd", impl="chunked", chunk_size=3)
    with pytest.raises(kernel.KernelError, match="could not start"):
        results(given, "jsd", impl="triton")
    with pytest.warns(RuntimeWarning, match="could not start its kernel; continuing without it"):
        found = results(given, "jsd", chunk_size=3)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    assert kernel.calls == ["jsd", "jsd"]
    results(given, "jsd")
    assert kernel.calls == ["jsd", "jsd"]


def test_the_error_of_a_launch_names_its_cause(monkeypatch):
    """One line with the divergence, the cause and the engine that needs no kernel."""
    pytest.importorskip("triton")
    from distilllens.linear_divergence import triton_rows

    class NoCompiler:
        def __getitem__(self, grid):
            raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    monkeypatch.setattr(triton_rows, "_compare_row", NoCompiler())
    message = r"for jsd \(RuntimeError: Failed to find C compiler\.\); impl 'chunked' needs none"
    with pytest.raises(triton_rows.KernelError, match=message):
        call(impl="triton")


def test_nobody_loads_triton_unasked():
    """Neither the import of the package nor a call of another engine."""
    program = (
        "import sys, torch, distilllens as d\n"
        "h = d.Head(torch.ones(3, 2))\n"
        "d.linear_divergence(torch.ones(1, 2), h, torch.ones(1, 2), h)\n"
        "assert 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
