"""What may change when a run goes on, and what it says of what has changed."""

import json
import shutil
from pathlib import Path

import pytest
import toys
from generate.predictions_stub import Stub, serving
from toys import recipe

from distilllens.cli import main


@pytest.fixture
def stopped(workshop):
    """A run of six steps that was killed after its first checkpoint, that of step 2."""
    recipe(workshop, max_steps=6, eval_file="train.jsonl", eval_strategy="steps", eval_steps=3)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    out = workshop / "out"
    for path in out.iterdir():
        if path.name not in ("run.json", "checkpoint-2"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    change(out / "run.json", finished=False)
    return out


def change(file, **entries):
    """Overwrite entries of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def steps(out):
    return sorted(int(path.name.split("-")[1]) for path in out.glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--save_steps", "1"], [2, 3, 4, 5, 6]),
        (["--save_steps", "4"], [2, 4, 6]),
        (["--save_steps", "1", "--save_total_limit", "2"], [5, 6]),
        (["--save_steps", "0.5"], [2, 3, 6]),
    ],
)
def test_the_interval_that_is_set_now_counts(stopped, capsys, flags, expected):
    """Not the one in the checkpoint; nothing is said of a difference that has no effect."""
    assert main(["train", "--config", "recipe.yaml", *flags]) == 0
    assert steps(stopped) == expected
    said = capsys.readouterr().err
    assert "resuming from out/checkpoint-2" in said and "do not match" not in said


def test_intervals_of_logs_and_evaluations_count_too(stopped):
    """After step 2."""
    flags = ["--logging_steps", "4", "--eval_steps", "5"]
    assert main(["train", "--config", "recipe.yaml", *flags]) == 0
    log = json.loads((stopped / "trainer_state.json").read_text())["log_history"]
    assert [row["step"] for row in log if "loss" in row] == [1, 2, 4, 6]  # and the last
    assert [row["step"] for row in log if "eval_loss" in row] == [5, 6]


def test_other_versions_are_one_line(stopped, caplog):
    """It names the old and the new ones; the versions that are the same are not named."""
    mark = stopped / "checkpoint-2" / "complete.json"
    versions = json.loads(mark.read_text())["versions"]
    change(mark, versions=versions | {"torch": "2.6.0", "transformers": "5.20.0"})
    config = stopped / "checkpoint-2" / "config.json"
    note = json.loads(mark.read_text())
    change(config, transformers_version="5.20.0")  # transformers compares it, too
    note["files"]["config.json"] = config.stat().st_size
    mark.write_text(json.dumps(note))
    assert main(["train", "--config", "recipe.yaml"]) == 0
    said = [r.getMessage() for r in caplog.records if "5.20.0" in r.getMessage()]
    assert len(said) == 1
    now = f"torch 2.6.0 (now {versions['torch']})"
    assert now in said[0] and f"transformers 5.20.0 (now {versions['transformers']})" in said[0]
    assert "trl" not in said[0]


def test_the_same_versions_are_no_line(stopped, caplog):
    """A resume as usual warns of nothing, transformers included: the head is tied."""
    assert main(["train", "--config", "recipe.yaml"]) == 0
    assert not [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


def test_a_checkpoint_of_the_model_alone_is_told(workshop, caplog):
    """Of ``save_only_model``: the optimizer begins anew, which no one would notice."""
    recipe(workshop, save_only_model=True)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    change(workshop / "out" / "run.json", finished=False)
    shutil.rmtree(workshop / "out" / "checkpoint-4")
    assert main(["train", "--config", "recipe.yaml"]) == 0
    assert "out/checkpoint-2 holds no state of the optimizer (save_only_model)" in caplog.text


@pytest.mark.parametrize(
    "file", ["rng_state.pth", "trainer_state.json", "optimizer.pt", "scheduler.pt"]
)
def test_a_damaged_file_of_an_old_checkpoint_is_named(stopped, capsys, file):
    """Of version 0.1.0 sizes alone are known: the run begins anew, or goes on from an older one."""
    newest = stopped / "checkpoint-3"
    shutil.copytree(stopped / "checkpoint-2", newest)
    content = (newest / file).read_bytes()
    half = len(content) // 2
    (newest / file).write_bytes(content[:half] + bytes(len(content) - half))
    sizes = {p.name: p.stat().st_size for p in newest.iterdir() if p.name != "complete.json"}
    (newest / "complete.json").write_text(json.dumps({"files": sizes}))
    assert main(["train", "--config", "recipe.yaml"]) == 0
    said = capsys.readouterr().err
    warning = f"warning: out/checkpoint-3 is damaged and not used: {file} cannot be read: "
    assert warning in said and "resuming from out/checkpoint-2" in said


def test_a_damaged_checkpoint_of_another_trainer_is_refused_by_name(stopped, capsys):
    """It has no mark: its files are tried."""
    (stopped / "checkpoint-2" / "complete.json").unlink()
    (stopped / "checkpoint-2" / "optimizer.pt").write_bytes(b"PK but no archive")
    flags = ["--output_dir", "other", "--resume_from_checkpoint", "out/checkpoint-2"]
    assert main(["train", "--config", "recipe.yaml", *flags]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "out/checkpoint-2 is torn: optimizer.pt cannot be read: " in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "broken JSON"),
        ('{"recipe": {"fields"', "broken JSON"),
        ("[]", "the content is []; it must be an object"),
        ("{}", "the entry 'recipe' is missing"),
        ('{"recipe": []}', "the entry 'recipe' is []; it must be an object"),
        ('{"recipe": {"data": {}}}', "the entry 'recipe.fields' is missing"),
        ('{"recipe": {"fields": [1]}}', "the entry 'recipe.fields' is [1]; it must be an object"),
        ('{"recipe": {"fields": {}, "models": 3}}', "the entry 'recipe.models' is 3"),
        ('{"recipe": {"fields": {}}, "finished": "yes"}', "the entry 'finished' is \"yes\""),
    ],
)
def test_a_damaged_note_of_a_run_is_one_line(stopped, capsys, text, message):
    """With file and entry, and how to go on; nothing is written."""
    (stopped / "run.json").write_text(text)
    assert main(["train", "--config", "recipe.yaml"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "out/run.json: " in line and message in line
    assert "name the newest checkpoint by resume_from_checkpoint" in line
    assert (stopped / "run.json").read_text() == text and steps(stopped) == [2]


def test_what_a_killed_run_left_half_written_is_removed(stopped):
    """Temporary files of ours go; those of others stay."""
    for name in ("README.md.123.part", "run.json.7.part", "movie.mkv.part"):
        (stopped / name).write_text("half")
    assert main(["train", "--config", "recipe.yaml"]) == 0
    assert [path.name for path in stopped.glob("*.part")] == ["movie.mkv.part"]


@pytest.mark.parametrize("weights", [3, {"model.safetensors": {"bytes": "many"}}])
def test_damaged_notes_of_weights_make_the_model_again(stopped, capsys, weights):
    """Which is what happens when the weights themselves are damaged."""
    change(stopped / "run.json", finished=True, weights=weights)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    said = capsys.readouterr().err
    assert "the final model is damaged, and is made again: out/run.json: the entry 'weights" in said
    assert (stopped / "model.safetensors").exists()


@pytest.mark.parametrize("is_noted", [True, False], ids=["noted", "in the log alone"])
def test_a_run_goes_on_with_the_pairs_that_it_began_with(stopped, capsys, is_noted):
    """A recipe that gives other pairs than the version that began the run is refused with these.

    With them written out the run goes on, to the weights that it would have had.
    """
    train = ["train", "--config", "recipe.yaml"]
    state = stopped / "checkpoint-2" / "trainer_state.json"
    mark, note = stopped / "checkpoint-2" / "complete.json", stopped / "run.json"
    began = "1:1,2:2"  # lens_layers auto is 1:1,2:3 here
    entries = json.loads(note.read_text())
    assert entries.pop("layer_map") == "1:1,2:3"
    note.write_text(json.dumps(entries | ({"layer_map": began} if is_noted else {})))
    state.write_text(state.read_text().replace("lens_loss/2:3", "lens_loss/2:2"))
    files = json.loads(mark.read_text())["files"]
    change(mark, files=files | {"trainer_state.json": state.stat().st_size})
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    assert main(train) == 2
    said = capsys.readouterr().err
    assert f"holds a run with the layer map {began}, and its recipe now gives 1:1,2:3" in said
    assert f'set lens_layers: "{began}" to go on as it began' in said
    assert {p: p.read_bytes() for p in before} == before
    assert main([*train, "--lens_layers", "1:1, 2:4"]) == 2  # neither of the two
    assert "lens_layers was not set and is now '1:1, 2:4'" in capsys.readouterr().err
    assert main([*train, "--lens_layers", "1:1, 2:2"]) == 0
    assert json.loads(note.read_text())["layer_map"] == began


@pytest.fixture
def served(workshop):
    """Two servers with one teacher, and a run of four steps stopped behind the second."""
    stubs = [Stub(toys.llama(4, 24, seed=1), toys.tokenizer()) for _ in range(2)]
    with serving(stubs[0]) as first, serving(stubs[1]) as second:
        fields = {"teacher_model_name_or_path": None, "lens_weight": 0.0, "max_steps": 4}
        fields |= {"teacher_server": first.url, "teacher_server_top_k": 4}
        recipe(workshop, **fields)
        assert main(["train", "--config", "recipe.yaml"]) == 0
        shutil.rmtree(workshop / "out" / "checkpoint-4")
        change(workshop / "out" / "run.json", finished=False)
        yield first, second


SERVED = {  # models at the second server, the name that is set now -> what is said
    "another address": (["teacher"], None, None),
    "its name": (["teacher"], "teacher", None),
    "its name, of two": (["teacher", "other"], "teacher", None),
    "another model": (["other"], None, "whose teacher is teacher, and teacher_server now gives ot"),
    "another name": (["other"], "other", "teacher_server_model was 'teacher' and is now 'other'"),
}


@pytest.mark.parametrize("name", SERVED)
def test_a_run_goes_on_with_the_model_that_a_server_had(served, capsys, name):
    """Wherever it is served now; another one is refused in one line, whether it is named or not."""
    models, named, message = SERVED[name]
    second = served[1]
    second.models[:] = models
    flags = ["--teacher_server", second.url]
    flags += [] if named is None else ["--teacher_server_model", named]
    status = main(["train", "--config", "recipe.yaml", *flags])
    said = capsys.readouterr().err
    if message is None:
        assert status == 0 and "resuming from out/checkpoint-2" in said
    else:
        assert status == 2 and message in said.splitlines()[-1]


def test_a_name_may_be_left_out_again(served, capsys):
    """The recipe named the model; the server has no other."""
    for flags in (["--teacher_server_model", "teacher"], []):
        assert main(["train", "--config", "recipe.yaml", *flags]) == 0
        change(Path("out/run.json"), finished=False)
        shutil.rmtree("out/checkpoint-4")
    served[0].models[:] = ["other"]
    assert main(["train", "--config", "recipe.yaml"]) == 2
    assert "teacher_server now gives other" in capsys.readouterr().err.splitlines()[-1]


def test_a_server_instead_of_none_is_another_recipe(served, capsys):
    """And the other way round."""
    recipe(Path("."), teacher_model_name_or_path=None, lens_weight=0.0, max_steps=4)
    assert main(["train", "--config", "recipe.yaml"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "teacher_server was 'http://127.0.0.1:" in last and "is now not set" in last


def test_a_run_that_began_at_another_goes_on_from_its_own(stopped, capsys):
    """The named checkpoint is where it began; repeated, the command takes no step twice."""
    flags = ["--output_dir", "other", "--resume_from_checkpoint", "out/checkpoint-2"]
    assert main(["train", "--config", "recipe.yaml", *flags]) == 0
    assert "resuming from out/checkpoint-2" in capsys.readouterr().err
    other = stopped.parent / "other"
    shutil.rmtree(other / "checkpoint-6")
    change(other / "run.json", finished=False)
    assert main(["train", "--config", "recipe.yaml", *flags]) == 0
    said = capsys.readouterr().err
    assert "resuming from other/checkpoint-4; out/checkpoint-2 is where this run began" in said


def test_a_finished_run_does_not_change_its_dtype(workshop, capsys):
    """Asked for another, it says so instead of calling it done."""
    recipe(workshop, save_dtype="bfloat16")
    assert main(["train", "--config", "recipe.yaml"]) == 0
    for flags, status, said in (
        ([], 0, "nothing to do"),
        (["--save_dtype", "auto"], 0, "nothing to do"),
        (["--save_dtype", "float32"], 2, "with save_dtype bfloat16, and it is now float32"),
    ):
        capsys.readouterr()
        assert main(["train", "--config", "recipe.yaml", *flags]) == status
        found = capsys.readouterr()
        assert said in found.out + found.err
