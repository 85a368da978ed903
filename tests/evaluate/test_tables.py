"""Scores side by side."""

import dataclasses
import html
import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distilllens.evaluate.board import board
from distilllens.evaluate.calibration import Calibration
from distilllens.evaluate.scores import Samples
from distilllens.evaluate.table import ResultTable
from distilllens.evaluate.tables import as_json, as_markdown

# Sure of 0.95 ten times, right eight times.
BINS = Calibration().add(torch.full((10,), 0.95), torch.arange(10) < 8)


def samples(values, first=0):
    """One seed, one value an example."""
    values = np.array(values, dtype=float)[:, None]
    return Samples(np.arange(first, first + len(values)), values, np.ones_like(values))


def table(folder, models, *, sha="aa", more=(), **settings):
    """A folder with the Rouge-L of models on "test", and on whatever benchmarks are added."""
    names = ("test", *more)
    found = {name: {m: {"rouge_l": samples(v)} for m, v in models.items()} for name in names}
    about = {"mean_tokens": 3.0, "finished": 0.5, "near_ties": 2}
    return ResultTable(
        folder,
        {
            "models": dict.fromkeys(models),
            "benchmarks": {name: {"sha256": sha} for name in names},
            "decoding": {"temperature": 1.0},
            "seeds": [10],
            "chat": False,
            **dict.fromkeys(("limit", "max_prompt_length", "dtype", "backend", *MODELS)),
            **settings,
        },
        found,
        {name: dict.fromkeys(models, about) for name in names},
        {name: dict.fromkeys(models, BINS) for name in names},
    )


MODELS = ("teacher", "sbert", "judge")
GOOD, BAD = [30.0, 31.0, 29.0, 33.0] * 3, [10.0, 12.0, 9.0, 11.0] * 3


def test_the_table_says_who_is_better():
    """In Markdown and in JSON, the second model against the first."""
    found = board([table("r", {"kd": BAD, "lens": GOOD})])
    text = as_markdown(found)
    assert "| kd          | 10.50 ± 0.34 |" in text
    assert "| lens - kd   | +20.25 [" in text and "] better |" in text
    row = ("kd", "3.0", "50.0 %", "2", "0.1500", "0.1500", "0.0000")
    assert row in [tuple(map(str.strip, line.split("|")))[2:-1] for line in text.splitlines()]
    read = json.loads(json.dumps(as_json(found)))
    assert read["scores"]["rouge_l"]["test"]["lens"]["mean"] == 30.75
    (comparison,) = read["comparisons"]
    assert (comparison["first"], comparison["second"]) == ("lens", "kd")
    assert comparison["verdict"] == "better"


def test_several_benchmarks_have_an_average():
    """Of scores and of differences; one benchmark has none."""
    found = board([table("r", {"kd": BAD, "lens": GOOD}, more=("other",))])
    assert list(found.scores["rouge_l"]) == ["test", "other", "average"]
    pair = found.comparisons["rouge_l"]["lens", "kd"]
    assert pair["average"].difference == pytest.approx(20.25)
    widths = [pair[name].high - pair[name].low for name in ("test", "average")]
    assert widths[1] < widths[0]  # two independent benchmarks say more than one
    assert list(board([table("r", {"kd": BAD})]).scores["rouge_l"]) == ["test"]


def test_equal_names_of_two_folders_are_told_apart():
    """By the name of the folder."""
    found = board([table("a/one", {"kd": BAD}), table("a/two", {"kd": GOOD, "lens": GOOD})])
    assert found.models == ("one/kd", "two/kd", "lens")
    found = board([table("a/one", {"kd": BAD}), table("b/one", {"kd": GOOD})])
    assert found.models == ("a_one/kd", "b_one/kd")
    with pytest.raises(ValueError, match="one is named twice"):
        board([table("one", {"kd": BAD}), table("one", {"kd": BAD})])


def test_only_what_is_the_same_is_compared():
    """Another file of the same name is another benchmark; notes list the ones left out."""
    first = table("one", {"kd": BAD}, more=("other",))
    found = board([first, table("two", {"lens": GOOD})])
    assert list(found.scores["rouge_l"]) == ["test"]
    assert found.notes == ("other is left out: not every folder has it.",)
    with pytest.raises(ValueError, match="one, two share no benchmark: the first has test, other"):
        board([first, table("two", {"lens": GOOD}, sha="bb")])


def test_differences_of_decoding_are_told():
    """A note says that greedy is compared with sampled answers."""
    other = table("two", {"lens": GOOD}, decoding={"temperature": 0.5})
    found = board([table("one", {"kd": BAD}), other])
    assert found.notes[0].startswith("The folders differ in decoding (one: {'temperature': 1.0}; ")
    assert found.notes[0] in as_markdown(found)


def test_comparisons_are_on_the_examples_that_both_have():
    """A folder with a limit is compared on its own examples, and its scores are unchanged."""
    short = table("two", {"lens": GOOD})
    short.samples["test"]["lens"]["rouge_l"] = samples([50.0, 50.0], first=2)
    found = board([table("one", {"kd": BAD}), short])
    pair = found.comparisons["rouge_l"]["lens", "kd"]["test"]
    assert pair.difference == 40.0  # 50 - (9 + 11) / 2
    assert pair.verdict == "too few examples to tell"
    assert found.scores["rouge_l"]["test"]["kd"].num_examples == 12
    assert found.notes == ("lens - kd on test: on the 2 examples that both have.",)


STRANGE = {
    "a|b": r"a\|b",
    "*bold*": r"\*bold\*",
    "_slant_": r"\_slant\_",
    "plain_kd": "plain_kd",  # an underscore inside a word is no mark
    "`code`": r"\`code\`",
    "two\nlines": r"two\nlines",
    "\x1b[31mred": r"\x1b[31mred",
    "<b>x</b>": r"\<b>x\</b>",
    "a < b": "a < b",
    "R&amp;D": r"R\&amp;D",
    "R&D": "R&D",
    "[a](b)": r"[a\](b)",
    "[10]": "[10]",
    "~~gone~~": r"\~\~gone\~\~",
    "$x$": r"\$x\$",
    "C:\\_x": r"C:\\\_x",
    "C:\\x": r"C:\x",
    "\udc80": r"\udc80",
    "東京": "東京",
}


@pytest.mark.parametrize("name", STRANGE)
def test_names_are_shown_as_themselves(name):
    """Of models, benchmarks and folders, in all tables and in the notes."""
    one = table(name, {name: BAD, "lens": GOOD}, more=(name,))
    two = table("two", {"kd": GOOD}, more=(name, "left"), decoding={"temperature": 0.5})
    text = as_markdown(board([one, two]))
    text.encode()
    shown = STRANGE[name]
    for line in text.splitlines():
        if line.startswith("|"):
            assert len(line.replace("\\\\", "").replace("\\|", "").split("|")) in (6, 10), line
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", x)][1:-1] for x in text.splitlines()]
    assert [shown] == [row[0] for row in cells if row and row[0].startswith(shown)][:1]
    assert any(row and row[0] == f"lens - {shown}" for row in cells)
    assert any(row and row[2:3] == [shown] for row in cells)
    assert f"({shown}: " in text


@settings(deadline=None)
@given(st.text("ab1_*`|~$<>&;#[]()!\\\\/:@. -", min_size=1).map(str.strip).filter(bool))
def test_a_reader_of_markdown_shows_the_name(name):
    """Whatever it is made of, as markdown-it renders the cell."""
    markdown_it = pytest.importorskip("markdown_it")
    renderer = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])
    text = as_markdown(board([table("r", {name: BAD})]), ["rouge_l"])
    (first, *_) = re.findall(r"<td>(.*?)</td>", renderer.render(text))
    assert html.unescape(first) == name


def test_the_heading_matches_the_numbers():
    """The row says which model is subtracted; the second model of the folder is named first."""
    text = as_markdown(board([table("r", {"kd": BAD, "lens": GOOD})]))
    heading = (
        "In each row, the model named first minus the one named second, with the 95 % interval"
    )
    assert heading in text and "First - second" not in text
    (row,) = (line for line in text.splitlines() if line.startswith("| lens - kd"))
    assert "+20.25" in row and np.mean(GOOD) - np.mean(BAD) == 20.25


def test_greedy_answers_have_no_seeds():
    """The line above the tables names an error over seeds only where one is shown."""
    assert as_markdown(board([table("r", {"kd": BAD})])).startswith(
        "Mean ± standard error over examples.\n"
    )
    sampled = table("r", {"kd": BAD})
    values = np.array([BAD, GOOD]).T
    sampled.samples["test"]["kd"]["rouge_l"] = Samples(np.arange(12), values, np.ones((12, 2)))
    first, *_ = as_markdown(board([sampled])).splitlines()
    assert first.endswith("over examples; in brackets, standard error over seeds.")
    greedy = table("two", {"lens": GOOD}, seeds=[None], decoding={"greedy": True})
    (note,) = board([table("one", {"kd": BAD}), greedy]).notes
    assert note.startswith("The folders differ in decoding (")


def test_perplexities_are_compared_by_their_logarithms():
    """The perplexities are shown; JSON has both comparisons."""
    rows = table("r", {"kd": BAD, "lens": GOOD})
    for model, nats in (("kd", 42.0), ("lens", 52.0)):
        ones = np.ones((12, 1))
        found = Samples(np.arange(12), nats * ones + np.arange(12)[:, None] / 100, ones)
        rows.samples["test"][model] |= {"perplexity": found, "log_perplexity": found}
    found = board([rows])
    text = as_markdown(found)
    titles = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    assert titles.count("perplexity of the references") == 1
    assert titles.count("log-perplexity of the references (nats per token)") == 1
    assert "+10.0000 [+10.0000, +10.0000] worse" in text
    comparisons = {one["metric"]: one for one in as_json(found)["comparisons"]}
    assert comparisons["perplexity"]["difference"] > 1e20
    assert "| kd                           | 1.84e+18 ± 1.91e+16 |" in text  # exp(42.055)
    assert comparisons["log_perplexity"]["difference"] == pytest.approx(10.0)
    assert as_markdown(found, ["log_perplexity"]).count("| log-perplexity") == 2


HASHES = {"model.safetensors": "ab"}


def with_teacher(folder, models, **names):
    """A folder with the likelihood of the references under its teacher."""
    settings = {"teacher": HASHES, "names": {"teacher": "runs/big"} | names}
    likelihood = dict.fromkeys(("perplexity", "log_perplexity"), tokens([3] * 12))
    found = table(folder, models, **settings)
    for row in found.samples["test"].values():
        row |= likelihood
    return dataclasses.replace(found, teacher={"test": likelihood})


def test_the_teacher_has_a_row():
    """Of its likelihood, marked; once for folders of one teacher, and in no comparison."""
    one, two = with_teacher("one", {"kd": BAD}), with_teacher("two", {"lens": GOOD})
    found = board([one, two])
    assert found.models == ("kd", "lens") and found.teachers == ("big",)
    text = as_markdown(found)
    (row,) = (line for line in text.splitlines() if "big" in line)
    assert row.split("|")[1].strip() == "big (teacher)" and "7.389 ± 0.000" in row  # e^2
    read = as_json(found)
    assert set(read["scores"]["perplexity"]["test"]) == {"kd", "lens", "big"}
    assert set(read["scores"]["rouge_l"]["test"]) == {"kd", "lens"}
    assert read["teachers"] == ["big"] and "big" not in str(read["comparisons"])


def test_a_teacher_that_answered_is_marked_in_its_rows():
    """It is known by its files, whatever it is called; no row is made of it twice."""
    one = with_teacher("one", {"kd": BAD, "copy": GOOD})
    one.settings["models"]["copy"] = HASHES
    found = board([one])
    assert found.teachers == ("copy",) and found.rows == ("kd", "copy")
    assert "| copy (teacher) | 30.75" in as_markdown(found)
    assert "| copy (teacher) - kd |" in as_markdown(found)


@pytest.mark.parametrize(
    ("path", "row"),
    [("teacher", "| teacher "), ("runs/teacher", "| teacher "), ("old/kd", "| kd (teacher) ")],
)
def test_names_of_teachers_are_distinct(path, row):
    """A student of the same name keeps it."""
    text = as_markdown(board([with_teacher("one", {"kd": BAD}, teacher=path)]), ["perplexity"])
    assert row in text and "(teacher) (teacher)" not in text and "teacher (teacher)" not in text
    assert "| kd " in text


TRIVIAL = {
    "rouge_l": {"an empty answer": 0.0, "the question repeated": 25.0},
    "exact_match": {"an empty answer": 0.0, "the question repeated": 0.0},
}


def test_what_does_not_beat_a_trivial_answer_tells_nothing():
    """Two models below it have no verdict, and a note names them; one above it keeps its own."""
    low = [value / 5 for value in GOOD]
    models = {"kd": BAD, "low": low, "lens": GOOD}
    found = board([table("r", models, trivial={"test": TRIVIAL})])
    pairs = {pair: row["test"].verdict for pair, row in found.comparisons["rouge_l"].items()}
    assert pairs == {
        ("low", "kd"): "tells nothing: neither beats a trivial answer",
        ("lens", "kd"): "better",
        ("lens", "low"): "better",
    }
    assert found.notes == (
        "On test, Rouge-L does not beat a trivial answer (the question repeated: 25.00 %): "
        "kd 10.50 %, low 6.15 %.",
    )
    text = as_markdown(found)
    assert "| (best trivial answer) | 25.00 " in text and "an empty answer, the quest" in text
    assert as_json(found)["trivial"]["rouge_l"] == {"test": 25.0}
    old = board([table("r", models)])
    assert old.comparisons["rouge_l"]["low", "kd"]["test"].verdict == "worse" and old.notes == ()
    assert "trivial" not in as_markdown(old)


def test_an_average_tells_nothing_where_no_benchmark_does():
    """One benchmark on which a model beats the trivial answers is enough."""
    noted = {"test": TRIVIAL, "other": TRIVIAL}
    models = {"kd": BAD, "low": [value / 2 for value in GOOD]}
    found = board([table("r", models, more=("other",), trivial=noted)])
    assert found.comparisons["rouge_l"]["low", "kd"]["average"].verdict.startswith("tells nothing")
    assert found.trivial["rouge_l"]["average"] == 25.0
    found = board([table("r", models, more=("other",), trivial={"test": TRIVIAL})])
    assert found.comparisons["rouge_l"]["low", "kd"]["average"].verdict == "better"
    assert "average" not in found.trivial["rouge_l"]


def test_gibberish_is_told_without_trivial_answers():
    """A Rouge-L below 1 % is near 0, in results of an older version too."""
    models = {"kd": [0.1, 0.2, 0.0] * 4, "lens": [0.5, 0.6, 0.7] * 4}
    found = board([table("r", models)])
    assert found.notes == ("On test, Rouge-L is near 0: kd 0.10 %, lens 0.60 %.",)
    verdict = found.comparisons["rouge_l"]["lens", "kd"]["test"].verdict
    assert verdict.startswith("tells nothing")


def test_answers_that_were_cut_are_told():
    """With the length at which they were cut, if that is most of them."""
    one = table("r", {"kd": BAD, "lens": GOOD}, decoding={"max_new_tokens": 6})
    one.answers["test"]["kd"] = {**one.answers["test"]["kd"], "finished": 0.0}
    found = board([one])
    assert found.notes == (
        "On test, answers were cut at --max_new_tokens 6, so that their beginnings were scored: "
        "kd 100 %.",
    )
    assert "cut at max_new_tokens" in as_markdown(found) and "| 100.0 % " in as_markdown(found)


def test_adapters_name_their_base():
    """As it was found."""
    one = table("r", {"kd": BAD}, names={"bases": {"kd": "models/base"}})
    assert board([one]).notes == ("kd is an adapter of models/base.",)


def older(*args, is_ascii=True, **settings):
    """A table of version 0.1.0, which did not name its definitions."""
    return dataclasses.replace(table(*args, **settings), is_ascii=is_ascii)


NOW = {"text_metrics": "words of every script"}


@pytest.mark.parametrize(
    ("one", "two", "compared", "note"),
    [
        (older("one", {"kd": BAD}), older("two", {"lens": GOOD}), True, None),
        (table("one", {"kd": BAD}, **NOW), table("two", {"lens": GOOD}, **NOW), True, None),
        (older("one", {"kd": BAD}), table("two", {"lens": GOOD}, **NOW), True, "where references"),
        (
            older("one", {"kd": BAD}, is_ascii=False),
            table("two", {"lens": GOOD}, **NOW),
            False,
            "one was scored by version 0.1.0, which read ASCII words only",
        ),
    ],
)
def test_old_scores_are_told_from_new_ones(one, two, compared, note):
    """Not compared where the old words were wrong, and the reader is told what to do."""
    found = board([one, two])
    assert bool(found.comparisons["rouge_l"]) == compared
    assert len(found.notes) == (note is not None)
    if note:
        assert note in found.notes[0]
        assert "The same distilllens evaluate scores the answers of that folder again" in str(
            found.notes
        )


def alone(folder, values, first=0):
    """A folder of one model without answers; its references have a token each."""
    settings = {"references_only": True, "seeds": [], "decoding": {}, "text_metrics": None}
    found = table(folder, {folder: values}, **settings)
    found.samples["test"][folder] = {"log_perplexity": samples(values, first)}
    found.answers["test"][folder] = {}
    return found


def test_columns_of_answers_are_left_out_where_there_are_none():
    """The calibration stays; beside a folder with answers, their places are empty."""
    kd, lens = alone("kd", GOOD), alone("lens", BAD)
    found = board([kd, lens])
    text = as_markdown(found, ["log_perplexity"])
    assert found.notes == () and "| lens - kd  " in text
    rows = [[*map(str.strip, line.split("|"))][1:-1] for line in text.splitlines()]
    assert ["calibration", "model", "ECE", "too sure", "not sure enough"] in rows
    assert ["test", "kd", "0.1500", "0.1500", "0.0000"] in rows
    both = table("whole", {"sft": BAD})
    both.samples["test"]["sft"]["log_perplexity"] = samples(BAD)
    found = board([kd, both])
    (note,) = (note for note in found.notes if "--references_only" in note)
    assert note.startswith("kd holds no answers") and "differ" not in "".join(found.notes)
    text = as_markdown(found)
    rows = [[*map(str.strip, line.split("|"))][1:-1] for line in text.splitlines()]
    assert ["test", "kd", "-", "-", "-", "0.1500", "0.1500", "0.0000"] in rows
    assert ["test", "sft", "3.0", "50.0 %", "2", "0.1500", "0.1500", "0.0000"] in rows
    assert "rouge_l" in found.scores and not found.comparisons["rouge_l"]
    assert [row[:1] for row in rows].count(["Rouge-L (%)"]) == 1  # no table of no comparison
    assert ("sft", "kd") in found.comparisons["log_perplexity"]


def test_nothing_to_compare_has_no_table():
    """Metrics of different teachers, say: neither a heading nor an introduction."""
    folders = [table(n, {n: GOOD}, teacher={"model.safetensors": n}) for n in ("one", "two")]
    for folder in folders:
        folder.samples["test"][folder.folder] = {"kl": samples(GOOD)}
    text = as_markdown(board(folders))
    assert text.count("| KL(teacher") == 1 and "paired bootstrap" not in text


def test_examples_that_only_one_has_are_told_without_answers():
    """By the references, as by the answers where there are any."""
    found = board([alone("one", BAD), alone("two", [50.0, 50.0], first=2)])
    assert found.comparisons["log_perplexity"]["two", "one"]["test"].difference == 40.0
    assert found.notes == ("two - one on test: on the 2 examples that both have.",)


def test_folders_without_answers_may_differ_otherwise():
    """In the dtype, say, which is told of all folders; the decoding of those with answers only."""
    kd, hot = alone("kd", GOOD), table("hot", {"sft": BAD}, decoding={"temperature": 2.0})
    kd.settings["dtype"] = "float32"
    notes = " ".join(board([kd, hot, table("cool", {"lens": GOOD})]).notes)
    assert "differ in dtype (kd: float32; hot: None; cool: None)" in notes
    assert "differ in decoding (hot: {'temperature': 2.0}; cool: {'temperature': 1.0})" in notes


def test_old_scores_of_other_scripts_are_told_alone():
    """Without a second folder too."""
    (note,) = board([older("one", {"kd": BAD}, is_ascii=False)]).notes
    assert note.startswith("one was scored by version 0.1.0, which read ASCII words only")


def test_what_a_judge_read_is_told():
    """An old judge saw the last turn only."""
    now = NOW | {"judge": "stub", "judge_reads": "whole conversations"}
    one = table("one", {"kd": BAD}, **NOW, judge="stub")
    (note,) = board([one, table("two", {"lens": GOOD}, **now)]).notes
    assert note.startswith("The judge of one read only the last turn of a conversation. The same")
    assert board([one]).notes == ()


def test_one_metric_can_be_asked_for():
    """Only the tables of the chosen metric are shown."""
    rows = table("r", {"kd": BAD})
    rows.samples["test"]["kd"]["exact_match"] = samples([0.0, 100.0, 0.0, 0.0])
    found = board([rows])
    assert "exact match" in as_markdown(found)
    assert "exact match" not in as_markdown(found, ["rouge_l"])


def tokens(counts):
    """Likelihoods of references of so many tokens."""
    counts = np.array(counts, dtype=float)[:, None]
    return Samples(np.arange(len(counts)), 2 * counts, counts)


def test_what_was_measured_differently_is_not_compared():
    """Perplexity on other tokens and KL to another teacher are shown but not compared."""
    one, two = (table(n, {m: GOOD}, teacher=n) for n, m in (("one", "kd"), ("two", "lens")))
    for found, counts in ((one, [3] * 12), (two, [4] * 12)):
        for row in found.samples["test"].values():
            row["perplexity"], row["kl"] = tokens(counts), tokens([5] * 12)
    both = board([one, two])
    assert set(both.scores) == {"rouge_l", "perplexity", "kl"}
    assert both.comparisons["perplexity"] == {} == both.comparisons["kl"]
    assert both.comparisons["rouge_l"]
    assert "The folders differ in the teacher: its metrics are not compared." in both.notes


def test_a_judge_is_compared_where_both_have_a_verdict():
    """A verdict that one model lacks is left out for the other too."""
    found = table("r", {"kd": BAD, "lens": GOOD})
    for model, values in (("kd", [1.0, 9.0] * 6), ("lens", [2.0, np.nan] * 6)):
        values = np.array(values)[:, None]
        there = np.isfinite(values)
        judged = Samples(np.arange(12), np.nan_to_num(values), there.astype(float))
        found.samples["test"][model]["judge"] = judged
    pair = board([found]).comparisons["judge"]["lens", "kd"]["test"]
    assert pair.difference == 1.0


def test_json_has_no_infinity():
    """Infinity and NaN become null."""
    found = table("r", {"kd": BAD})
    found.samples["test"]["kd"]["perplexity"] = Samples(
        np.arange(12), np.full((12, 1), np.inf), np.ones((12, 1))
    )
    with np.errstate(invalid="ignore"):
        text = json.dumps(as_json(board([found])), allow_nan=False)
    assert '"mean": null' in text
