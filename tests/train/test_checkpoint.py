"""Checkpoints are complete or ignored, by the contents of their files."""

import json

import pytest
import torch

from distilllens.train.checkpoint import (
    MARK,
    damage_of,
    is_whole,
    last_whole,
    mark_whole,
    rotate,
    versions_of,
)


@pytest.fixture
def run(tmp_path):
    """A run with complete checkpoints of steps 2, 4 and 10."""
    for step in (2, 4, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(bytes(range(100)))
        (folder / "optimizer.pt").write_bytes(b"moments")
        mark_whole(folder)
    return tmp_path


def saved(file):
    """Save a tensor as the host does; returns the size of the file."""
    torch.save({"moments": torch.arange(100)}, file)
    return file.stat().st_size


def flip(file):
    """Change one bit."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def steps(run):
    return sorted(int(path.name.split("-")[1]) for path in run.glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: flip(f / "model.safetensors"), "the contents of model.safetensors have changed"),
        (lambda f: flip(f / "optimizer.pt"), "the contents of optimizer.pt have changed"),
        (lambda f: (f / "optimizer.pt").write_bytes(b"mom"), "3 bytes instead of 7"),
        (lambda f: (f / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda f: (f / MARK).write_text('{"files": {}}'), "lists no file"),
        (lambda f: (f / MARK).write_text("[]"), "cannot be read"),
        (lambda f: (f / MARK).write_text('{"files": [1]}'), "cannot be read"),
        (lambda f: (f / MARK).write_text('{"files": {"a": "b"}}'), "cannot be read"),
        (lambda f: (f / MARK).write_text('{"files": {"optimizer.pt": {}}}'), "cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_skipped_and_named(run, caplog, damage, message):
    """The next older one is used, and the warning names folder and file."""
    damage(run / "checkpoint-10")
    assert message in damage_of(run / "checkpoint-10")
    assert last_whole(run) == run / "checkpoint-4"
    assert "checkpoint-10 is damaged" in caplog.text and message in caplog.text


def test_an_unmarked_checkpoint_is_skipped_in_silence(run, caplog):
    """That is what a kill while saving leaves behind: nothing to worry about."""
    (run / "checkpoint-10" / MARK).unlink()
    assert last_whole(run) == run / "checkpoint-4" and not caplog.records


def test_steps_are_numbers(run):
    """10 is newer than 4, whatever the names or times say; a file or a link is no checkpoint."""
    (run / "checkpoint-99").write_text("mine")
    (run / "checkpoint-98").symlink_to(run / "checkpoint-2")
    assert damage_of(run / "checkpoint-10") is None
    assert last_whole(run) == run / "checkpoint-10"


def test_a_mark_of_an_earlier_version_has_sizes(run):
    """It is read; what it does not know is not compared."""
    size = saved(run / "checkpoint-10" / "optimizer.pt")
    sizes = {"model.safetensors": 100, "optimizer.pt": size}
    (run / "checkpoint-10" / MARK).write_text(json.dumps({"files": sizes}))
    flip(run / "checkpoint-10" / "model.safetensors")
    assert damage_of(run / "checkpoint-10") is None
    (run / "checkpoint-10" / "optimizer.pt").write_bytes(b"")
    assert not is_whole(run / "checkpoint-10")


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("where", [0, 100, 600, -1], ids=str)
def test_a_damaged_archive_needs_no_hash(run, caplog, file, where):
    """With sizes alone too, the older checkpoint is used, and the warning names the file."""
    newest = run / "checkpoint-10"
    size = saved(newest / file)
    (newest / MARK).write_text(json.dumps({"files": {file: size}}))
    assert damage_of(newest) is None
    content = bytearray((newest / file).read_bytes())
    where = range(size)[where] // 64 * 64
    content[where : where + 64] = bytes(len(content[where : where + 64]))  # a lost block
    (newest / file).write_bytes(content)
    assert last_whole(run) == run / "checkpoint-4"
    assert f"checkpoint-10 is damaged and not used: {file} cannot be read: " in caplog.text


def test_a_damaged_state_needs_no_hash(run, caplog):
    """A trainer_state.json that is no JSON is not resumed from."""
    text = '{"log_history": [{"st'
    (run / "checkpoint-10" / "trainer_state.json").write_text(text)
    (run / "checkpoint-10" / MARK).write_text(
        json.dumps({"files": {"trainer_state.json": len(text)}})
    )
    assert last_whole(run) == run / "checkpoint-4"
    assert "trainer_state.json cannot be read: " in caplog.text


def test_versions_are_in_the_mark(run):
    """A mark without them, or one that cannot be read, says nothing."""
    mark_whole(run / "checkpoint-10", versions={"torch": "2.6"})
    assert versions_of(run / "checkpoint-10") == {"torch": "2.6"}
    assert damage_of(run / "checkpoint-10") is None
    assert versions_of(run / "checkpoint-4") == versions_of(run / "checkpoint-5") == {}
    (run / "checkpoint-10" / MARK).write_text('{"files": {"a": 1}, "versions": 3}')
    assert versions_of(run / "checkpoint-10") == {}
    assert "the entry 'versions' is 3" in damage_of(run / "checkpoint-10")


def test_rotation_deletes_incomplete_checkpoints_first(run):
    """A half-deleted one is neither the newest nor kept for ever; the named ones stay."""
    (run / "checkpoint-4" / "optimizer.pt").unlink()
    rotate(run, None, [])
    assert steps(run) == [2, 4, 10]
    rotate(run, 2, [run / "checkpoint-10"])
    assert steps(run) == [2, 10]
    rotate(run, 1, [run / "checkpoint-10", run / "checkpoint-2"])
    assert steps(run) == [2, 10]
    rotate(run, 1, [run / "checkpoint-10"])
    assert steps(run) == [10]


def test_rotation_passes_over_the_best(run):
    """The best is the oldest: the one in the middle goes."""
    rotate(run, 2, [run / "checkpoint-10", run / "checkpoint-2"])
    assert steps(run) == [2, 10]


def test_a_kill_inside_a_rotation_leaves_an_incomplete_checkpoint(run, monkeypatch):
    """The next rotation removes it, and never a complete one in its place."""

    class Killed(BaseException):
        pass

    def dying(path, **_):
        (path / "optimizer.pt").unlink()
        raise Killed

    with monkeypatch.context() as killing, pytest.raises(Killed):
        killing.setattr("distilllens.train.checkpoint.shutil.rmtree", dying)
        rotate(run, 2, [run / "checkpoint-10"])
    assert not is_whole(run / "checkpoint-2") and steps(run) == [2, 4, 10]
    rotate(run, 2, [run / "checkpoint-10"])
    assert steps(run) == [4, 10]


def test_a_checkpoint_of_another_run_is_skipped_and_named(run, caplog):
    """Copied here from elsewhere; one that notes no run is of this one."""
    mark_whole(run / "checkpoint-10", run="another")
    assert last_whole(run, run="this") == run / "checkpoint-4"
    assert "checkpoint-10 is a checkpoint of another run and not used" in caplog.text
    assert last_whole(run) == run / "checkpoint-10"
    mark_whole(run / "checkpoint-10", run="this")
    assert last_whole(run, run="this") == run / "checkpoint-10"
