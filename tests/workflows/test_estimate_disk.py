"""Bytes on disk are those of a real run; what does not fit is refused before models are loaded."""

import shutil
from collections import namedtuple
from types import SimpleNamespace

import pytest
from toys import recipe

from distilllens.cli import main
from distilllens.workflows import estimate_disk
from distilllens.workflows.estimate_disk import Disk, check_space

Usage = namedtuple("Usage", "total used free")


def free(monkeypatch, size):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**9, 0, size))


@pytest.mark.parametrize("setting", [{}, {"optim": "sgd"}, {"save_only_model": True}])
def test_a_checkpoint_is_as_large_as_a_real_one(workshop, monkeypatch, setting):
    """The files of weights and optimizer that a run leaves, within the headers of their formats."""
    seen = []
    monkeypatch.setattr(
        "distilllens.workflows.estimate.check_space", lambda disk, output_dir: seen.append(disk)
    )
    recipe(workshop, **setting)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    names = ("model.safetensors", "optimizer.pt")
    files = [workshop / "out" / "checkpoint-2" / name for name in names]
    sizes = [file.stat().st_size for file in files if file.exists()]
    (disk,) = seen
    assert disk.num_checkpoints == 2 == len(list((workshop / "out").glob("checkpoint-*")))
    assert disk.checkpoint <= sum(sizes) <= disk.checkpoint + 30_000
    final = (workshop / "out" / "model.safetensors").stat().st_size
    assert disk.final <= final <= disk.final + 8_000


def test_a_cache_is_as_large_as_a_real_one(workshop, monkeypatch):
    """States of the depths that are read and the last, and the head."""
    seen = []
    monkeypatch.setattr(
        "distilllens.workflows.estimate.check_space", lambda disk, output_dir: seen.append(disk)
    )
    recipe(workshop, teacher_cache="cache")
    assert main(["train", "--config", "recipe.yaml"]) == 0
    real = sum(f.stat().st_size for f in (workshop / "cache").glob("*.safetensors"))
    assert seen[0].exact and seen[0].cache <= real <= seen[0].cache + 6_000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "output_dir out needs"),
        ({"teacher_cache": "cache", "save_strategy": "no"}, "output_dir out needs"),
    ],
)
def test_a_full_disk_is_refused_before_a_model_is_loaded(
    workshop, capsys, monkeypatch, settings, message
):
    """One line with the folder, what it needs and what helps; nothing is written."""
    free(monkeypatch, 1000)
    recipe(workshop, **settings)
    assert main(["train", "--config", "recipe.yaml"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[-1] and "1 kB free" in lines[-1]
    assert not [line for line in lines if "loading the student" in line]
    assert not (workshop / "out").exists() and not (workshop / "cache").exists()


@pytest.mark.parametrize(
    ("disk", "space", "blamed"),
    [
        (Disk(40, 2, 10, {}), 90, None),
        (Disk(40, 2, 10, {}), 89, "output_dir"),
        (Disk(40, None, 10, {}), 10, None),  # steps that are not known count for nothing
        (Disk(0, 0, 10, {"b": 90}), 100, None),
        (Disk(0, 0, 10, {"b": 45, "c": 45}), 100, None),
        (Disk(0, 0, 10, {"b": 45, "c": 46}), 100, "teacher_cache c"),
        (Disk(0, 0, 10, {"b": 91}), 100, "teacher_cache"),  # both on one disk
        (Disk(0, 0, 10, {"b": 100}, exact=False), 100, None),  # a sample: 90 are sure
    ],
)
def test_what_fits(tmp_path, monkeypatch, disk, space, blamed):
    """By hand."""
    free(monkeypatch, space)
    monkeypatch.chdir(tmp_path)
    if blamed is None:
        check_space(disk, "a")
    else:
        with pytest.raises(ValueError, match=blamed):
            check_space(disk, "a")


def test_a_run_that_goes_on_has_written_a_part(tmp_path, monkeypatch):
    """Checkpoints that lie there already are not asked for again."""
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "model.safetensors").write_bytes(bytes(40))
    free(monkeypatch, 50)
    check_space(Disk(40, 2, 10, {}), str(tmp_path))


@pytest.mark.parametrize(
    ("fields", "steps", "number"),
    [
        ({"save_strategy": "no"}, 100, 0),
        ({"save_steps": 30}, 100, 4),  # and at the end
        ({"save_steps": 0.5}, 100, 2),
        ({"save_steps": 10, "save_total_limit": 2}, 100, 3),  # the newest before the oldest goes
        ({"save_steps": 10, "save_total_limit": 1, "load_best_model_at_end": True}, 100, 3),
        ({"save_steps": 10}, None, None),
        ({"save_steps": 10, "save_total_limit": 1}, None, 2),
        ({"save_strategy": "epoch", "num_train_epochs": 2.5}, None, 3),
    ],
)
def test_checkpoints_at_a_time(fields, steps, number):
    """By hand, from the rules of transformers."""
    defaults = {"save_strategy": "steps", "save_steps": 500, "save_total_limit": None}
    defaults |= {"load_best_model_at_end": False, "max_steps": -1, "num_train_epochs": 3}
    args = SimpleNamespace(**{**defaults, **fields})
    assert estimate_disk._checkpoints(args, steps) == number
