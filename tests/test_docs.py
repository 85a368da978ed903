"""What the pages claim is true: tests, files, links, defaults and snippets exist as written."""

import ast
import re
import shutil
import subprocess
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from pkgutil import resolve_name

import pytest
from processes import python
from transformers import LlamaConfig

import distilllens
from distilllens import LayerMap
from distilllens import divergence as named_divergence
from distilllens.divergence import parameters
from distilllens.fingerprints import fingerprint

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "distilllens"
DOCS = sorted((ROOT / "docs").glob("*.md"))
FRONT = [ROOT / name for name in ("README.md", "CHANGELOG.md", "LOG.md")]
PAGES = [page for page in (*FRONT, *DOCS) if page.exists()]
# Of the machine a page was written on; spelled apart, or this file would be a finding.
PRIVATE = [f"/{folder}/" for folder in ("work", "root", "tmp")] + ["shared" + "/"]
# Test files that are not named after one source file.
WIDER_TESTS = {
    "test_golden_losses.py",
    "lens/test_early_exit.py",
    "lens/test_peft.py",
    "linear_divergence/test_door.py",
    "linear_divergence/test_gpu.py",
    "linear_divergence/test_new_divergence.py",
    "linear_divergence/test_terms.py",
    "linear_divergence/test_waiting.py",
    "report/test_page_in_browser.py",
    "test_architecture.py",
    "test_benchmarks.py",
    "test_docs.py",
    "test_examples.py",
    "test_import.py",
    "test_methods.py",
    "test_notebooks.py",
    "cli/test_full_disk.py",
    "test_old_files.py",
    "test_warm_python.py",
    "train/test_agreement.py",
    "train/test_cross_tokenizer.py",
    "train/test_answers.py",
    "train/test_distributed.py",
    "train/test_host.py",
    "train/test_invariance.py",
    "train/test_killed.py",
    "train/test_kinds.py",
    "train/test_signals.py",
    "train/test_two_machines.py",
    "workflows/test_loggers.py",
    "workflows/study/test_other_teachers.py",
}
TEST_NAME = re.compile(r"tests/[\w/]+\.py::\w+")
TREE_LINE = re.compile(r"^(?P<indent>(?:│   |    )*)[├└]── (?P<name>[\w.]+/?)")


def text_of(page):
    return page.read_text(encoding="utf-8")


def blocks_of(language, text):
    """The fenced blocks of a language (a pattern)."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def names_of_tests(source):
    """The names of the test functions of a file, those in classes too."""
    found = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef))
    return {node.name for node in found if node.name.startswith("test_")}


def missing_tests(text):
    """The tests a text names that are not there."""
    missing = []
    for named in sorted(set(TEST_NAME.findall(text))):
        path, name = named.split("::")
        if not (ROOT / path).is_file() or name not in names_of_tests(text_of(ROOT / path)):
            missing.append(named)
    return missing


def ledger_names(text):
    """The code spans of the ledger's tables in the column of what implements a statement."""
    names = set()
    for head, rows in re.findall(r"^(\|.*\|)\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.MULTILINE):
        heads = [cell.strip() for cell in head.strip("|").split("|")]
        columns = [n for n, cell in enumerate(heads) if cell in ("function", "here")]
        if columns and heads[-1] == "test":
            cells = [row.strip("|").split("|")[columns[0]] for row in rows.splitlines()]
            names |= {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
    return names


def exists(name, known):
    """Whether a name is among those known or resolves from ``distilllens``."""
    if name.split(":")[0] in known:
        return True
    try:
        resolve_name(f"distilllens.{name.split('(')[0]}")
    except (ImportError, AttributeError, ValueError):
        return False
    return True


def files_in_tree(block):
    """The paths in a tree of box drawings; a name that ends in / opens a folder."""
    folders, files = [], set()
    for line in block.splitlines():
        if match := TREE_LINE.match(line):
            depth = len(match["indent"]) // 4
            del folders[depth:]
            if match["name"].endswith("/"):
                folders.append(match["name"])
            else:
                files.add("".join(folders) + match["name"])
    return files


def tree_differences(page):
    """Files that the page's tree lists and the disk lacks, and the other way about."""
    blocks = blocks_of(r"\w*", text_of(page))
    listed = set().union(*(files_in_tree(block) for block in blocks if "── " in block))
    there = {path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py")}
    needed = {path for path in there if not path.endswith("__init__.py")}
    return {"not there": listed - there, "not listed": needed - listed}


def dead_links(page):
    """Relative links of a page whose file, or whose heading in a page, does not exist."""
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in anchors(text_of(file))):
            dead.append(target)
    return dead


def anchors(text):
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


def public_definitions():
    """``(place, node)`` of every function, class and method without an underscore."""
    for path in sorted(SOURCE.rglob("*.py")):
        bodies = [ast.parse(text_of(path)).body]
        while bodies:
            for node in bodies.pop():
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_":
                    yield f"{path.relative_to(SOURCE)}:{node.lineno} {node.name}", node
                    bodies += [node.body] if isinstance(node, ast.ClassDef) else []


def test_the_front_pages_are_there():
    """README, CHANGELOG and LOG."""
    assert [page.name for page in FRONT if not page.exists()] == []


def test_the_ledger_names_tests_that_exist():
    """Every ``tests/...::name`` of every page; the paper's page names at least forty."""
    assert len(set(TEST_NAME.findall(text_of(ROOT / "docs" / "paper.md")))) >= 40
    assert {p.name: missing_tests(text_of(p)) for p in PAGES if missing_tests(text_of(p))} == {}


def test_a_wrong_name_is_found():
    """A test that is not there, and a file that is not there."""
    wrong = ["tests/test_docs.py::test_no_such", "tests/test_nothing.py::test_a"]
    right = "tests/test_docs.py::test_a_wrong_name_is_found"
    assert missing_tests(f"`{right}`, `{wrong[0]}`, `{wrong[1]}`") == wrong


def test_the_ledger_names_functions_that_exist(capsys):
    """Each resolves from ``distilllens``, or is a recipe's field, a command or a flag."""
    from distilllens.cli import evaluate
    from distilllens.cli.train_arguments import make_parser

    known = {action.dest for action in make_parser("train", "")._actions}
    with pytest.raises(SystemExit):
        evaluate.main(["--help"])
    known |= {"distilllens evaluate", *re.findall(r"--\w+", capsys.readouterr().out)}
    names = ledger_names(text_of(ROOT / "docs" / "paper.md"))
    assert {"LogitLens.logits", "sampling.draw_pairs", "distilllens evaluate"} < names
    assert [name for name in sorted(names) if not exists(name, known)] == []
    for wrong in ("lens.no_such", "Objective.no_such", "--no_such", "no_such"):
        assert not exists(wrong, known)


def test_nine_deviations_are_listed():
    """The second table of the ledger has a row for each, and each names a test."""
    rows = re.findall(r"^\| (\d)\. (.*)$", text_of(ROOT / "docs" / "paper.md"), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 10))
    assert all(TEST_NAME.search(row) for _, row in rows)


def test_recipes_state_the_papers_settings():
    """Pairs, learning rate, rows and epochs of the four recipes are those of the paper's table."""
    yaml = pytest.importorskip("yaml")
    text = text_of(ROOT / "docs" / "paper.md")
    table = re.search(r"^\| recipe .*?(?=\n\n)", text, re.DOTALL | re.MULTILINE)[0]
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in table.splitlines()}
    assert len(rows["recipe"]) == 4
    for column, link in enumerate(rows["recipe"]):
        path = re.search(r"\(\.\./(.+?)\)", link)[1]
        recipe = yaml.safe_load(text_of(ROOT / path))
        cell = {key: values[column].strip() for key, values in rows.items()}
        layers = [int(n) for n in cell["blocks (student, teacher)"].split(",")]
        pairs = LayerMap.parse(cell["pairs (student:teacher)"])
        assert LayerMap.resolve(recipe["lens_layers"], *layers) == pairs, path
        assert recipe["learning_rate"] == float(cell["peak learning rate"]), path
        assert recipe["num_train_epochs"] == int(cell["epochs"]), path
        rows_a_device = int(cell["rows per device x devices"].split()[0])
        assert recipe["per_device_train_batch_size"] == rows_a_device, path


def test_the_tree_is_the_disk():
    """docs/design.md lists every source file, and every listed file exists."""
    page = ROOT / "docs" / "design.md"
    assert tree_differences(page) == {"not there": set(), "not listed": set()}


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "design.md"], ids=lambda p: p.name)
def test_the_tree_is_drawn_once(page):
    """A second tree would have to be kept in step."""
    assert "├──" not in text_of(page)


def test_the_table_of_faults_is_what_tests_recorded():
    """docs/reliability.md has the rows of tests/fault_rows.json."""
    spec = spec_from_file_location("fault_table", ROOT / "tools" / "fault_table.py")
    spec.loader.exec_module(tool := module_from_spec(spec))
    text = text_of(ROOT / "docs" / "reliability.md")
    assert tool.with_table(text) == text


def test_tests_are_named_after_what_they_test():
    """tests/ROOM/test_X.py tests ROOM/X.py, or is listed as one that tests several files."""
    rooms = {path.parent.relative_to(SOURCE) for path in SOURCE.rglob("__init__.py")}
    files = {path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    files -= {Path("fuzz/test_fuzz.py")}  # of all rooms
    assert {path.parent for path in files} == rooms
    wider = {path.as_posix() for path in files if not (SOURCE / source_of(path)).is_file()}
    assert wider == WIDER_TESTS


def source_of(test):
    """The source file that a test file is named after."""
    return test.with_name(test.name.removeprefix("test_"))


def test_the_tree_is_read_by_its_indentation():
    """Folders open and close; words, floors and the first line are no files."""
    block = """src/x/
├── a.py        one thing
│   ── a floor ──
├── room/
│   ├── b.py    another
│   └── deep/
│       └── c.py
└── d.py
"""
    assert files_in_tree(block) == {"a.py", "room/b.py", "room/deep/c.py", "d.py"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """Relative links of every page, their headings too."""
    assert dead_links(page) == []


def test_a_dead_link_is_found(tmp_path):
    """A missing file and a missing heading; links to the world are not followed."""
    page = tmp_path / "page.md"
    page.write_text("# A b\n[a](#a-b) [b](#c) [c](none.md) [d](https://example.org) [e](page.md)\n")
    assert dead_links(page) == ["#c", "none.md"]


def test_no_page_names_a_private_place():
    """Nothing that git tracks, but for the hidden folders, mentions a path of its first machine."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = []
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.is_file() and path.suffix not in (".safetensors", ".png") and name[0] != ".":
            content = path.read_text(encoding="utf-8", errors="replace")
            found += [f"{name}: {word}" for word in PRIVATE if word in content]
    assert found == []


def test_public_names_have_docstrings():
    """Every public function, class and method says what it is for."""
    assert [place for place, node in public_definitions() if not ast.get_docstring(node)] == []


def test_exported_names_say_what_they_raise():
    """All names of the door but the two plain results refuse something, and say so."""
    plain = {"LayerStates", "LossTerms"}
    for name in set(distilllens.__all__) - plain:
        text = getattr(distilllens, name).__doc__
        assert "Raises:" in text and "ValueError" in text, name


def test_the_table_of_fields_is_todays():
    """docs/training.md holds what tools/config_table.py writes from the dataclasses."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("config_table", ROOT / "tools" / "config_table.py")
    tool = module_from_spec(spec)
    spec.loader.exec_module(tool)
    page = text_of(tool.PAGE)
    assert "| `lens_beta` | `0.5` |" in page
    assert tool.rewritten(page) == page, "run python tools/config_table.py"


def test_the_table_of_errors_is_todays():
    """What does not vary in the messages of docs/training.md is in strings of the code."""
    table = text_of(ROOT / "docs" / "training.md").split("| message | meaning |")[1]
    messages = re.findall(r"^\| `([^`]+)` \|", table.split("\n\n")[0], re.MULTILINE)
    assert len(messages) >= 10
    nodes = [n for path in SOURCE.rglob("*.py") for n in ast.walk(ast.parse(text_of(path)))]
    strings = {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    varies = r"\.\.\.|[\d\[\],:]+|\bN\b|\w*_\w*|\b(?:student|teacher)(?:'s)?\b"
    for message in messages:
        parts = [part.strip() for part in re.split(varies, message)]
        fixed = [part for part in parts if " " in part]
        assert fixed, message
        assert [p for p in fixed if not any(p in text for text in strings)] == [], message


def changed(content, at):
    """The bytes with one of them flipped."""
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def test_fingerprints_read_what_the_training_page_says(tmp_path):
    """Files of up to 2 MiB whole; of larger ones name, size and 512 samples of 4 KiB."""
    said = text_of(ROOT / "docs" / "training.md")
    assert "512 samples of 4 KiB" in said and "up to 2 MiB" in said
    number, size, whole = 512, 2**12, 2**21

    def weights(content, name="model.safetensors"):
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / name).write_bytes(content)
        found = fingerprint(str(folder), LlamaConfig())["weights"]
        shutil.rmtree(folder)
        return found

    small, large = bytes(whole), bytes(2 * whole)
    places = [0, 1, size - 1, size, whole // 2 - 1, whole // 2, whole - size - 1, whole - 1]
    places += [sample * size + offset for sample in (100, 300, 510) for offset in (-1, 0, 1)]
    assert weights(small) not in {weights(changed(small, at)) for at in places}

    last = len(large) - size
    samples = [last * sample // (number - 1) for sample in range(number)]
    seen = [at for start in (samples[0], samples[200], samples[-1]) for at in (start, start + 4095)]
    assert weights(large) not in {weights(changed(large, at)) for at in seen}
    gaps = [start + size for start in (samples[0], samples[200], samples[-2])]
    assert {weights(changed(large, at)) for at in gaps} == {weights(large)}
    assert weights(large + b"\0") != weights(large)
    assert weights(large, "other.safetensors") != weights(large)


def test_the_table_of_divergences_is_todays():
    """Names, parameters and defaults of docs/divergences.md are those of the code."""
    text = text_of(ROOT / "docs" / "divergences.md")
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \| [^|]+ \|$", text, re.MULTILINE)
    with pytest.raises(ValueError, match="known: ") as known:
        named_divergence("")
    assert ", ".join(name for name, _ in rows) == str(known.value).split("known: ")[1]
    for name, cell in rows:
        said = {key: float(value) for key, value in re.findall(r"`(\w+)=([\d.]+)`", cell)}
        assert said == parameters(name, {}), name


def test_recipes_in_pages_have_known_fields():
    """Every YAML block of the pages is a mapping of fields that ``distilllens train`` takes."""
    from distilllens.cli.train_arguments import make_parser
    from distilllens.workflows.recipe_fields import check_recipe
    from distilllens.workflows.recipe_file import parse_recipe

    actions = {action.dest: action for action in reversed(make_parser("train", "")._actions)}
    pages = [page for page in PAGES if "```yaml" in text_of(page)]
    assert pages
    for page in pages:
        for block in blocks_of("yaml", text_of(page)):
            recipe = parse_recipe(block, page.name)
            for part in _recipes_of(recipe):
                check_recipe(part, actions)


def _recipes_of(recipe):
    """The recipe itself, or those of a study."""
    if "methods" not in recipe.values:
        return [recipe]
    return [recipe.inner["base"], *recipe.inner["methods"].inner.values()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if blocks_of("python", text_of(page))],
    ids=lambda page: page.name,
)
def test_snippets_run(page, tmp_path):
    """The Python blocks of a page run one after another, and print what their comments say."""
    for folder in ("teacher", "kd"):  # stands in for what `distilllens demo` leaves
        shutil.copytree(SOURCE / "cli" / "demo_teacher", tmp_path / "demo" / folder)
    code = "\n".join(blocks_of("python", text_of(page)))
    done = subprocess.run(
        [python(), "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    for said in re.findall(r"# -> (.*)$", code, re.MULTILINE):
        assert said in done.stdout, said


def test_tables_of_studies_are_those_that_were_kept():
    """docs/evidence.md shows the tables that ``distilllens study`` left in studies/results."""
    text = text_of(ROOT / "docs" / "evidence.md")
    blocks = re.findall(r"<!-- study: (\w+) -->\n(.*?)\n<!-- end -->", text, re.DOTALL)
    assert blocks
    for name, block in blocks:
        kept = text_of(ROOT / "studies" / "results" / f"{name}.md").partition("### Learning")[0]
        rows, there = (
            [line for line in part.splitlines() if line.startswith(("|", "###"))]
            for part in (kept, block)
        )
        assert rows == there and len(rows) > 6
    printed = text_of(ROOT / "studies" / "results" / "published_mask.txt").splitlines()
    means = [line for line in printed if "±" in line]
    assert len(means) == 6 and "\n".join(["```", *means, "```"]) in text
