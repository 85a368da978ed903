"""A run that goes on with another number of processes ends where it would have ended."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import fault_rows
import processes
import pytest
import toys
from safetensors.torch import load_file
from sharded_runs import FSDP2, ON_CPU

from distilllens.train.checkpoint import mark_whole
from distilllens.train.elastic import (
    StepRows,
    accumulation_for,
    rows_to_keep,
    settle,
    with_shape_of,
)
from distilllens.train.recipe_difference import first_difference

TRAIN = ["train", "--config", "recipe.yaml"]
STEPS = {"optim": "adamw_torch", "learning_rate": 0.01, "lr_scheduler_type": "linear"}
STEPS |= {"logging_steps": 2, "max_steps": 11, "save_steps": 100, "max_grad_norm": 1.0}


def write_rows(workshop, count=13):
    """Rows of which no epoch is a whole number of steps."""
    rows = [{"prompt": e["prompt"], "completion": e["completion"]} for e in toys.examples(count)]
    (workshop / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def weights_and_log(run):
    """The final weights of a run, and its log without timings, tokens and shares of an epoch.

    What fills up the last batches of an epoch counts there, and not in the loss.
    """
    rows = json.loads((run / "trainer_state.json").read_text())["log_history"]
    timed = re.compile(r".*(runtime|per_second|num_tokens|total_flos|num_input)|epoch$")
    log = [{k: v for k, v in row.items() if not timed.match(k)} for row in rows]
    weights = load_file(next(run.glob("*model.safetensors")))
    # FSDP2 also saves a tied head, which is its own tensor there.
    head = weights.pop("lm_head.weight", None)
    assert head is None or head.equal(weights["model.embed_tokens.weight"])
    return weights, log


STREAMED = {"dataset_streaming": True, "dataset_shuffle_buffer": 4}
PACKED = {"packing": True, "max_length": 16, "per_device_train_batch_size": 1}
# What torchrun tells a process that is the only one, which FSDP needs.
ONE_OF_ONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
ONE_OF_ONE |= {"MASTER_ADDR": "127.0.0.1"}
# Processes of before and after, and fields.
CASES = {
    "1 to 2": (1, 2, {}),
    "streamed, 2 to 1": (2, 1, STREAMED),
    "packed, 2 to 1": (2, 1, PACKED),
}
MORE = {
    "2 to 1": (2, 1, {}),
    "4 to 2": (4, 2, {}),
    "streamed, 1 to 2": (1, 2, STREAMED),
    "features, 2 to 1": (2, 1, toys.FORMS["features"]),
    "FSDP2, 2 to 1": (2, 1, FSDP2),
    "FSDP2, 2 to 4": (2, 4, FSDP2),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [*CASES, *(pytest.param(c, marks=pytest.mark.faults) for c in MORE)]
)
def test_another_number_of_processes_changes_nothing(workshop, case):
    """Over ends of epochs: weights to 1e-6 and log to 1e-5 of runs that never changed.

    Those are one process, and as many as the run began with: all three are the same run.
    """
    first, then, fields = (CASES | MORE)[case]
    write_rows(workshop)
    shape = {"per_device_train_batch_size": 2, **STEPS, **fields}

    def run(number, before="", recipe=fields):
        if "fsdp" not in recipe:
            return processes.run(TRAIN, workshop, processes=number, before=before)
        one = ONE_OF_ONE | {"MASTER_PORT": str(processes.free_port())} if number == 1 else {}
        return processes.run(TRAIN, workshop, processes=number, before=ON_CPU + before, **one)

    # One process without shards.
    plain = {name: value for name, value in shape.items() if name not in FSDP2}
    for name, number, kept in (("alone", 1, plain), ("never", first, shape)):
        toys.recipe(workshop, **kept, output_dir=name, gradient_accumulation_steps=4 // number)
        statuses, said = run(number, recipe=kept)
        assert set(statuses) == {0}, said
    toys.recipe(workshop, **shape, gradient_accumulation_steps=4 // first)
    statuses, said = run(first, before=processes.STOP.format(step=5))
    assert set(statuses) == {143}, said
    assert (workshop / "out" / "checkpoint-5").is_dir()
    statuses, said = run(then)
    assert set(statuses) == {0}, said
    words = f"goes on with {shape['per_device_train_batch_size']} rows x {4 // then} accumulated"
    assert said[0].count(words) == 1 and "resuming from out/checkpoint-5" in said[0]
    found, log = weights_and_log(workshop / "out")
    for name in ("alone", "never"):
        expected, other = weights_and_log(workshop / name)
        assert toys.drift(expected, found) < 1e-6, name
        for a, b in zip(log, other, strict=True):
            assert a == pytest.approx(b, rel=1e-5), name
    # The recipe of the run is still the one that began it: nothing to do for either.
    for number in {first, then}:
        statuses, said = run(number)
        assert set(statuses) == {0} and "nothing to do" in said[0]
    what = case.rpartition(", ")[0] or "loaded whole"
    happened = "the same command goes on with the same rows a step, at weights equal to 1e-6"
    test = "tests/train/test_elastic.py::test_another_number_of_processes_changes_nothing"
    fault = f"stopped, and other processes ({what})"
    fault_rows.found(fault, f"{first} -> {then}", happened, "nothing", test)


@pytest.mark.slow
def test_what_cannot_stay_is_refused_with_the_arithmetic(workshop):
    """One line, before a model is loaded; the run is left as it was and goes on as it began."""
    write_rows(workshop)
    shape = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, **STEPS}
    toys.recipe(workshop, **shape)
    assert processes.run(TRAIN, workshop, before=processes.STOP.format(step=5))[0] == [143]
    before = (workshop / "out" / "run.json").read_bytes()
    statuses, said = processes.run(TRAIN, workshop, processes=3)
    assert set(statuses) == {2}
    assert (
        "the run has 4 rows a step (2 rows x 2 accumulated x 1 process), which 3 processes with 2 "
        "rows each cannot make: 4 / (3 x 2) is no whole number; start a number of processes that "
        "divides 4" in said[0]
    )
    assert "loading the student" not in said[0]
    named = [*TRAIN, "--output_dir", "other", "--resume_from_checkpoint", "out/checkpoint-5"]
    statuses, said = processes.run(named, workshop, processes=3)
    assert set(statuses) == {2} and "4 / (3 x 2) is no whole number" in said[0]
    toys.recipe(workshop, **shape, dataloader_drop_last=True, output_dir="dropped")
    assert processes.run(TRAIN, workshop, before=processes.STOP.format(step=5))[0] == [143]
    statuses, said = processes.run(TRAIN, workshop, processes=2)
    assert set(statuses) == {2} and "dataloader_drop_last: true leaves out another" in said[0]
    assert (workshop / "out" / "run.json").read_bytes() == before


@pytest.mark.slow
def test_the_rows_of_another_run_stay(workshop):
    """A new folder on two processes, from a checkpoint of one; then the same without its name.

    The recipe alone would have 4 rows a step, the other run 8: weights to 1e-6 of that one.
    """
    write_rows(workshop)
    toys.recipe(workshop, **STEPS, gradient_accumulation_steps=4, output_dir="whole")
    assert processes.run(TRAIN, workshop)[0] == [0]
    toys.recipe(workshop, **STEPS, gradient_accumulation_steps=4, output_dir="other")
    assert processes.run(TRAIN, workshop, before=processes.STOP.format(step=4))[0] == [143]
    toys.recipe(workshop, **STEPS)
    named = [*TRAIN, "--resume_from_checkpoint", "other/checkpoint-4"]
    statuses, said = processes.run(
        named, workshop, processes=2, before=processes.STOP.format(step=7)
    )
    assert statuses == [143, 143], said
    mark = json.loads((workshop / "out" / "checkpoint-7" / "complete.json").read_text())
    assert mark["step_rows"] == {"per_device": 2, "accumulation": 2, "processes": 2, "asked": 1}
    statuses, said = processes.run(TRAIN, workshop, processes=2)
    assert statuses == [0, 0] and "resuming from out/checkpoint-7" in said[0], said
    expected, found = (weights_and_log(workshop / name)[0] for name in ("whole", "out"))
    assert toys.drift(expected, found) < 1e-6


def arguments(per_device, accumulation, processes):
    """What is read of training arguments, which know only the processes of now."""
    return SimpleNamespace(
        train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        world_size=processes,
        process_index=0,
        train_sampling_strategy="random",
        dataloader_drop_last=False,
        average_tokens_across_devices=True,
        accelerator_config=SimpleNamespace(split_batches=False),
        auto_find_batch_size=False,
        deepspeed=None,
    )


# Rows of a device, accumulation and processes: of the recipe that began the run (if any), of its
# checkpoint with what was asked for (None: of version 0.1.0, by one process), of now; rows a step.
KEPT = {
    "another run, other processes": (None, (2, 8, 1, 8), (2, 1, 4), 16),
    "another run, the same processes: on purpose": (None, (2, 2, 4, 2), (2, 1, 4), 8),
    "adapted, as then": ((2, 4, 1), (2, 2, 2, 4), (2, 4, 2), 8),
    "adapted to another run, as then": ((2, 1, 4), (2, 2, 4, 1), (2, 1, 4), 16),
    "adapted to another run, fewer processes": ((2, 1, 4), (2, 2, 4, 1), (2, 1, 2), 16),
    "adapted to another run, and anew": ((2, 1, 4), (2, 4, 2, 1), (2, 1, 4), 16),
    "another run on purpose, fewer processes": ((2, 1, 4), (2, 2, 4, 2), (2, 1, 2), 8),
    "adapted, back to one process": ((2, 4, 1), (2, 2, 2, 4), (2, 4, 1), 8),
    "another batch, the same rows": ((2, 4, 1), (2, 2, 2, 4), (4, 1, 2), 8),
    "of version 0.1.0": ((2, 4, 1), None, (2, 4, 2), 8),
    "of version 0.1.0, another run": (None, None, (2, 4, 2), 8),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_a_run_keeps(tmp_path, case):
    """As the command settles it, and the trainer again; then from a checkpoint of this run."""
    begun, last, now, expected = KEPT[case]
    names = ("per_device", "accumulation", "processes", "asked")
    if last is None:
        (tmp_path / "rng_state.pth").write_bytes(b"")
    else:
        mark_whole(tmp_path, versions={}, step_rows=dict(zip(names, last, strict=True)))
    if begun is not None:
        keys = ("per_device_train_batch_size", "gradient_accumulation_steps", "number of processes")
        begun = StepRows.of_fields(dict(zip(keys, begun, strict=True)))
    args = arguments(*now)
    settle(args, rows_to_keep(begun, tmp_path, args))
    assert StepRows.of_args(args).total == expected
    settle(args, rows_to_keep(begun, tmp_path, args))
    assert StepRows.of_args(args).total == expected
    # What the run then notes, and what the same arguments make of it without a command.
    noted = StepRows.of_args(args)
    assert noted.asked == now[1]
    again = arguments(*now)
    settle(again, noted)
    assert StepRows.of_args(again) == noted


def test_rows_of_a_step():
    """The accumulation that keeps them, or the arithmetic."""
    assert accumulation_for(StepRows(1, 4, 1), StepRows(1, 4, 2)) == 2
    assert accumulation_for(StepRows(2, 2, 2), StepRows(2, 2, 1)) == 4
    assert accumulation_for(StepRows(2, 1, 4), StepRows(4, 1, 2)) == 1
    with pytest.raises(
        ValueError, match=r"8 rows a step \(8 rows x 1 accumulated x 1 process\)"
    ) as e:
        accumulation_for(StepRows(8, 1, 1), StepRows(8, 1, 2))
    assert "8 / (2 x 8) is no whole number; set per_device_train_batch_size to 1 or 2 or 4" in str(
        e.value
    )


def test_a_recipe_shared_out_anew_is_the_same():
    """Other processes with the same rows, or that can make them; a batch alone is a difference."""
    before = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "seed": 1}
    before["number of processes"] = 1
    for now in (
        {"number of processes": 2},
        {"number of processes": 2, "gradient_accumulation_steps": 2},
        {"number of processes": 2, "per_device_train_batch_size": 4},
    ):
        assert with_shape_of(before, before | now) == before
    other = before | {"gradient_accumulation_steps": 2}
    assert with_shape_of(before, other) == other


def test_an_accumulation_that_is_asked_for_and_does_not_keep_the_rows_is_another_recipe():
    """It would be replaced by that which does; said by a flag, it means something."""
    before = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    before["number of processes"] = 1
    now = before | {"number of processes": 2, "gradient_accumulation_steps": 8}
    assert with_shape_of(before, now) == now
    assert "gradient_accumulation_steps was 4 and is now 8" in first_difference(
        {"fields": before}, {"fields": with_shape_of(before, now)}
    )


@pytest.mark.parametrize("noted", [True, False], ids=["noted", "of version 0.1.0"])
def test_a_trainer_in_python_goes_on_too(tmp_path, monkeypatch, noted):
    """From a checkpoint of two processes, noted in its mark or told by its files."""
    saved = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = toys.trainer(
        tmp_path / "whole",
        gradient_accumulation_steps=2,
        **saved | {"per_device_train_batch_size": 2},
    )
    whole.train()
    mark = tmp_path / "whole" / "checkpoint-2" / "complete.json"
    entries = json.loads(mark.read_text())
    assert entries["step_rows"] == {"per_device": 2, "accumulation": 2, "processes": 1, "asked": 2}
    folder = Path(mark).parent
    # As if two processes had written it: nothing else depends on them without dropout.
    if noted:
        entries["step_rows"] = {"per_device": 2, "accumulation": 1, "processes": 2, "asked": 1}
    else:
        del entries["step_rows"]
        (folder / "rng_state.pth").rename(folder / "rng_state_0.pth")
        (folder / "rng_state_1.pth").write_bytes((folder / "rng_state_0.pth").read_bytes())
    mark.write_text(json.dumps(entries))
    resumed = toys.trainer(tmp_path / "resumed", **saved | {"per_device_train_batch_size": 2})
    resumed.train(resume_from_checkpoint=str(folder))
    assert resumed.args.gradient_accumulation_steps == 2
    assert toys.drift(toys.weights(whole.model), toys.weights(resumed.model)) == 0
