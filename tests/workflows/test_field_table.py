"""The table of fields: what the parser of the libraries that are installed says, without them."""

import subprocess
import sys
import tomllib
from importlib.metadata import version
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from distilllens.workflows.field_table import TABLE, Table, may_be_declared, read_table

ROOT = Path(__file__).parents[2]


def test_the_table_is_todays():
    """Fields, defaults and help as they are declared; the names of divergences; the versions."""
    spec = spec_from_file_location("config_table", ROOT / "tools" / "config_table.py")
    tool = module_from_spec(spec)
    spec.loader.exec_module(tool)
    is_todays = TABLE.read_text(encoding="utf-8") == tool.command_line_table()
    assert is_todays, "run python tools/config_table.py"


def test_the_table_is_in_the_package():
    """Beside the code that reads it, and shipped with it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "*.json" in project["tool"]["setuptools"]["package-data"]["distilllens.workflows"]
    assert TABLE.parent == ROOT / "src" / "distilllens" / "workflows"


def test_the_table_knows_its_versions():
    """Others, or none, are told apart."""
    table = read_table()
    assert table.is_of_installed_versions()
    assert table.versions == {name: version(name) for name in ("trl", "transformers")}
    assert not table._replace(versions={**table.versions, "trl": "0"}).is_of_installed_versions()
    assert not Table({}, [], []).is_of_installed_versions()


def test_declarations_are_found_without_an_import():
    """Of ours, of TRL and of transformers, and divergences; no other word."""
    code = "from distilllens.workflows.field_table import may_be_declared as f; import sys\n"
    code += "names = ('lens_layers', 'student_config', 'packing', 'lr_scheduler_type', 'jsd')\n"
    code += "assert all(map(f, names)) and not any(map(f, ('lens_layer', 'kl', 'self', '-lr')))\n"
    code += "assert not {'torch', 'trl', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert may_be_declared("model_name_or_path")
