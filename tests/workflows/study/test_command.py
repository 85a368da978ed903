"""Whole studies of toy models: what they leave, and that a kill changes nothing."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import toys
import yaml
from processes import python
from workflows.study.toy_study import STUDY, environment, furnish

from distilllens.cli import main
from distilllens.evaluate.table import read_table
from distilllens.train.checkpoint import mark_whole


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A study that nobody disturbed: its folder, and what the command printed."""
    folder = tmp_path_factory.mktemp("study")
    furnish(folder)
    found = run("--config", "study.yaml", "--output", "out", folder=folder)
    assert found.returncode == 0, found.stderr
    return folder, found


def run(*flags, folder, command="study", timeout=600):
    """Run the command in a process of its own."""
    words = [python(), "-m", "distilllens", command, *flags]
    return subprocess.run(
        words, cwd=folder, capture_output=True, text=True, timeout=timeout, env=environment()
    )


def test_it_leaves_runs_results_tables_and_a_page(done):
    """Ordinary run folders and results, one of each run; the page has every part."""
    folder, found = done
    for method in ("kd", "lens"):
        for rate in ("0.001", "0.01"):
            run_folder = folder / f"out/runs/{method}/rate-{rate}-seed-1"
            assert json.loads((run_folder / "run.json").read_text())["finished"] is True
            assert not [*run_folder.glob("checkpoint-*")]
    assert "trained; cross-entropy" in found.stderr
    assert "Traceback" not in found.stderr
    scores = json.loads((folder / "out/scores.json").read_text())
    assert [*scores["methods"]] == ["kd", "lens"]
    assert (folder / "out/scores.md").read_text() in found.stdout
    page = (folder / "out/report.html").read_text()
    for words in ("Did it help?", "Difference from kd", "Divergence from the teacher, by depth"):
        assert words in page


def test_each_method_has_the_rate_that_was_best_on_the_development_set(done):
    """By the cross-entropy of the results themselves; other seeds run with that rate alone."""
    folder, _ = done
    scores = json.loads((folder / "out/scores.json").read_text())
    for method in ("kd", "lens"):
        found = {}
        for rate in ("0.001", "0.01"):
            table = read_table(folder / f"out/results/{method}/rate-{rate}-seed-1/dev")
            ((by_metric,),) = [[*row.values()] for row in table.samples.values()]
            samples = by_metric["log_perplexity"]
            found[rate] = samples.totals.sum() / samples.counts.sum()
        best = min(found, key=found.get)
        assert scores["methods"][method]["learning_rate"] == float(best)
        others = {path.name for path in (folder / f"out/runs/{method}").iterdir()}
        assert others == {"rate-0.001-seed-1", "rate-0.01-seed-1", f"rate-{best}-seed-2"}


def test_means_and_differences_are_those_of_the_runs(done):
    """Recomputed from the results folders: a mean over seeds, and seed by seed against kd."""
    folder, _ = done
    scores = json.loads((folder / "out/scores.json").read_text())["methods"]
    values = {}
    for method in ("kd", "lens"):
        rate = f"{scores[method]['learning_rate']:g}"
        for seed in (1, 2):
            file = folder / f"out/results/{method}/rate-{rate}-seed-{seed}/dev"
            (rows,) = file.glob("*/*/references.jsonl")
            rows = [json.loads(line) for line in rows.read_text().splitlines()]
            tokens = sum(row["num_tokens"] for row in rows)
            values[method, seed] = sum(row["kl"] for row in rows) / tokens
    for method in ("kd", "lens"):
        (kl,) = [row for row in scores[method]["scores"] if row["metric"] == "kl"]
        both = [values[method, seed] for seed in (1, 2)]
        assert kl["mean"] == pytest.approx(sum(both) / 2, rel=1e-12)
        assert kl["deviation"] == pytest.approx(abs(both[0] - both[1]) / 2**0.5, rel=1e-9)
    (difference,) = [row for row in scores["lens"]["differences"] if row["metric"] == "kl"]
    expected = {str(seed): values["lens", seed] - values["kd", seed] for seed in (1, 2)}
    assert difference["by_seed"] == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_both_read_one_teacher_cache(done):
    """The teacher ran once for all runs."""
    folder, _ = done
    (cache,) = [path for path in (folder / "out/caches").iterdir() if path.is_dir()]
    for file in (folder / "out/recipes").rglob("*.yaml"):
        assert f"teacher_cache: out/caches/{cache.name}" in file.read_text()


def test_a_run_can_be_repeated_by_its_recipe(done):
    """It is the run of ``distilllens train``, which finds it finished."""
    folder, _ = done
    recipe = "out/recipes/kd/rate-0.001-seed-1.yaml"
    found = run("--config", recipe, folder=folder, command="train")
    assert found.returncode == 0, found.stderr
    assert "nothing to do" in found.stdout + found.stderr


def test_again_does_nothing(done):
    """Every file of the runs stays as it is."""
    folder, first = done
    before = {
        path: path.stat().st_mtime_ns
        for part in ("runs", "results", "caches")
        for path in (folder / "out" / part).rglob("*")
        if path.is_file()
    }
    again = run("--config", "study.yaml", "--output", "out", folder=folder)
    assert again.returncode == 0, again.stderr
    assert again.stdout == first.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_results_alone_make_the_tables(done, tmp_path):
    """Without students, checkpoints and caches: of another machine, or removed for their size."""
    folder, first = done
    whole = shutil.ignore_patterns("out")
    shutil.copytree(folder, tmp_path, ignore=whole, dirs_exist_ok=True)
    shutil.copytree(folder / "out/results", tmp_path / "out/results")
    shutil.copy(folder / "out/study.json", tmp_path / "out")
    again = run("--config", "study.yaml", "--output", "out", folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout == first.stdout
    assert not (tmp_path / "out/caches").exists() and "trained" not in again.stderr


def test_a_killed_study_ends_at_the_same_tables(done, tmp_path):
    """Killed in the middle, with its run; then the same command."""
    undisturbed, _ = done
    furnish(tmp_path)
    words = [python(), "-m", "distilllens", "study", "--config", "study.yaml"]
    process = subprocess.Popen(
        [*words, "--output", "out"],
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in process.stderr:
        if re.match(r"2 of \d+", line):
            break
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    time.sleep(1.5)  # its run ends with it
    assert not (tmp_path / "out/scores.md").exists()
    found = run("--config", "study.yaml", "--output", "out", folder=tmp_path)
    assert found.returncode == 0, found.stderr
    for name in ("scores.md", "scores.json"):
        there, here = (folder / "out" / name for folder in (undisturbed, tmp_path))
        assert here.read_bytes() == there.read_bytes()


def test_the_cost_of_a_run_that_was_finished_before_is_that_of_its_steps(done, tmp_path):
    """Killed between its last step and its scores: the checkpoint that is left says nothing."""
    shutil.copytree(done[0], tmp_path, dirs_exist_ok=True)
    results = tmp_path / "out/results/kd/rate-0.001-seed-1"
    before = json.loads((results / "cost.json").read_text())
    shutil.rmtree(results)
    checkpoint = tmp_path / "out/runs/kd/rate-0.001-seed-1/checkpoint-4"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text("{}")
    mark_whole(checkpoint)
    found = run("--config", "study.yaml", "--output", "out", folder=tmp_path)
    assert found.returncode == 0, found.stderr
    cost = json.loads((results / "cost.json").read_text())
    assert cost["seconds"] == before["seconds"]
    assert before["peak_memory"] > 1e8 and cost["peak_memory"] is None
    assert cost["processor_seconds"] is None
    assert not checkpoint.exists()


def test_equal_flops_and_hours_that_are_spent(done):
    """The lens costs more, so it has fewer steps; one seed has no interval; no time is left."""
    folder, _ = done
    text = STUDY[: STUDY.index("learning_rates")].replace("max_steps: 4", "max_steps: 12")
    text = text.replace("seeds: 2", "seeds: 1") + "equal: flops\n"
    (folder / "flops.yaml").write_text(text)
    found = run("--config", "flops.yaml", "--output", "flops", "--jobs", "2", folder=folder)
    assert found.returncode == 0, found.stderr
    trials, steps = {}, {}
    for method in ("kd", "lens"):
        trial = folder / f"flops/trials/cached/{method}.json"
        trials[method] = json.loads(trial.read_text())["flops"]
        state = folder / f"flops/runs/{method}/seed-1/trainer_state.json"
        steps[method] = json.loads(state.read_text())["global_step"]
    assert steps == {"kd": 12, "lens": int(12 * trials["kd"] / trials["lens"])}
    assert steps["lens"] < 12
    assert "one seed gives no interval" in found.stdout
    text = re.sub("learning_rates.*\n", "", STUDY).replace("seeds: 2", "seeds: 1")
    (folder / "hours.yaml").write_text(text + "max_hours: 1.0e-9\n")
    found = run("--config", "hours.yaml", "--output", "hours", folder=folder)
    assert found.returncode == 2
    assert "max_hours of 1e-09 are spent before lens ran; raise it" in found.stderr
    assert not (folder / "hours/scores.md").exists()
    assert (folder / "hours/results/kd/seed-1/answer.json").is_file()  # what is trained is asked


def test_equal_seconds(done):
    """The steps of a method are what the baseline's seconds suffice for; timings are kept."""
    folder, _ = done
    text = STUDY[: STUDY.index("learning_rates")].replace("max_steps: 4", "max_steps: 6")
    text = text.replace("seeds: 2", "seeds: 1") + "equal: seconds\n"
    (folder / "seconds.yaml").write_text(text)
    words = ("--config", "seconds.yaml", "--output", "seconds")
    text = text.replace("max_steps: 6", "max_steps: 3") + "share_cache: false\n"
    (folder / "seconds.yaml").write_text(text)
    assert run(*words, "--dry-run", folder=folder).returncode == 0
    for method, seconds in {"kd": 0.1, "lens": 0.14}.items():
        file = folder / f"seconds/trials/live/{method}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"seconds": seconds}))
    # Another number of steps is no other step: the timings are kept.
    (folder / "seconds.yaml").write_text(text.replace("max_steps: 3", "max_steps: 6"))
    found = run(*words, folder=folder)
    assert found.returncode == 0, found.stderr
    assert "timing" not in found.stderr and "equal seconds: steps of kd 6, lens 4" in found.stderr
    for method, steps in {"kd": 6, "lens": 4}.items():
        state = folder / f"seconds/runs/{method}/seed-1/trainer_state.json"
        assert json.loads(state.read_text())["global_step"] == steps


def test_a_rate_that_is_too_high_is_an_answer(done, tmp_path):
    """It is told, the other rate goes on; and another teacher of that name is refused."""
    shutil.copytree(done[0], tmp_path, ignore=shutil.ignore_patterns("out*"), dirs_exist_ok=True)
    text = (
        STUDY[: STUDY.index("evaluate")]
        .replace("1.0e-2", "1.0e+30")
        .replace("seeds: 2", "seeds: 1")
    )
    (tmp_path / "study.yaml").write_text(text)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/kd").write_text("of somebody")
    (tmp_path / "out/recipes/kd").mkdir(parents=True)
    (tmp_path / "out/study.json").write_text("{}")
    (tmp_path / "out/recipes/kd/rate-0.001-seed-1.yaml").symlink_to(tmp_path / "foreign/kd")
    found = run("--config", "study.yaml", "--output", "out", folder=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "kd/rate-1e+30-seed-1 diverged" in found.stderr
    assert "diverged" in found.stdout
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert scores["learning_rates"]["kd"]["1e+30"] is None
    assert [one["learning_rate"] for one in scores["methods"].values()] == [1e-3, 1e-3]
    assert (tmp_path / "foreign/kd").read_text() == "of somebody"
    toys.llama(4, 24, seed=2).save_pretrained(tmp_path / "teacher")
    found = run("--config", "study.yaml", "--output", "out", folder=tmp_path)
    assert found.returncode == 2
    assert "teacher_model_name_or_path is another model now; name another" in found.stderr


BAD = {
    "no config": (["--jobs", "1"], "--config is missing"),
    "no output": (["--config", "study.yaml"], "--output is missing"),
    "no file": (["--config", "gone.yaml", "--output", "out"], "gone.yaml does not exist"),
    "no jobs": (["--config", "study.yaml", "--output", "out", "--jobs", "0"], "--jobs must be at"),
    "a foreign folder": (["--config", "study.yaml", "--output", "student"], "holds no study"),
    "a file": (["--config", "study.yaml", "--output", "train.jsonl"], "train.jsonl is a file"),
    "a flag of another command": (
        ["--config", "study.yaml", "--output", "out", "--seeds", "3"],
        "unrecognized arguments: --seeds 3",
    ),
    "other values than before": (
        ["--config", "longer.yaml", "--output", "out"],
        "kd/rate-0.001-seed-1 was done with another study: max_steps was 4 and is now 5; name",
    ),
    "other questions than before": (
        ["--config", "asked.yaml", "--output", "out"],
        "seed-1 was done with another study: max_new_tokens was 4 and is now 5; name",
    ),
    "depths that the models do not have": (
        ["--config", "deep.yaml", "--output", "out"],
        "deep.yaml: method lens: ",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(done, monkeypatch, capsys, case):
    """Before a run begins."""
    folder, _ = done
    monkeypatch.chdir(folder)
    deep = STUDY.replace("lens_weight: 1.0", 'lens_layers: "9:9"')
    (folder / "deep.yaml").write_text(deep)
    (folder / "longer.yaml").write_text(STUDY.replace("max_steps: 4", "max_steps: 5"))
    (folder / "asked.yaml").write_text(STUDY.replace("tokens: 4", "tokens: 5"))
    flags, message = BAD[case]
    flags = [*flags[:3], "new"] if flags[3:4] == ["out"] and case.startswith("depths") else flags
    assert main(["study", *flags]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("distilllens: error: ")
    assert message in error


@pytest.mark.parametrize("name", ["stories260K", "smollm2"])
def test_a_study_of_a_pretrained_model(shared, tmp_path, name):
    """Two methods of studies/smollm2_few.yaml with two seeds and 30 steps, on real weights.

    Nothing is said of which method is better: 30 steps do not show it.
    """
    model = shared / "models" / name
    if not model.is_dir():
        pytest.skip(f"{model} is not there")
    rows = (shared / "data/alpaca_train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in rows if 60 < len(row) < 240][:160]
    (tmp_path / "train.jsonl").write_text("\n".join(rows[:120]) + "\n", encoding="utf-8")
    (tmp_path / "dev.jsonl").write_text("\n".join(rows[120:]) + "\n", encoding="utf-8")
    study = yaml.safe_load(Path("studies/smollm2_few.yaml").read_text(encoding="utf-8"))
    blocks = json.loads((model / "config.json").read_text())["num_hidden_layers"]
    of_this_test = {
        "teacher_model_name_or_path": str(model),
        "student_blocks": (blocks + 1) // 2,
        "train_file": "train.jsonl",
        "eval_file": "dev.jsonl",
        "max_steps": 30,
        "warmup_steps": 2,
        "max_length": 512,
        "eval_steps": 15,
        "save_steps": 15,
    }
    study["base"] = {**study["base"], **of_this_test}
    del study["base"]["num_train_epochs"], study["evaluate"]
    study["methods"] = {key: study["methods"][key] for key in ("fkl", "fkl_lens")}
    study |= {"seeds": 2, "learning_rates": [5e-4]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    found = run("--config", "study.yaml", "--output", "out", folder=tmp_path, timeout=3600)
    assert found.returncode == 0, found.stderr
    scores = json.loads((tmp_path / "out/scores.json").read_text())["methods"]
    for method in ("fkl", "fkl_lens"):
        for seed in (1, 2):
            folder = tmp_path / f"out/runs/{method}/rate-0.0005-seed-{seed}"
            logs = json.loads((folder / "trainer_state.json").read_text())["log_history"]
            distance = [log["eval_output_loss"] for log in logs if "eval_output_loss" in log]
            assert distance[-1] < distance[0]
        (kl,) = [row for row in scores[method]["scores"] if row["metric"] == "kl"]
        assert kl["by_seed"]["2"] == pytest.approx(distance[-1], rel=0.02)  # bf16 in training
