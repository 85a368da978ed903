"""Streams and mixtures by ``distilllens train``: from recipe to model, card and report."""

import json
import logging
import re

import pytest
import toys
import yaml
from safetensors.torch import load_file

from distilllens.cli import main

STREAMED = {"dataset_streaming": True, "max_steps": 6, "save_steps": 2}
SHARED = [{"path": "train.jsonl", "fraction": 1}, {"path": "pairs.jsonl", "fraction": 3}]
MIXED = [{"path": "train.jsonl", "rows": 5}, {"path": "pairs.jsonl"}]


@pytest.fixture
def shop(workshop):
    """The workshop with a second file, of prompts."""
    write(workshop / "pairs.jsonl", toys.examples(6, seed=4))
    return workshop


def write(path, rows):
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def train(folder, capsys, **changes):
    """The status of a run, and what it says."""
    toys.recipe(folder, **changes)
    status = main(["train", "--config", "recipe.yaml"])
    return status, capsys.readouterr().err


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train_file": None, "datasets": SHARED},
        {"dataloader_num_workers": 2, "packing": True},
    ],
    ids=["file", "shares", "workers"],
)  # fmt: skip
def test_a_stopped_stream_goes_on(shop, capsys, monkeypatch, changes):
    """Stopped at a checkpoint and started again: bitwise the weights of a run in one piece."""
    status, said = train(shop, capsys, **STREAMED, **changes, output_dir="whole")
    assert status == 0 and "streamed from train.jsonl" in said
    from distilllens.train.trainer import DistillLensTrainer

    step = DistillLensTrainer.training_step

    def failing(self, *args, **kwargs):
        if self.state.global_step == 4:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(DistillLensTrainer, "training_step", failing)
    assert train(shop, capsys, **STREAMED, **changes, output_dir="stopped")[0] == 130
    monkeypatch.setattr(DistillLensTrainer, "training_step", step)
    status, said = train(shop, capsys, **STREAMED, **changes, output_dir="stopped")
    assert status == 0 and "going on after step 4" in said
    expected, found = weights(shop / "whole"), weights(shop / "stopped")
    assert all((found[name] == value).all() for name, value in expected.items())
    assert any((weights(shop / "student")[name] != expected[name]).any() for name in found)


def test_a_bad_row_of_a_stream_ends_the_run_with_a_checkpoint(shop, capsys):
    """File and line, status 2, and the steps before it; from there another run goes on."""
    rows = (shop / "train.jsonl").read_text()
    with open("train.jsonl", "a") as file:
        file.write('{"instruction": "the cat", "output": 3}\n')
    changes = STREAMED | {"dataset_shuffle_buffer": 0, "save_steps": 100}
    status, said = train(shop, capsys, **changes)
    *_, last = said.strip().splitlines()
    assert status == 2
    assert re.fullmatch(
        r"distilllens: error: train.jsonl:9: 'output' is 3; it must be a text or a list of texts; "
        r"the (\d) steps before it are saved: mend the data, and go on in another output_dir with "
        r"resume_from_checkpoint out/checkpoint-\1",
        last,
    )
    checkpoint = last.split()[-1]
    assert (shop / checkpoint / "complete.json").exists()
    (shop / "train.jsonl").write_text(rows)
    status, said = train(
        shop, capsys, **changes, output_dir="mended", resume_from_checkpoint=checkpoint
    )
    assert status == 0 and "going on after step" in said


def test_a_stream_leaves_long_prompts_out(shop, capsys):
    """As they are left out of data that are loaded whole, by their number of tokens."""
    rows = [{"instruction": "the cat", "output": "ran"}, {"instruction": "a " * 90, "output": "x"}]
    write(shop / "train.jsonl", rows * 3)
    changes = STREAMED | {"max_prompt_length": 60, "dataset_shuffle_buffer": 0}
    status, said = train(shop, capsys, **changes)
    assert status == 0, said
    assert "1 of the first 2 streamed train records have prompts longer than max_prompt_l" in said


def test_a_mixture_is_named_wherever_data_are(shop, capsys):
    """In the block of the run, its card, its note and its report; its rows identify the run."""
    changes = {"train_file": None, "datasets": MIXED, "report": True}
    status, said = train(shop, capsys, **changes)
    assert status == 0 and "from train.jsonl (5 rows), pairs.jsonl; 11 rows" in said
    assert "| trained on | `train.jsonl`, `pairs.jsonl` |" in (shop / "out/README.md").read_text()
    assert json.loads((shop / "out/run.json").read_text())["data"] == ["train.jsonl", "pairs.jsonl"]
    page = (shop / "out/report.html").read_text()
    assert "train.jsonl, pairs.jsonl" in page and "train.jsonl, pairs.jsonl (training data)" in page
    (shop / "pairs.jsonl").rename(shop / "moved.jsonl")
    moved = [MIXED[0], {"path": "moved.jsonl"}]
    status, said = train(shop, capsys, train_file=None, datasets=moved)
    assert status == 0 and "nothing to do" in said
    fewer = [{**MIXED[0], "rows": 4}, {"path": "moved.jsonl"}]
    status, said = train(shop, capsys, train_file=None, datasets=fewer)
    assert status == 2 and "another recipe: the train rows were" in said


def test_a_part_of_a_mixture_is_evaluated(shop, capsys):
    """Three rows that are not trained on, the same whatever the seed."""
    found = []
    for seed in (1, 2):
        status, said = train(
            shop, capsys, train_file=None, datasets=MIXED, output_dir=f"out{seed}", seed=seed,
            test_split_size=3, eval_strategy="steps", eval_steps=4,
        )  # fmt: skip
        assert status == 0
        (line,) = (line for line in said.splitlines() if line.startswith("data "))
        assert "; 8 rows, " in line and "evaluation: 3" in said
        found.append(re.search(r"evaluation: 3\s+rows,\s+(\d+)", said)[1])
    assert found[0] == found[1]


def test_a_cache_is_filled_for_a_mixture(shop, capsys):
    """By distilllens cache; then the run needs no teacher."""
    changes = {"train_file": None, "datasets": MIXED, "teacher_cache": "states"}
    toys.recipe(shop, **changes)
    assert main(["cache", "--config", "recipe.yaml"]) == 0
    assert "from train.jsonl (5 rows), pairs.jsonl" in capsys.readouterr().err
    status, said = train(shop, capsys, **changes, teacher_model_name_or_path=None)
    assert status == 0 and "reading the teacher from the cache" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": None}, "streamed training data need max_steps: their length is not known"),
        ({"teacher_cache": "states"}, "teacher_cache cannot be used with streamed training data"),
        ({"save_strategy": "epoch"}, "save_strategy epoch has no end in streamed training data"),
        ({"train_sampling_strategy": "group_by_length"}, "needs the lengths of all rows"),
        ({"dataset_shuffle_buffer": -1}, "dataset_shuffle_buffer must be"),
        ({"datasets": MIXED}, "a mixture by datasets, not by train_file and datasets"),
        ({"train_file": None}, "name the training data by either"),
        (
            {"train_file": None, "datasets": MIXED, "dataset_test_split": "x"},
            "dataset_test_split goes with dataset_name; with datasets, set eval_file or test_spl",
        ),
        (
            {"train_file": None, "datasets": MIXED, "test_split_size": 2},
            "test_split_size is drawn from all rows, which a stream does not know",
        ),
        (
            {"train_file": None, "datasets": MIXED, "test_split_size": 1.5},
            "test_split_size must be a share below 1 or a whole number of rows, got 1.5",
        ),
        ({"train_file": None, "datasets": [{"path": "x.jsonl"}]}, "entry 1: x.jsonl: no such file"),
        ({"train_file": None, "datasets": "a.jsonl"}, "datasets must be"),
    ],
)
def test_what_cannot_be_streamed_or_mixed(shop, capsys, changes, message):
    """One line before torch is loaded, with the line of the recipe where a field is to blame."""
    status, said = train(shop, capsys, **STREAMED | changes)
    assert status == 2 and message in said
    assert len(said.strip().splitlines()) == 1 and not (shop / "out").exists()


@pytest.mark.parametrize("text", ["[{path: train.jsonl}, {path: pairs.jsonl}]", None])
def test_a_mixture_by_flags(shop, capsys, text):
    """One list, or a mapping each; it replaces the file of the recipe."""
    toys.recipe(shop)
    values = [text] if text else ["{path: train.jsonl}", "{path: pairs.jsonl}"]
    assert main(["train", "--config", "recipe.yaml", "--datasets", *values]) == 0
    assert "from train.jsonl, pairs.jsonl; 14 rows" in capsys.readouterr().err


def test_trls_words_for_a_streamed_mixture(shop, capsys, caplog):
    """``streaming`` beside ``datasets``, with ``data_files``, as in a recipe of TRL."""
    entries = [{"path": "json", "data_files": "pairs.jsonl", "split": "train"}]
    with caplog.at_level(logging.INFO):
        changes = {"train_file": None, "datasets": entries, "streaming": True, "max_steps": 2}
        status, said = train(shop, capsys, **changes)
    assert status == 0 and "streamed from json[train] of pairs.jsonl" in said
    assert yaml.safe_load((shop / "recipe.yaml").read_text())["streaming"] is True
