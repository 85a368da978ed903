"""A results folder survives an interruption and is read again."""

import json

import numpy as np
import pytest

from distilllens import files
from distilllens.evaluate.calibration import Calibration
from distilllens.evaluate.judge.replies import Reply, ReplyCache
from distilllens.evaluate.results import SETTINGS, Results, Unit
from distilllens.evaluate.scores import score
from distilllens.evaluate.table import read_table
from distilllens.jsonl import write_rows
from distilllens.stored import DamagedFile

UNIT = Unit("test", "kd", 10)


def settings(**changes):
    """Settings of an evaluation of one model on one benchmark."""
    return {
        "models": {"kd": {"model.safetensors": "ab"}},
        "names": {"models": {"kd": "runs/kd"}},
        "versions": {"torch": "2"},
        "benchmarks": {"test": {"sha256": "cd", "examples": 2}},
        "seeds": [10],
        "decoding": {"temperature": 1.0},
        "limit": None,
        "max_prompt_length": None,
        "chat": False,
        "dtype": "auto",
        "backend": "transformers",
        "teacher": None,
        "sbert": None,
        "judge": None,
        **changes,
    }


def row(example, **more):
    """A finished answer."""
    found = {"example": example, "answer": "ja 東京", "num_tokens": 2, "finished": True}
    return found | {"near_ties": 1} | more


def test_rows_survive_a_torn_line(tmp_path):
    """A torn line is lost alone, whatever is appended after it."""
    results = Results(tmp_path)
    results.append(UNIT, 0, [row(0), row(1)])
    path = tmp_path / "test" / "kd" / "seed-10.process-0.jsonl"
    whole = path.read_bytes()
    for cut in range(whole.index(b"\n") + 2, len(whole)):
        path.write_bytes(whole[:cut])
        assert set(results.parts(UNIT)) == {0} | ({1} if cut == len(whole) - 1 else set())
        results.append(UNIT, 0, [row(2)])
        assert {0, 2} <= set(results.parts(UNIT))
        assert results.parts(UNIT)[2] == row(2)


def test_parts_of_all_processes_count_and_go_when_all_is_done(tmp_path):
    """One file per process during the run and one in the end; seeds are kept apart."""
    results = Results(tmp_path)
    results.append(UNIT, 0, [row(0)])
    results.append(UNIT, 1, [row(1)])
    results.append(Unit("test", "kd", 1), 0, [row(7)])
    assert set(results.parts(UNIT)) == {0, 1}
    assert set(results.parts(Unit("test", "kd", 1))) == {7}
    assert results.answers(UNIT) is None
    results.finish(UNIT, [row(0), row(1)])
    assert results.answers(UNIT) == [row(0), row(1)]
    assert sorted(p.name for p in (tmp_path / "test" / "kd").iterdir()) == [
        "seed-1.process-0.jsonl",
        "seed-10.jsonl",
    ]
    assert Unit("test", "kd", None).name == "greedy"


def test_a_folder_belongs_to_one_evaluation(tmp_path):
    """The first setting that differs is named; the same settings resume."""
    results = Results(tmp_path / "out")
    results.check(settings())
    results.begin(settings(), "first")
    results.check(settings())
    with pytest.raises(ValueError, match=r"decoding\.temperature was 1\.0 and is now 0\.5"):
        results.check(settings(decoding={"temperature": 0.5}))
    with pytest.raises(ValueError, match=r"models\.kd\.model\.safetensors was 'ab'"):
        results.check(settings(models={"kd": {"model.safetensors": "ef"}}))


def test_what_is_only_noted_may_change(tmp_path):
    """A path spelled differently or another version is accepted; the first stays recorded."""
    results = Results(tmp_path / "out")
    results.begin(settings(), "first")
    other = settings(names={"models": {"kd": "./runs/kd"}}, versions={"torch": "3"})
    results.check(other)
    results.begin(other, "second")
    assert results.settings()["versions"] == {"torch": "2"}


def test_a_metric_may_be_added_but_not_changed(tmp_path):
    """A metric may be added or left out, and replaced if it has no values yet."""
    folder = tmp_path / "out"
    results = Results(folder)
    results.begin(settings(), "first")
    before = (folder / SETTINGS).read_text()
    results.begin(settings(), "again")
    assert (folder / SETTINGS).read_text() == before
    results.check(settings(sbert="mini"))
    results.begin(settings(sbert="mini"), "second")
    results.check(settings())
    results.begin(settings(), "third")
    note = json.loads((folder / SETTINGS).read_text())
    assert (note["settings"]["sbert"], note["command"]) == ("mini", "second")
    results.check(settings(sbert="large"))
    results.finish(UNIT, [row(0, sbert=0.5)])
    with pytest.raises(ValueError, match="sbert was 'mini' and is now 'large'"):
        results.check(settings(sbert="large"))


def test_what_a_killed_process_left_is_taken_away(tmp_path):
    """Half-written files are deleted when the evaluation resumes; partial answers stay."""
    results = Results(tmp_path)
    results.begin(settings(), "first")
    results.append(UNIT, 0, [row(0)])
    left = [tmp_path / "scores.json.123.part", tmp_path / "test" / "kd" / "seed-10.jsonl.7.part"]
    for path in left:
        path.write_text('{"example": 5}')
    assert set(results.parts(UNIT)) == {0}
    results.begin(settings(), "first")
    assert not any(path.exists() for path in left)
    assert set(results.parts(UNIT)) == {0}


STRANGERS = (
    "scores.old.part",
    "scores.old.7.part",
    "scores.json.part",
    "mine/download.jsonl.part",
    "mine/seed-10.jsonl.7.part",
    "test/kd/download.jsonl.7.part",
    "test/kd/seed-10.jsonl.part",
    "test/kd/seed-10.jsonl.7.part/inside",
    "test/kd/deeper/seed-10.jsonl.7.part",
    "test/kd/evaluation.json.7.part",
    "evaluation.json.seven.part",
)


@pytest.mark.parametrize("name", STRANGERS)
def test_somebody_elses_temporary_file_stays(tmp_path, name):
    """One of ours has our name, a process and a place where we write."""
    results = Results(tmp_path)
    results.begin(settings(), "first")
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    results.begin(settings(), "first")
    assert (tmp_path / name).read_text() == "mine"


LINKS = ("test/kd/seed-10.process-0.jsonl", "timings.jsonl", "judge.jsonl", "test/kd", "test")


@pytest.mark.parametrize("name", LINKS)
def test_nothing_is_written_through_a_link(tmp_path, name):
    """It is named before any work, and by whoever would write."""
    results, place = Results(tmp_path / "out"), tmp_path / "out" / name
    results.begin(settings(), "first")
    place.parent.mkdir(parents=True, exist_ok=True)
    mine = tmp_path / "mine"
    mine.touch() if place.suffix else mine.mkdir()
    place.symlink_to(mine)
    with pytest.raises(ValueError, match=f"{place} is a symbolic link, through which nothing"):
        results.check(settings())
    writing = {
        LINKS[0]: lambda: results.append(UNIT, 0, [row(0)]),
        "timings.jsonl": lambda: results.note_time(seconds=1),
        "judge.jsonl": lambda: ReplyCache(place).add("a", Reply("b", False, 1, 1)),
    }
    if name in writing:
        with pytest.raises(ValueError, match=f"{place} is a symbolic link"):
            writing[name]()
        assert mine.read_text() == ""


def test_a_torn_reply_is_no_obstacle(tmp_path):
    """A judge's replies are sorted; a torn line, even one cut inside a character, is dropped."""
    results = Results(tmp_path)
    lines = ['{"key": "b", "text": "京"}', '{"key": "a"}']
    (tmp_path / "judge.jsonl").write_bytes(
        "\n".join(lines).encode() + '\n{"key": "c", "京'.encode()[:-1]
    )
    results.sort_replies()
    assert (tmp_path / "judge.jsonl").read_text().splitlines() == lines[::-1]


def test_a_metric_that_only_some_rows_have_is_not_read(tmp_path):
    """If adding a metric is interrupted, the folder still reads as before."""
    folder = finished(tmp_path)
    rows = [{**r, "sbert": 0.5} for r in Results(folder).answers(UNIT)]
    Results(folder).finish(UNIT, rows)
    assert "sbert" not in read_table(folder).samples["test"]["kd"]


def alone(**changes):
    """Settings of an evaluation without answers."""
    return settings(seeds=[], decoding={}, text_metrics=None, references_only=True, **changes)


def test_a_folder_has_answers_or_none(tmp_path):
    """Whatever else differs, this is named; version 0.1.0 did not note that there are answers."""
    for name, before, after in (("out", settings(), alone()), ("alone", alone(), settings())):
        results = Results(tmp_path / name)
        results.begin(before, "first")
        results.check(before)
        words = [bool(one.get("references_only")) for one in (before, after)]
        message = "references_only was {} and is now {}; name another folder".format(*words)
        with pytest.raises(ValueError, match=message):
            results.check(after | {"chat": True})
        with pytest.raises(ValueError, match="limit was None and is now 7"):
            results.check(before | {"limit": 7})


def test_references_alone_are_finished(tmp_path):
    """Two files a model; a row is read back by its example."""
    results = Results(tmp_path)
    results.begin(alone(), "first")
    with pytest.raises(ValueError, match="is not finished: reference likelihoods of kd on test"):
        read_table(tmp_path)
    rows = [{"example": n, "nll": 1.0, "num_tokens": 2, "kl": 0.5} for n in range(2)]
    results.finish_references("test", "kd", rows, Calibration())
    results.close()
    assert results.is_sealed()
    results.check(alone())
    assert results.is_complete
    assert json.loads((tmp_path / "complete.json").read_text())["files"].keys() == {
        "test/kd/references.jsonl",
        "test/kd/calibration.json",
    }
    table = read_table(tmp_path)
    assert table.samples["test"]["kd"].keys() == {"perplexity", "log_perplexity", "kl"}
    assert score("kl", table.samples["test"]["kd"]["kl"]).mean == 0.25  # 1 nat, 4 tokens
    assert table.answers["test"]["kd"] == {}


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (alone() | {"seeds": [10]}, "the entry 'settings.seeds' has seeds, but"),
        (settings(seeds=[]), "the entry 'settings.seeds' is empty"),
        (alone() | {"references_only": False}, "the entry 'settings.seeds' is empty"),
        (alone() | {"references_only": "yes"}, "'settings.references_only' is \"yes\"; it must be"),
    ],
)
def test_seeds_and_their_absence_agree(tmp_path, about, message):
    """A changed word of the settings is named."""
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({"settings": about, "command": "first"}))
    with pytest.raises(DamagedFile) as refused:
        read_table(tmp_path)
    assert str(refused.value).startswith(str(path)) and message in str(refused.value)


def test_other_folders_are_left_alone(tmp_path):
    """A file, and a folder with other things in it."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no evaluation"):
        Results(tmp_path).check(settings())
    with pytest.raises(ValueError, match="is a file; name a folder"):
        Results(tmp_path / "notes.txt").check(settings())


JUDGED = [{"judge": 5.0, "judge_reference": 8.0}, {"judge": None, "judge_reference": None}]


def finished(folder, **changes):
    """A folder with two examples of two seeds."""
    results = Results(folder)
    results.begin(settings(seeds=[10, 20], **changes), "command")
    for seed, values in ((10, (10.0, 30.0)), (20, (20.0, 40.0))):
        rows = [row(n, rouge_l=v, exact_match=0.0) | JUDGED[n] for n, v in enumerate(values)]
        results.finish(Unit("test", "kd", seed), rows)
    references = [
        {"example": 0, "nll": 4.0, "num_tokens": 2, "kl": None},
        {"example": 1, "nll": 9.0, "num_tokens": 3, "kl": None},
    ]
    write_rows(folder / "test" / "kd" / "references.jsonl", references)
    files.write_json(folder / "test" / "kd" / "calibration.json", Calibration().to_dict())
    return folder


def test_a_folder_reads_as_numbers(tmp_path):
    """Examples by seeds; a missing verdict has count 0; absent metrics have no samples."""
    table = read_table(finished(tmp_path))
    found = table.samples["test"]["kd"]
    likelihood = {"perplexity", "log_perplexity"}
    assert set(found) == {"rouge_l", "exact_match", "judge", "judge_ratio", *likelihood}
    assert found["rouge_l"].totals.tolist() == [[10, 20], [30, 40]]
    assert found["judge"].counts.tolist() == [[1, 1], [0, 0]]
    assert score("judge_ratio", found["judge_ratio"]).mean == 62.5  # 5 of 8
    assert np.array_equal(found["perplexity"].counts, [[2], [3]])
    assert score("log_perplexity", found["log_perplexity"]).mean == 2.6  # 13 nats, 5 tokens
    assert table.teacher == {}
    assert table.answers["test"]["kd"] == {"mean_tokens": 2, "finished": 1, "near_ties": 4}


def test_the_teacher_is_read_where_its_likelihood_is_noted(tmp_path):
    """From the model whose rows hold most of it; what exceeds its context does not count."""
    folder = finished(tmp_path)
    path = folder / "test" / "kd" / "references.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write_rows(path, [{**rows[0], "teacher_nll": 1.0}, {**rows[1], "teacher_nll": None}])
    found = read_table(folder).teacher["test"]
    assert set(found) == {"perplexity", "log_perplexity"}
    assert found["perplexity"].counts.tolist() == [[2], [0]]
    assert score("log_perplexity", found["log_perplexity"]).mean == 0.5


def changed(**changes):
    """evaluation.json with other settings; None takes one away."""
    found = settings(seeds=[10, 20]) | changes
    return json.dumps({"settings": {k: v for k, v in found.items() if v != "-"}, "command": ""})


BINS = {"count": [0] * 15, "confidence": [0] * 15, "correct": [0] * 15}
DAMAGED = {
    # file: (content, what is said)
    "no JSON": ("evaluation.json", "{", "broken JSON"),
    "no object": ("evaluation.json", "[]", "the content is []; it must be an object"),
    "no settings": ("evaluation.json", '{"command": ""}', "the entry 'settings' is missing"),
    "seeds": ("evaluation.json", changed(seeds="10"), "'settings.seeds' is \"10\"; it must be a l"),
    "a seed": ("evaluation.json", changed(seeds=["x"]), "'settings.seeds[0]' is \"x\"; it must be"),
    "no seed": ("evaluation.json", changed(seeds=[]), "'settings.seeds' is empty"),
    "no model": ("evaluation.json", changed(models={}), "'settings.models' is empty"),
    "no dtype": ("evaluation.json", changed(dtype="-"), "'settings.dtype' is missing"),
    "a benchmark": (
        "evaluation.json",
        changed(benchmarks={"test": {"sha256": "cd"}}),
        "'settings.benchmarks.test.examples' is missing",
    ),
    "bytes": ("evaluation.json", b"\xff", "is not UTF-8"),
    "equal seeds": ("evaluation.json", changed(seeds=[10, 10]), "'settings.seeds' has 10 twice"),
    "an answer": ("test/kd/seed-20.jsonl", "[]\n", "seed-20.jsonl:1: the content is []"),
    "a torn row": ("test/kd/seed-10.jsonl", '{"exa', "seed-10.jsonl:1: broken JSON"),
    "no row": ("test/kd/seed-10.jsonl", "", "seed-10.jsonl: example 0 is missing (2 of 2 are)"),
    "a reference": ("test/kd/references.jsonl", "5\n", "references.jsonl:1: the content is 5"),
    "no reference": ("test/kd/references.jsonl", "", "references.jsonl: example 0 is missing"),
    "bins": ("test/kd/calibration.json", "{}", "the entry 'count' is missing"),
    "few bins": (
        "test/kd/calibration.json",
        json.dumps(BINS | {"count": []}),
        "a calibration has 15 numbers each",
    ),
    "a bin": (
        "test/kd/calibration.json",
        json.dumps(BINS | {"correct": [1, *[0] * 14]}),
        "bin 0 has 0 predictions, confidence 0 and 1 correct ones",
    ),
    "a seal": ("complete.json", "{}", "the entry 'files' is missing"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_named(tmp_path, case):
    """One line with the file, what is wrong with it and what to do; no other kind of error."""
    name, content, message = DAMAGED[case]
    path = finished(tmp_path) / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DamagedFile) as refused:
        read_table(tmp_path)
    said = str(refused.value)
    assert said.startswith(str(path)) and message in said and "\n" not in said
    what = "restore the file, or" if name == "evaluation.json" else "; delete the file and repeat"
    assert what in said


def test_a_changed_row_of_a_closed_folder_is_named(tmp_path):
    """Every finished file is known by its hash, and the table is the same after a reading."""
    folder = finished(tmp_path)
    before = read_table(folder).samples["test"]["kd"]["rouge_l"].totals
    results = Results(folder)
    results.note_definitions(judged=False, trivial={})
    results.close()
    assert results.is_sealed()
    assert results.settings()["text_metrics"] == "words of every script"
    assert np.array_equal(read_table(folder).samples["test"]["kd"]["rouge_l"].totals, before)
    for path in sorted((folder / "test" / "kd").iterdir()):
        whole = path.read_bytes()
        path.write_bytes(whole.replace(b"0", b"3", 1))
        with pytest.raises(DamagedFile, match=f"{path} has changed since it was finished"):
            read_table(folder)
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("file", "before", "after", "message"),
    [
        ("evaluation.json", "20\n", "30\n", "evaluation.json: the settings have changed since"),
        ("evaluation.json", "20\n", "10\n", "'settings.seeds' has 10 twice"),
        ("evaluation.json", '"examples": 2', '"examples": 1', "the settings have changed since"),
        ("complete.json", "seed-20", "seed-30", "does not name test/kd/seed-20.jsonl, which is a"),
        ("complete.json", "kd/calib", "dk/calib", "names test/dk/calibration.json, which is no"),
    ],
)
def test_a_changed_word_on_the_files_is_named(tmp_path, file, before, after, message):
    """Settings and seal say the same of a finished evaluation; the command may change."""
    folder = finished(tmp_path)
    Results(folder).close()
    note = folder / "evaluation.json"
    note.write_text(note.read_text().replace('"command": "command"', '"command": "other"'))
    read_table(folder)
    text = (folder / file).read_text()
    assert text.count(before) == 1
    (folder / file).write_text(text.replace(before, after))
    with pytest.raises(DamagedFile) as refused:
        read_table(folder)
    said = str(refused.value)
    assert said.startswith(str(folder / file)) and message in said
    what = "; restore the file" if file == "evaluation.json" else "; delete the file and repeat"
    assert what in said


def test_reordered_rows_pair_as_before(tmp_path):
    """The rows of each file in another order: the same samples."""
    folder = finished(tmp_path)
    before = read_table(folder).samples["test"]["kd"]
    for path in (folder / "test" / "kd").glob("*.jsonl"):
        path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    for metric, samples in read_table(folder).samples["test"]["kd"].items():
        assert np.array_equal(samples.totals, before[metric].totals)
        assert np.array_equal(samples.examples, before[metric].examples)


def test_examples_that_were_left_out_keep_their_numbers(tmp_path):
    """Two of three take part; a number beyond all three is refused."""
    found = {"test": {"sha256": "cd", "examples": 2, "left_out": 1}}
    folder = finished(tmp_path, benchmarks=found)
    for path in (folder / "test" / "kd").glob("*.jsonl"):
        path.write_text(path.read_text().replace('"example": 1', '"example": 2'))
    assert read_table(folder).samples["test"]["kd"]["rouge_l"].examples.tolist() == [0, 2]
    for path in (folder / "test" / "kd").glob("*.jsonl"):
        path.write_text(path.read_text().replace('"example": 2', '"example": 3'))
    with pytest.raises(DamagedFile, match=r"references\.jsonl has 2 examples up to number 3"):
        read_table(folder)


def test_files_of_others_are_neither_taken_nor_deleted(tmp_path):
    """Somebody's .part file makes a folder one of other things."""
    (tmp_path / "film.part").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no evaluation"):
        Results(tmp_path).check(settings())
    Results(tmp_path).begin(settings(), "first")
    assert (tmp_path / "film.part").read_text() == "mine"


def test_a_folder_that_cannot_be_read_says_why(tmp_path):
    """No evaluation there, or one that is not finished."""
    with pytest.raises(ValueError, match="holds no results; name the --output"):
        read_table(tmp_path)
    folder = finished(tmp_path / "out")
    (folder / "test" / "kd" / "seed-20.jsonl").unlink()
    with pytest.raises(ValueError, match="is not finished: answers of kd on test are missing"):
        read_table(folder)
