"""The families of tests/lens on the path, and each tiny model built once."""

import functools
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import lens_families


@pytest.fixture(scope="session")
def family():
    """name -> its tiny model, the same object each time: do not change it."""
    return functools.cache(lens_families.build)
