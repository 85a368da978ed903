"""The estimate as a whole: what is measured beside it, what is not known, plans and their price."""

import json
from pathlib import Path

import pytest
import toys
from generate.predictions_stub import Stub, serving
from safetensors.torch import load_file
from toys import recipe

from distilllens.cli import main
from distilllens.workflows import estimate
from distilllens.workflows.estimate_devices import DEVICES
from distilllens.workflows.estimate_text import table_of
from distilllens.workflows.recipe_file import read_recipe
from distilllens.workflows.run_arguments import build

ROWS = Path(__file__).parents[2] / "benchmarks" / "results" / "estimate.jsonl"
MEASURED = [json.loads(line) for line in ROWS.read_text().splitlines()]


def found(folder, device="h100", num_devices=1, price=None, **fields):
    recipe(folder, **fields)
    arguments = build(read_recipe("recipe.yaml").values | {"train_file": ["train.jsonl"]})
    return estimate.estimate(*arguments, device=device, num_devices=num_devices, price=price)


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: row["name"])
def test_measured_runs_are_as_estimated(row):
    """Memory within 25 % of the peak of a process, a step within 30 % of its seconds."""
    assert row["estimated"]["total"] == pytest.approx(row["peak_bytes"], rel=0.25)
    assert row["estimated_s"] == pytest.approx(row["mean_s"], rel=0.30)


def test_enough_runs_were_measured():
    """Eight, of three families, live and cached, with an adapter, in bfloat16 and packed."""
    names = " ".join(row["name"] for row in MEASURED)
    words = ("live", "cached", "LoRA", "bf16", "packed", "GPT-2", "Llama", "Qwen")
    assert len(MEASURED) == 8 and all(word in names for word in words)


def test_parameters_are_those_of_the_models(workshop):
    """Counted on the real ones."""
    result = found(workshop)
    student, teacher = toys.llama(3, 16), toys.llama(4, 24, seed=1)
    assert result["student"]["parameters"] == student.num_parameters()
    assert result["teacher"]["parameters"] == teacher.num_parameters()
    assert (result["rows"], result["steps"]) == (8, 4)


def test_several_teachers_are_summed(workshop):
    """Parameters, memory, flops of their forwards and disk: of one teacher twice, twice one's."""
    alone = found(workshop, teacher_cache="cache")
    live = found(workshop)
    entry = {"model": "teacher", "weight": 0.5}
    both = found(workshop, teacher_model_name_or_path=None, teachers=[entry, entry])
    for key in ("parameters", "bytes"):
        assert both["teacher"][key] == 2 * live["teacher"][key]
    assert both["pairs"] == 2 * live["pairs"]
    assert both["memory"]["teacher"] == 2 * live["memory"]["teacher"] > 0
    assert both["memory"]["loss"] > live["memory"]["loss"]
    for part in ("weights", "gradients", "optimizer"):
        assert both["memory"][part] == live["memory"][part]
    for term in ("teacher forward", "lens"):
        assert both["flops"][term] == 2 * live["flops"][term] > 0
    assert live["flops"]["output"] < both["flops"]["output"] < 2 * live["flops"]["output"]
    assert [plan["name"] for plan in both["plans"]] == [plan["name"] for plan in live["plans"]]
    entries = [entry | {"cache": name} for name in ("a", "b")]
    stored = found(workshop, teacher_model_name_or_path=None, teachers=entries)
    assert stored["disk"]["cache"] == 2 * alone["disk"]["cache"] > 0
    assert stored["memory"]["teacher"] == 0
    assert stored["memory"]["cache"] == 2 * alone["memory"]["cache"]
    assert "2 models, " in table_of(both) and "2 models" not in table_of(live)


def test_a_teacher_at_a_server_is_said_to_be_left_out(workshop, capsys):
    """In the estimate, which asks nobody, and before a run."""
    fields = {"teacher_model_name_or_path": None, "lens_weight": 0.0}
    fields["teacher_server"] = "http://127.0.0.1:9/v1"
    (reason,) = found(workshop, **fields)["unknown"]
    assert reason.startswith("the teacher at http://127.0.0.1:9/v1: the time of its answers")
    with serving(Stub(toys.llama(4, 24), toys.tokenizer())) as stub:
        recipe(workshop, **(fields | {"teacher_server": stub.url, "max_steps": 1}))
        assert main(["train", "--config", "recipe.yaml"]) == 0
    reason = reason.replace("http://127.0.0.1:9/v1", stub.url)
    assert f"unknown   {reason}" in capsys.readouterr().err


def test_hours_and_cost(workshop):
    """Steps of the epochs, shared by the devices; price times devices times hours."""
    fields = {"max_steps": None, "num_train_epochs": 3}
    alone = found(workshop, price=2.0, **fields)
    eight = found(workshop, num_devices=2, price=2.0, **fields)
    assert (alone["steps"], eight["steps"]) == (3 * 4, 3 * 2)
    for result, number in ((alone, 1), (eight, 2)):
        for plan in result["plans"]:
            assert plan["hours"] == pytest.approx(plan["seconds_per_step"] * result["steps"] / 3600)
            assert plan["cost"] == pytest.approx(2.0 * number * plan["hours"])


def test_plans(workshop):
    """Sharding and a cache take less memory than DDP with a live teacher; a cache, less time."""
    names = [plan["name"] for plan in found(workshop)["plans"]]
    assert names == ["one device, teacher live", "one device, teacher cached"]
    plans = {plan["name"]: plan for plan in found(workshop, num_devices=8)["plans"]}
    live, cached = plans["DDP, teacher live"], plans["DDP, teacher cached"]
    assert plans["ZeRO-3, teacher live"]["memory"] <= plans["FSDP2, teacher live"]["memory"]
    assert plans["FSDP2, teacher live"]["memory"] < live["memory"] > cached["memory"]
    assert cached["seconds_per_step"] < live["seconds_per_step"]
    whole = found(workshop, num_devices=8, teacher_sharding="replicate")["plans"]
    whole = {plan["name"]: plan["memory"] for plan in whole}
    # FSDP2 gathers the teacher as one unit, so each device holds its share and all of it at once.
    teacher = sum(t.nbytes for t in load_file(workshop / "teacher" / "model.safetensors").values())
    saved = plans["FSDP2, teacher live"]["memory"] - whole["FSDP2, teacher live and whole"]
    assert saved == pytest.approx(teacher / 8, abs=1)
    assert whole["FSDP2, teacher live and whole"] == whole["ZeRO-3, teacher live and whole"]
    assert whole["DDP, teacher live"] == live["memory"]
    assert all(plan["fits"] for plan in plans.values())
    names = [p["name"] for p in found(workshop, teacher_cache="cache", num_devices=8)["plans"]]
    assert names == [f"{name}, teacher cached" for name in ("DDP", "FSDP2", "ZeRO-3")]


def test_the_largest_batch_fits_and_the_next_does_not(workshop):
    """By the same memory, on every device; a larger device takes more."""
    from distilllens.workflows.estimate_step import measure

    small, large = (found(workshop, name)["largest_batch"] for name in ("t4", "h200"))
    assert 0 < small < large
    steps = []
    original = estimate.largest_batch

    def watched(run, device, parts):
        steps.append((run.step(device), device))
        return original(run, device, parts)

    estimate.largest_batch = watched
    try:
        rows = found(workshop, "t4")["largest_batch"]
    finally:
        estimate.largest_batch = original
    step, device = steps[0]
    assert sum(measure(step.of(rows)).values()) <= device.memory
    assert sum(measure(step.of(round(1.06 * rows))).values()) > device.memory


def test_precision_follows_the_device(workshop):
    """bfloat16 where it is fast, whatever this machine does; a recipe has the last word."""
    assert found(workshop, "h100", use_cpu=None)["precision"] == "bfloat16"
    assert found(workshop, "t4", use_cpu=None)["precision"] == "float32"
    assert found(workshop, "h100", bf16=False)["precision"] == "float32"


def test_rows_that_are_elsewhere(workshop):
    """A hub that cannot be reached: the rest is told, and why rows are not."""
    from dataclasses import replace

    recipe(workshop)
    job, model, args, given = build(
        read_recipe("recipe.yaml").values | {"train_file": ["train.jsonl"]}
    )
    job = replace(job, train_file=None, dataset_name="nobody/nothing")
    result = estimate.estimate(job, model, args, given, device="h100")
    assert result["rows"] is None and result["tokens_per_row"] == 64
    assert any("nobody/nothing" in reason for reason in result["unknown"])
    assert result["memory"]["total"] > 0 and result["steps"] == 4  # max_steps


@pytest.mark.parametrize("part", ["measure", "step_seconds", "disk_of", "run_of"])
def test_what_cannot_be_told_never_prevents_training(workshop, capsys, monkeypatch, part):
    """Any error in a part of the estimate is told in its place, and the run goes on."""

    def broken(*args, **kwargs):
        raise RuntimeError("no such operator")

    where = "train" if part == "run_of" else "estimate"
    monkeypatch.setattr(f"distilllens.workflows.{where}.{part}", broken)
    recipe(workshop)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    assert "unknown: no such operator" in capsys.readouterr().err
    assert (workshop / "out" / "model.safetensors").exists()


def test_a_run_says_what_it_takes_first(workshop, capsys):
    """Memory by part, seconds and hours, disk: before a model is loaded."""
    recipe(workshop)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    lines = capsys.readouterr().err.splitlines()
    at = lines.index("loading the student, preparing the data")
    names = [line.split()[0] for line in lines[at - 3 : at]]
    assert names == ["memory", "time", "disk"]
    assert "optimizer 59.3 kB" in lines[at - 3] and "4 steps" in lines[at - 2]


def test_every_sheet_is_plausible():
    """Sources are addresses; bandwidths and rates are in the units that they should be in."""
    for device in DEVICES.values():
        assert device.source.startswith("https://") and 1e9 < device.link < 1e12
        assert 1e11 < device.bandwidth < 1e13 and 1e12 < device.full <= device.half < 2e15
        assert 10e9 < device.memory < 200e9


def test_processes_share_a_processor(workshop):
    """Two of them have half of its memory and half of its speed; nothing can be sharded there."""
    alone, both = (found(workshop, device="cpu", num_devices=number) for number in (1, 2))
    assert both["device"]["memory"] == pytest.approx(alone["device"]["memory"] / 2, rel=0.1)
    assert both["device"]["full"] == alone["device"]["full"] / 2
    assert "shared by 2 processes" in both["device"]["title"]
    assert {plan["name"].split(",")[0] for plan in both["plans"]} == {"DDP"}


@pytest.mark.parametrize(("epochs", "steps"), [(0.1, 1), (1.0, 4), (1.1, 5)])
def test_a_part_of_an_epoch_is_rounded_up(workshop, epochs, steps):
    """As the trainer does: a run has at least one step."""
    assert found(workshop, max_steps=None, num_train_epochs=epochs)["steps"] == steps


def test_a_quantised_teacher_is_said_to_be_counted_whole(workshop):
    """Its own dtype is all that is known of it."""
    said = found(workshop, teacher_model_init_kwargs={"load_in_4bit": True})["unknown"]
    assert any("what quantisation saves" in line for line in said)
    assert not any("quantisation" in line for line in found(workshop)["unknown"])
