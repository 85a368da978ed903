"""``distilllens cache`` as a user types it, and training from what it leaves."""

import os
import shutil
import subprocess

import pytest
import toys
from processes import python
from toys import recipe

from distilllens.cli import main
from distilllens.teacher import CachedTeacher


@pytest.fixture(autouse=True)
def with_a_recipe(workshop):
    """Every test begins with recipe.yaml."""
    recipe(workshop)


def weights(folder):
    from transformers import AutoModelForCausalLM

    return toys.weights(AutoModelForCausalLM.from_pretrained(folder))


def test_a_cache_trains_without_the_teacher(workshop, capsys):
    """Written by one command, read by another whose teacher's folder is gone."""
    assert main(["train", "--config", "recipe.yaml", "--output_dir", "live"]) == 0
    assert main(["cache", "--config", "recipe.yaml", "--teacher_cache", "cache"]) == 0
    said = capsys.readouterr().err
    assert "holds 8 documents, " in said and "positions at 3 depths" in said
    assert not (workshop / "out").exists()
    shutil.rmtree(workshop / "teacher")
    recipe(workshop, teacher_model_name_or_path=None, teacher_cache="cache")
    assert main(["train", "--config", "recipe.yaml"]) == 0
    assert toys.drift(weights("live"), weights("out")) < 1e-6
    assert "| teacher | `teacher` |" in (workshop / "out" / "README.md").read_text()


def test_training_writes_the_cache_that_it_lacks(workshop, monkeypatch):
    """One command does both; the next run of another loss only reads, and never loads a teacher."""
    assert main(["train", "--config", "recipe.yaml", "--teacher_cache", "cache"]) == 0
    assert CachedTeacher("cache").num_documents == 8
    files = {path.name: path.stat().st_mtime_ns for path in (workshop / "cache").iterdir()}

    def loaded(*given):
        raise AssertionError("the teacher was loaded")

    monkeypatch.setattr("distilllens.train.teachers.load_teacher", loaded)
    other = ["--teacher_cache", "cache", "--lens_divergence", "jeffreys", "--output_dir", "b"]
    assert main(["train", "--config", "recipe.yaml", *other]) == 0
    assert {p.name: p.stat().st_mtime_ns for p in (workshop / "cache").iterdir()} == files


def test_a_finished_cache_is_left_alone(workshop, capsys):
    """The same command again finds nothing to do."""
    command = ["cache", "--config", "recipe.yaml", "--teacher_cache", "cache"]
    assert main(command) == 0
    files = {path.name: path.stat().st_mtime_ns for path in (workshop / "cache").iterdir()}
    assert main(command) == 0
    assert {p.name: p.stat().st_mtime_ns for p in (workshop / "cache").iterdir()} == files


def test_another_run_resumes_from_a_cache(workshop):
    """A recipe with a cache and no teacher is one run: finished, it is left alone."""
    assert main(["cache", "--config", "recipe.yaml", "--teacher_cache", "cache"]) == 0
    recipe(workshop, teacher_model_name_or_path=None, teacher_cache="cache")
    assert main(["train", "--config", "recipe.yaml"]) == 0
    before = (workshop / "out" / "model.safetensors").stat().st_mtime_ns
    assert main(["train", "--config", "recipe.yaml"]) == 0
    assert (workshop / "out" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
def test_two_processes_write_one_cache(workshop):
    """Each writes shards of its own documents; what is read equals one process's cache."""
    assert main(["cache", "--config", "recipe.yaml", "--teacher_cache", "one"]) == 0
    run = [python(), "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = ["-m", "distilllens", "cache", "--config", "recipe.yaml", "--teacher_cache", "two"]
    done = subprocess.run(
        [*run, *command],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = CachedTeacher("one"), CachedTeacher("two")
    assert (one.num_documents, one.num_rows) == (two.num_documents, two.num_rows)
    assert len(list((workshop / "two").glob("shard-*"))) == 2
    recipe(workshop, teacher_model_name_or_path=None)
    for name in ("one", "two"):
        flags = ["--teacher_cache", name, "--output_dir", f"out-{name}"]
        assert main(["train", "--config", "recipe.yaml", *flags]) == 0
    assert toys.drift(weights("out-one"), weights("out-two")) == 0


# What is wrong: (changes to the recipe, what the one line says).
BAD = {
    "no folder": ({}, "distilllens cache needs teacher_cache"),
    "empty folder": ({"teacher_cache": " "}, "teacher_cache must be a folder, got ' '"),
    "no teacher": (
        {"teacher_cache": "cache", "teacher_model_name_or_path": None},
        "distilllens cache needs teacher_model_name_or_path",
    ),
    "missing teacher": (
        {"teacher_cache": "cache", "teacher_model_name_or_path": "nowhere"},
        "the teacher 'nowhere'",
    ),
    "a file": ({"teacher_cache": "train.jsonl"}, "train.jsonl is a file"),
    "a model": ({"teacher_cache": "student"}, "holds no teacher cache"),
    "dtype": (
        {"teacher_cache": "cache", "teacher_cache_dtype": "int4"},
        "teacher_cache_dtype is one of auto, int8, got 'int4'",
    ),
    "depth": (
        {"teacher_cache": "cache", "lens_layers": "1:9"},
        "teacher depth 9, but the teacher has depths 0 to 4",
    ),
    "no data": ({"teacher_cache": "cache", "train_file": "nowhere.jsonl"}, "nowhere.jsonl"),
    "unwritable": ({"teacher_cache": "train.jsonl/cache"}, "Not a directory"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_status_2(workshop, capsys, name):
    """One line on standard error, status 2, and no folder of a cache."""
    changes, message = BAD[name]
    recipe(workshop, **changes)
    assert main(["cache", "--config", "recipe.yaml"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (workshop / "cache").exists() and not (workshop / "out").exists()


def test_the_same_command_writes_a_damaged_shard_again(workshop, capsys):
    """A complete cache with one changed bit in a state; training from it says what to run."""
    command = ["cache", "--config", "recipe.yaml", "--teacher_cache", "cache"]
    assert main(command) == 0
    before = {path.name: path.read_bytes() for path in (workshop / "cache").iterdir()}
    shard = next((workshop / "cache").glob("shard-*"))
    content = bytearray(before[shard.name])
    content[len(content) // 2] ^= 0x40
    shard.write_bytes(content)
    recipe(workshop, teacher_model_name_or_path=None, teacher_cache="cache")
    capsys.readouterr()
    assert main(["train", "--config", "recipe.yaml"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1 and f"cache/{shard.name}: the states of document" in lines[0]
    assert "run distilllens cache with the same arguments" in lines[0]
    recipe(workshop)
    assert main(command) == 0
    assert "damaged shards are written again, 1 in all" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (workshop / "cache").iterdir()} == before


@pytest.mark.parametrize("damage", ["manifest", "unfinished", "no head", "a shard is cut"])
def test_a_damaged_cache_is_one_line(workshop, capsys, damage):
    """Training without a teacher says what is wrong with the folder, and leaves no run."""
    assert main(["cache", "--config", "recipe.yaml", "--teacher_cache", "cache"]) == 0
    folder = workshop / "cache"
    shard = next(folder.glob("shard-*"))
    if damage == "manifest":
        (folder / "manifest.json").write_text('{"format"')
    elif damage == "unfinished":
        (folder / "complete.json").unlink()
    elif damage == "no head":
        (folder / "head.safetensors").unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-8])
    recipe(workshop, teacher_model_name_or_path=None, teacher_cache="cache")
    capsys.readouterr()
    assert main(["train", "--config", "recipe.yaml"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1
    assert ("manifest.json: broken JSON" if damage == "manifest" else "is not complete") in lines[0]
    assert not (workshop / "out").exists()


def test_help_has_examples(capsys):
    """The flags of train, with the command's own words."""
    assert main(["cache", "--help"]) == 0
    said = capsys.readouterr().out
    assert "distilllens cache --config recipe.yaml --teacher_cache caches/teacher" in said
    assert "--teacher_cache_dtype" in said
