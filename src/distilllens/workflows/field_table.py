"""The fields of a training job, from a table that can be read before trl is imported."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

TABLE = Path(__file__).with_name("train_fields.json")
KINDS = {"bool": bool, "int": int, "float": float, "str": str, "list": list, "dict": dict}
KINDS |= {"none": NoneType}
_REMAKE = "python tools/config_table.py"
_HOSTS = ("trl", "transformers")


@dataclass(frozen=True)
class Field:
    """A field of a recipe, and the flag of the same name.

    Args:
        type: of a flag's value: "int", "float", "bool" or "str".
        kinds: the types that a recipe may give it, as in ``KINDS``.
        items: the type of the elements of a list, as ``type``.
        nargs: values of a flag, as for argparse: None (one), "?" (alone: true) or "+".
        choices: all values, where they are known.
    """

    name: str
    type: str
    kinds: list[str]
    default: Any = None
    items: str = "str"
    nargs: str | None = None
    choices: list[Any] | None = None
    help: str = ""


class Table(NamedTuple):
    """What the table holds.

    Args:
        versions: of the libraries that declare fields, when it was made.
        divergences: the names of all divergences.
    """

    versions: dict[str, str]
    divergences: list[str]
    fields: list[Field]

    def is_of_installed_versions(self) -> bool:
        """Whether the libraries that are installed are those it was made with."""
        try:
            return all(version(name) == self.versions.get(name) for name in _HOSTS)
        except PackageNotFoundError:
            return False

    def check_divergence(self, field: str, name: str | None):
        """Refuse a divergence that does not exist.

        Raises:
            ValueError: with those that do.
        """
        if name is not None and name not in self.divergences and not may_be_declared(name):
            known = ", ".join(self.divergences)
            raise ValueError(f"{field}: unknown divergence {name!r}; known: {known}")


def read_table() -> Table:
    """The table of the package."""
    found = json.loads(TABLE.read_text(encoding="utf-8"))
    fields = [Field(**entry) for entry in found["fields"]]
    return Table(found["versions"], found["divergences"], fields)


def table_text(fields: Iterable[Field], divergences: Iterable[str]) -> str:
    """The text of a table, a field a line, with the versions that are installed."""
    plain = asdict(Field("", "", []))
    entries = (asdict(field) for field in fields)
    entries = [{k: v for k, v in entry.items() if v != plain[k]} for entry in entries]
    head = {
        "made by": _REMAKE,
        "versions": {name: version(name) for name in _HOSTS},
        "divergences": list(divergences),
    }
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
    rows = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    return "{\n" + ",\n".join(lines) + f',\n"fields": [\n{rows}\n]\n}}\n'


def may_be_declared(name: str) -> bool:
    """Whether a file that declares fields or divergences has this name, where it is installed.

    The table may be older than these files, which can be searched without being imported.
    """
    own = Path(__file__).parents[1]
    files = [own / "divergence.py", own / "train/config.py", own / "workflows/train_inputs.py"]
    files += [own / "train/teacher_fields.py"]
    for host, pattern in (("trl", "trainer/*_config.py"), ("transformers", "training_args.py")):
        spec = find_spec(host)  # imports nothing
        for folder in () if spec is None else spec.submodule_search_locations or ():
            files += sorted(Path(folder).glob(pattern))
    declared = re.compile(rf"^\s+(\"?){re.escape(name)}\1\s*:", re.MULTILINE)
    return any(declared.search(file.read_text(encoding="utf-8")) for file in files)
