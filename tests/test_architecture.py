"""The house as a test: which room may import which, and who owns which foreign name."""

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "distilllens"
# An import goes to a lower floor, or stays in its room.
FLOORS = {
    "head": 0,
    "divergence": 0,
    "layer_map": 0,
    "top_predictions": 0,
    "targets": 0,
    "files": 0,
    "errors": 0,
    "lost": 1,
    "masking": 0,
    "stored": 0,
    "names": 0,
    "kernel_caches": 0,
    "cost": 0,
    "vocabularies": 0,
    "linear_divergence": 1,
    "joined_map": 1,
    "sampling": 1,
    "loss_terms": 1,
    "features": 1,
    "fingerprints": 1,
    "jsonl": 1,
    "marks": 1,
    "places": 1,
    "architectures": 1,
    "lens": 2,
    "data": 2,
    "objective": 3,
    "loading": 3,
    "teacher": 4,
    "generate": 4,
    "report": 4,
    "train": 5,
    "evaluate": 5,
    "workflows": 6,
    "cli": 7,
}
# A foreign name -> the only rooms or files that may import it.
OWNERS = {
    # cli/train_arguments.py declares the flags of TRL's own dataclasses, by TRL's own parser.
    "trl": ("train", "cli/train_arguments.py"),
    "accelerate": ("train",),
    "peft": ("train",),
    "datasets": ("data", "train"),
    "matplotlib": ("report",),
    "rouge_score": ("evaluate/rouge.py",),
    "nltk": ("evaluate/rouge.py",),
    "sentence_transformers": ("evaluate/sbert.py",),
    "openai": ("generate/server.py",),
    "lm_eval": ("evaluate/harness.py",),
    "vllm": ("generate/vllm_backend.py",),
    # workflows/report.py shows a recipe as the user would write it.
    "yaml": ("workflows/recipe_file.py", "workflows/report.py"),
    "argparse": ("cli",),
    "xxhash": ("teacher/shards.py",),
    "triton": ("linear_divergence/triton_rows.py",),
}
# Nothing but torch and the standard library.
MATHEMATICS = ("head", "divergence", "layer_map", "targets", "cost", "sampling", "objective")
MATHEMATICS += ("vocabularies", "linear_divergence", "loss_terms", "features", "joined_map")
MATHEMATICS += ("top_predictions",)
FRAMEWORKS = ("transformers", "trl", "accelerate", "peft", "datasets", "tokenizers", "safetensors")
FRAMEWORKS += ("numpy", "matplotlib", "yaml")


class Import(NamedTuple):
    """One imported name: ``from module import name``, or ``import module`` without a name."""

    path: str
    module: str
    name: str

    @property
    def room(self):
        """The importing room; "__init__" is the door."""
        return self.path.split("/")[0].removesuffix(".py")

    @property
    def target(self):
        """The room imported, "__init__" for the door, None for a foreign module."""
        if self.module.split(".")[0] != "distilllens":
            return None
        parts = [*self.module.split("."), self.name]
        return parts[1] if parts[1] in FLOORS else "__init__"

    @property
    def foreign(self):
        return self.module.split(".")[0]

    def __str__(self):
        return f"{self.path} imports {f'{self.module}.{self.name}'.rstrip('.')}"


def imports(files):
    """Every import of path -> source, wherever in the file it stands."""
    found = []
    for path, source in files.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                found += [Import(path, alias.name, "") for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                module = "." * node.level + (node.module or "")
                found += [Import(path, module, alias.name) for alias in node.names]
    return found


def down_only(i):
    """An import goes down a floor or stays in the room; the two doors lead where they lead."""
    if i.target is None or i.room in ("__init__", "__main__", "cli") or i.target == i.room:
        return False
    if str(i) == "report/__init__.py imports distilllens":  # the alias of distilllens.show
        return False
    return i.target == "__init__" or FLOORS[i.target] >= FLOORS[i.room]


def evaluation_and_training_are_apart(i):
    """``evaluate`` and ``train`` meet only in the workflows."""
    return {i.room, i.target} == {"evaluate", "train"}


def mathematics_sees_no_model(i):
    """The formulas know torch and each other."""
    return i.room in MATHEMATICS and (
        i.foreign in FRAMEWORKS or (i.target == "lens" and i.room != "objective")
    )


def nothing_imports_the_command_line(i):
    return i.target == "cli" and i.room not in ("cli", "__main__")


def the_command_line_does_no_work(i):
    """A command parses, makes one call into the workflows and prints."""
    work = ("torch", "transformers", "numpy", "tqdm")
    return i.room == "cli" and (i.foreign in work or i.target in ("lens", "teacher", "objective"))


def pages_read_no_model(i):
    """``report`` draws numbers; whoever reads models or files hands them in."""
    return i.room == "report" and (i.foreign == "transformers" or i.target in ("loading", "data"))


def foreign_names_have_owners(i):
    owners = OWNERS.get(i.foreign)
    return owners is not None and i.room not in owners and i.path not in owners


def private_names_live_in_one_file(i):
    """Submodules of trl are its private side; so is an underscore of any host."""
    if i.path == "train/_trl.py" or i.foreign not in ("trl", "transformers", "accelerate", "peft"):
        return False
    underscore = any(part.startswith("_") for part in [*i.module.split("."), i.name])
    return underscore or (i.foreign == "trl" and i.module != "trl")


def imports_can_be_read(i):
    """Absolute, and by statement: a relative or computed import would pass the other rules."""
    computed = i.foreign == "importlib" and i.name in ("", "import_module") and i.room != "cli"
    return i.module.startswith(".") or computed


# Rule -> a file that breaks it and nothing else need break.
BROKEN = {
    down_only: {"lens/capture.py": "def f():\n    from distilllens.teacher import LiveTeacher"},
    evaluation_and_training_are_apart: {"train/trainer.py": "import distilllens.evaluate.rouge"},
    mathematics_sees_no_model: {"linear_divergence/chunked.py": "from distilllens import lens"},
    nothing_imports_the_command_line: {"__init__.py": "from distilllens.cli import main"},
    the_command_line_does_no_work: {"cli/inspect.py": "import torch"},
    pages_read_no_model: {"report/texts.py": "from distilllens.loading import load_model"},
    foreign_names_have_owners: {"cli/demo.py": "from matplotlib.figure import Figure"},
    private_names_live_in_one_file: {"workflows/train.py": "from trl.trainer.utils import pad"},
    imports_can_be_read: {"objective.py": "from .head import Head"},
}


def on_disk():
    return {
        path.relative_to(SOURCE).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(SOURCE.rglob("*.py"))
    }


def unknown_rooms(paths):
    rooms = {path.split("/")[0].removesuffix(".py") for path in paths}
    return rooms - FLOORS.keys() - {"__init__", "__main__"}


def attic(paths):
    return [path for path in paths if path.endswith(("utils.py", "helpers.py", "common.py"))]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda rule: rule.__name__)
def test_imports(broken):
    """No import of the package breaks the rule."""
    assert [str(i) for i in imports(on_disk()) if broken(i)] == []


@pytest.mark.parametrize("broken", BROKEN, ids=lambda rule: rule.__name__)
def test_the_rules_can_fail(broken):
    """Each rule complains about the file that was written to break it."""
    assert any(broken(i) for i in imports(BROKEN[broken]))


@pytest.mark.parametrize("path", ["data/load.py", "teacher/cache.py", "report/page.py"])
def test_every_owned_name_is_refused_elsewhere(path):
    """A room that owns none of these names may import none of them."""
    names = set(OWNERS) - {name for name, rooms in OWNERS.items() if path.split("/")[0] in rooms}
    found = imports({path: "\n".join(f"import {name}" for name in names)})
    assert len(found) >= 8 and all(foreign_names_have_owners(i) for i in found)


def test_every_room_has_a_floor():
    """A new room is put on a floor, and no room is an attic."""
    assert unknown_rooms(on_disk()) == set() and attic(on_disk()) == []
    assert unknown_rooms(["attic/old.py"]) == {"attic"} and attic(["train/utils.py"])


def code_of(source):
    """The source without docstrings and comments, as Python writes it."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            node.body = [*node.body[1:], ast.Pass()]
    return ast.unparse(tree)


# What is known in one place (a pattern) -> the only file whose code may name it.
KNOWN_ONCE = {
    r"-100(?!\d)": "targets.py",
    r"\.from_pretrained\(": "loading.py",
    r"'max_position_embeddings'": "loading.py",
}
_SENTENCE = re.compile(r"f?'[^'\n]* [^'\n]*'|f?\"[^\"\n]* [^\"\n]*\"")


def known_elsewhere(files):
    """Files that name what another file is there to know; messages may quote it."""
    found = []
    for path, source in files.items():
        code = _SENTENCE.sub("''", code_of(source))
        for pattern, home in KNOWN_ONCE.items():
            if path != home and re.search(pattern, code):
                found.append(f"{path}: {pattern}")
    return found


def test_what_is_known_once_is_known_in_one_file():
    """The ignored label, loading from a folder or the hub, the length of a model's context."""
    assert known_elsewhere(on_disk()) == []
    broken = {"a.py": "x = labels != -100", "loading.py": "AutoModel.from_pretrained(name)"}
    assert known_elsewhere(broken) == [r"a.py: -100(?!\d)"]


def file_graph(files):
    """path -> the paths of the package's files that it imports when it is loaded."""
    names = {
        path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in files
    }
    graph = {path: set() for path in files}
    for path, source in files.items():
        for node in ast.parse(source).body:
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(
                "distilllens"
            ):
                continue
            module = node.module.removeprefix("distilllens").lstrip(".")
            for alias in node.names:
                whole = f"{module}.{alias.name}".lstrip(".")
                graph[path].add(names.get(whole) or names.get(module, "__init__.py"))
    return {path: found - {path} for path, found in graph.items()}


def circle(graph):
    """The paths of one circle of imports, or None."""
    done, trail = set(), []

    def visit(path):
        if path in trail:
            return trail[trail.index(path) :]
        if path in done:
            return None
        trail.append(path)
        found = next((c for other in sorted(graph[path]) if (c := visit(other))), None)
        trail.pop()
        done.add(path)
        return found

    return next((c for path in sorted(graph) if (c := visit(path))), None)


def test_no_files_import_each_other_in_a_circle():
    """The files of the package, doors of rooms included, can be put in an order of loading."""
    assert circle(file_graph(on_disk())) is None
    rooms = {
        "a/__init__.py": "from distilllens.a.b import f",
        "a/b.py": "from distilllens.c import g",
        "c.py": "from distilllens.a import f",
    }
    assert sorted(circle(file_graph(rooms))) == ["a/__init__.py", "a/b.py", "c.py"]


def lines_of_code(node):
    """The lines of a function, its docstring left out."""
    doc = node.body[0] if ast.get_docstring(node) is not None else None
    return node.end_lineno - node.lineno + 1 - (doc.end_lineno - doc.lineno + 1 if doc else 0)


def too_large(files, file_limit=350, function_limit=60):
    """Files and functions that have become hard to read."""
    found = [path for path, source in files.items() if len(source.splitlines()) > file_limit]
    for path, source in files.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and lines_of_code(node) > function_limit:
                found.append(f"{path}: {node.name}")
    return found


def test_everything_fits_on_a_screen_or_a_few():
    """No file above 350 lines, no function above 60; the trainer and the commands stay small."""
    files = on_disk()
    assert too_large(files) == []
    assert len(files["train/trainer.py"].splitlines()) < 300
    commands = [source for path, source in files.items() if path.startswith("cli/")]
    assert sum(len(source.splitlines()) for source in commands) < 2000


def test_what_is_too_large_is_found():
    """A docstring does not count, the lines behind it do."""
    body = "\n".join(["    x = 1"] * 9)
    files = {
        "a.py": f'def f():\n    """One.\n\n    Two.\n    """\n{body}\n',
        "b.py": "x = 1\n" * 20,
    }
    assert too_large(files, 18, 10) == ["b.py"]
    assert too_large(files, 30, 9) == ["a.py: f"]
