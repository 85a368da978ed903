"""The door: a light import and the public names behind it."""

import json
import subprocess
import sys

import pytest

import distilllens

HEAVY = ("trl", "datasets", "matplotlib", "accelerate", "peft")
PUBLIC = {
    "DistillLensConfig",
    "DistillLensTrainer",
    "Head",
    "LayerMap",
    "LogitLens",
    "Objective",
    "capture",
    "divergence",
    "linear_divergence",
}


def loaded_by(statement):
    """Which heavy packages a fresh interpreter has loaded after a statement."""
    report = f"print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    code = f"import json, sys; {statement}; {report}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_import_is_light():
    """The package and every room below training load no trainer, no data sets, no plotting."""
    rooms = "divergence head layer_map linear_divergence lens data objective teacher report cli"
    names = ", ".join(f"distilllens.{room}" for room in rooms.split())
    assert loaded_by(f"import distilllens, {names}") == []


def test_commands_begin_without_torch():
    """Bad input is refused, and Ctrl-C has its one line, before the heavy imports."""
    names = ", ".join(
        f"distilllens.cli.{c}" for c in ["train", "cache", "report", "inspect", "demo"]
    )
    code = f"import sys, distilllens.__main__, {names}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


@pytest.mark.parametrize("name", ["divergence", "linear_divergence"])
@pytest.mark.parametrize("first", ["", "import distilllens.{0}", "from distilllens.{0} import {0}"])
def test_a_function_keeps_its_name_beside_its_room(name, first):
    """Whichever is imported first, ``distilllens.divergence`` is the function."""
    code = f"{first.format(name)}\nimport distilllens\nfrom distilllens import {name} as f\n"
    code += f"print(distilllens.{name} is f, callable(f))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


@pytest.mark.slow
def test_the_meter_sees_a_heavy_import():
    """Asking for the trainer loads what the door leaves out."""
    assert {"trl", "datasets"} <= set(loaded_by("from distilllens import DistillLensTrainer"))


def test_the_divergence_is_the_function():
    """``distilllens.divergence`` is the function, though a file has its name."""
    import distilllens.divergence

    assert distilllens.divergence is sys.modules["distilllens.divergence"].divergence
    assert distilllens.divergence("jsd").__name__ == "compare"


def test_every_public_name_is_there():
    """Each name of ``__all__`` can be had, the lazy ones too, and the list is sorted."""
    assert set(distilllens.__all__) >= PUBLIC
    assert distilllens.__all__ == sorted(distilllens.__all__)
    assert set(distilllens.__all__) <= set(dir(distilllens))
    for name in distilllens.__all__:
        assert callable(getattr(distilllens, name)), name


def test_an_unknown_name_is_an_attribute_error():
    """The lazy door does not swallow misspellings."""
    with pytest.raises(AttributeError, match="has no attribute 'LogitLense'"):
        distilllens.LogitLense  # noqa: B018
