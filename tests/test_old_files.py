"""Runs, checkpoints, caches and results that an earlier version wrote are read by this one.

``old_files/0.1.0`` was written by version 0.1.0 (commit 5bc7b05): a finished run, one stopped at
step 3 of 4 with its checkpoint of step 2, two teacher caches, results finished and begun, judge
replies.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import toys
from safetensors.torch import load_file

from distilllens.cli import main

OLD = Path(__file__).parent / "old_files" / "0.1.0"
EVALUATION = "evaluate --model finished --model student --benchmark train.jsonl --teacher teacher"
EVALUATION += " --seeds 10,20 --max_new_tokens 6 --output"


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A copy of the old files, in which the commands run."""
    shutil.copytree(OLD, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    monkeypatch.delenv("DISTILLLENS_DEBUG", raising=False)
    return tmp_path / "old"


def files_of(folder):
    """Path -> content of every file but the timings."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "timings.jsonl"
    }


def test_a_stopped_run_resumes(old, caplog):
    """From its checkpoint of step 2, to the weights of the run that was not stopped."""
    train = ["train", "--config", "recipe.yaml", "--output_dir", "stopped", "--report", "false"]
    assert main(train) == 0
    assert "stopped/checkpoint-2" in caplog.text
    found, expected = (
        load_file(old / run / "model.safetensors") for run in ("stopped", "finished")
    )
    assert toys.drift(expected, found) < 1e-5
    state = json.loads((old / "stopped" / "trainer_state.json").read_text())
    assert state["global_step"] == 4 and state["log_history"][0]["step"] == 1


def test_a_finished_run_is_known(old, capsys):
    """Its recipe is the same one: nothing is trained again, and its report can be made."""
    before = files_of(old / "finished")
    assert main(["train", "--config", "recipe.yaml", "--report", "false"]) == 0
    assert "finished run of this recipe" in capsys.readouterr().err
    assert files_of(old / "finished") == before
    assert main(["train", "--config", "recipe.yaml", "--lens_weight", "0.5"]) == 2
    assert "lens_weight was not set and is now 0.5" in capsys.readouterr().err


def test_a_finished_run_has_a_report(old):
    """Losses, divergence by depth and answers, from what the old run noted."""
    pytest.importorskip("matplotlib")
    note = old / "finished" / "run.json"
    note.write_text(note.read_text().replace("/home/somebody", str(old)))
    assert main(["report", "finished", "--limit", "2"]) == 0
    page = (old / "finished" / "report.html").read_text()
    assert all(
        words in page for words in ("Loss terms", "Divergence from the teacher", "Question 2")
    )


@pytest.mark.parametrize("kind", ["auto", "int8"])
def test_a_cache_takes_the_teachers_place(old, kind):
    """Read without a teacher; of an exact one the student's weights are those of the old run."""
    before = files_of(old / f"cache-{kind}")
    recipe = (old / "recipe.yaml").read_text().replace("teacher_model_name_or_path: teacher\n", "")
    (old / "recipe.yaml").write_text(recipe)
    flags = [
        "--teacher_cache",
        f"cache-{kind}",
        "--teacher_cache_dtype",
        kind,
        "--output_dir",
        "out",
    ]
    flags += ["--report", "false"]
    assert main(["train", "--config", "recipe.yaml", *flags]) == 0
    found, expected = (load_file(old / run / "model.safetensors") for run in ("out", "finished"))
    assert toys.drift(expected, found) < (1e-5 if kind == "auto" else 1e-2)
    assert files_of(old / f"cache-{kind}") == before


def test_a_whole_cache_is_not_written_again(old):
    """The command that wrote it finds nothing to do."""
    before = files_of(old / "cache-auto")
    assert main(["cache", "--config", "recipe.yaml", "--teacher_cache", "cache-auto"]) == 0
    assert files_of(old / "cache-auto") == before


def cells(text):
    """The lines of a table or text; columns may be wider."""
    lines = (line for line in text.splitlines() if not line.startswith("|-"))
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def test_results_are_compared(old, capsys):
    """The tables are those that were written beside them, under clearer words.

    Perplexities are compared by their logarithms, and a note says that answers were cut.
    """
    assert main(["compare", "results"]) == 0
    before = (old / "results" / "scores.md").read_text().strip().split("\n\n")
    found = capsys.readouterr().out.strip().split("\n\n")
    changes = {
        "First - second": "In each row, the model named first minus the one named second",
        "+0.00] too few examples to tell": "+0.00] tells nothing: 0 for both",
        "ended by themselves": "cut at max_new_tokens",
        "25.0 %": "75.0 %",
        # log(30.245 / 26.655), of the perplexities above, is 0.1263.
        "+3.590 [+0.611, +6.916]": "+0.1263 [+0.0253, +0.2240]",
    }
    for part, now in zip(before, found, strict=False):
        for words in changes.items():
            part = part.replace(*words)
        if "+0.1263" in part:
            part = part.replace(
                "perplexity of the references", "log-perplexity of the references (nats per token)"
            )
        assert cells(now) == cells(part)
    assert found[len(before) :] == [
        "On train, answers were cut at --max_new_tokens 6, so that their beginnings were scored: "
        "finished 75 %, student 75 %."
    ]


def test_old_results_get_a_row_of_the_teacher(old, capsys):
    """The command that made them reads the references again; no answer changes."""
    assert main([*EVALUATION.split(), "results"]) == 0
    assert "| teacher " in capsys.readouterr().out
    rows = [
        [json.loads(line) for line in (folder / "references.jsonl").read_text().splitlines()]
        for folder in (old / "results/train/student", OLD / "results/train/student")
    ]
    for now, before in zip(*rows, strict=True):
        assert now["teacher_nll"] > 0 and now["num_tokens"] == before["num_tokens"]
        for name in ("nll", "kl"):
            assert now[name] == pytest.approx(before[name], rel=1e-5)


@pytest.mark.parametrize("folder", ["results", "results-begun"])
def test_results_go_on(old, folder):
    """A finished evaluation stays as it is, and one that was stopped ends at the same files."""
    assert main([*EVALUATION.split(), folder]) == 0
    expected = files_of(OLD / "results")
    found = files_of(old / folder)
    assert found.keys() == expected.keys() | {"complete.json"}
    settings = json.loads(found["evaluation.json"])["settings"]
    assert settings.pop("text_metrics")
    assert set(settings.pop("trivial")["train"]) == {"rouge_l", "exact_match"}
    assert settings == json.loads(expected["evaluation.json"])["settings"]
    for name in expected:
        if name.endswith(".jsonl") and "references" not in name:
            assert found[name] == expected[name], name
    scores = [json.loads(files["scores.json"])["scores"] for files in (found, expected)]
    for metric, columns in scores[1].items():
        for model, score in columns["train"].items():
            assert scores[0][metric]["train"][model]["mean"] == pytest.approx(score["mean"]), metric


def test_judge_replies_are_found(old):
    """A judge with the old cache needs no server."""
    pytest.importorskip("openai")
    from distilllens.evaluate.judge.judge import Judge
    from distilllens.evaluate.judge.verdicts import Case

    judge = Judge("stub", base_url="http://localhost:8/v1", cache=old / "judge.jsonl")
    verdicts = judge([Case("Why?", "the cat", "the dog"), Case("What?", "a hill", "a mat")])
    assert [verdict.score for verdict in verdicts] == [5.5, 2.5]


# Written by commit 10c4a97, before a checkpoint noted how the rows of a step were shared out.
BEFORE = OLD.parent / "10c4a97"


@pytest.fixture
def before(tmp_path, monkeypatch):
    """A copy of those files, in which the commands run."""
    shutil.copytree(BEFORE, tmp_path / "before")
    monkeypatch.chdir(tmp_path / "before")
    monkeypatch.delenv("DISTILLLENS_DEBUG", raising=False)
    return tmp_path / "before"


def test_files_of_the_commit_before_are_read(before, capsys, caplog):
    """A checkpoint with hashes, a finished run, a cache, and results of evaluate."""
    train = ["train", "--config", "recipe.yaml", "--report", "false", "--output_dir"]
    assert main([*train, "stopped"]) == 0
    assert "stopped/checkpoint-2" in caplog.text
    weights = [load_file(before / run / "model.safetensors") for run in ("stopped", "finished")]
    assert toys.drift(*weights) < 1e-6
    assert main([*train, "finished"]) == 0
    assert "finished run of this recipe" in capsys.readouterr().err
    assert main([*train, "cached", "--teacher_cache", "cache"]) == 0
    cached = load_file(before / "cached" / "model.safetensors")
    assert toys.drift(cached, weights[1]) < 1e-5
    assert main(["compare", "results"]) == 0
    assert "finished" in capsys.readouterr().out


@pytest.mark.faults
def test_a_stopped_study_of_the_commit_before_goes_on(before):
    """To its page, without a run of before trained again."""
    done = before / "study" / "runs" / "kd" / "rate-0.001-seed-1" / "model.safetensors"
    trained = done.read_bytes(), done.stat().st_mtime_ns
    command = [sys.executable, "-m", "distilllens", "study", "--config", "study.yaml"]
    subprocess.run([*command, "--output", "study"], check=True)
    assert (before / "study" / "study.html").exists()
    assert (done.read_bytes(), done.stat().st_mtime_ns) == trained
