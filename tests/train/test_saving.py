"""What could prevent a student from being saved is mended or refused before it is trained."""

import errno
import json
import resource
from contextlib import contextmanager, nullcontext

import pytest
import toys
from safetensors import SafetensorError
from toys import recipe
from transformers import AutoModelForCausalLM

from distilllens.cli import main
from distilllens.train.saving import make_saveable, saved_or_removed
from distilllens.train.trainer import DistillLensTrainer

SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}


@pytest.fixture
def student(tmp_path):
    """A function from generation settings to a student that was loaded with them."""

    def loaded(**settings):
        folder = tmp_path / "student"
        toys.llama().save_pretrained(folder)
        file = folder / "generation_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
        return AutoModelForCausalLM.from_pretrained(folder)

    return loaded


@pytest.mark.filterwarnings("ignore:.*generation flags are not valid")
@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        # Llama 2's and Vicuna's folders, as published.
        ({"temperature": 0.9, "top_p": 0.6}, ["temperature (0.9)", "top_p (0.6)"]),
        ({"do_sample": False, "top_k": 5, "typical_p": 0.5}, ["typical_p (0.5)", "top_k (5)"]),
        ({"length_penalty": 2.0}, ["length_penalty (2.0)"]),
        ({"output_scores": True}, ["output_scores (True)"]),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_generation_settings_that_cannot_be_saved_are_reset(
    tmp_path, caplog, student, settings, fields
):
    """In memory, with one line that names them; training ends with a checkpoint that loads."""
    model = student(**settings)
    model.generation_config.pad_token_id = 1  # transformers excuses only what nobody changed
    toys.trainer(tmp_path / "out", student=model, **SAVING).train()
    said = [r.getMessage() for r in caplog.records if "generation_config" in r.getMessage()]
    assert len(said) == 1 and said[0].endswith("reset: " + ", ".join(fields))
    saved = json.loads((tmp_path / "out/checkpoint-1/generation_config.json").read_text())
    assert not settings.keys() & saved.keys() - {"do_sample"}
    AutoModelForCausalLM.from_pretrained(tmp_path / "out/checkpoint-1")


def test_sound_generation_settings_stay(tmp_path, caplog, student):
    """Sampling with a temperature is no fault."""
    model = student(do_sample=True, temperature=0.7, top_k=5)
    toys.trainer(tmp_path / "out", student=model, **SAVING).train()
    saved = json.loads((tmp_path / "out/checkpoint-1/generation_config.json").read_text())
    assert (saved["do_sample"], saved["temperature"], saved["top_k"]) == (True, 0.7, 5)
    assert "generation_config" not in caplog.text


def _no_generation(model, tokenizer):
    model.generation_config.num_return_sequences = 3


def _no_configuration(model, tokenizer):
    model.config.temperature = 0.7


def _no_tokenizer(model, tokenizer):
    tokenizer.init_kwargs["broken"] = object


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_generation, "generation_config of the student is not valid: Greedy methods"),
        (_no_configuration, "configuration of the student cannot be saved: Some generation param"),
        (_no_tokenizer, "tokenizer of the student cannot be saved: "),
    ],
)
def test_what_cannot_be_saved_is_refused_before_training(tmp_path, damage, message):
    """Not at the first checkpoint, hours later; on one line."""
    model, tokenizer = toys.llama(), toys.tokenizer()
    damage(model, tokenizer)
    with pytest.raises(ValueError, match=message) as refused:
        make_saveable(model, tokenizer)
    assert "\n" not in str(refused.value)


@contextmanager
def largest_file(size):
    """No file may become larger: what a full disk is to a program that writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def failing_at(monkeypatch, step, size):
    """Writing fails in the checkpoint of a step, or in the final model (None)."""
    name = "save_model" if step is None else "_save_checkpoint"
    original = getattr(DistillLensTrainer, name)

    def failing(self, folder=None, *args, **kwargs):
        final = name == "save_model" and str(folder).endswith("final.part")
        hit = final if step is None else self.state.global_step == step
        with largest_file(size) if hit else nullcontext():
            return original(self, folder, *args, **kwargs)

    monkeypatch.setattr(DistillLensTrainer, name, failing)


# Each limit is met first by another file, and so by another library.
@pytest.mark.parametrize(
    ("step", "what", "size", "why"),
    [
        (2, "checkpoint-2", 300, "File too large"),  # config.json
        (4, "checkpoint-4", 20000, "File too large"),  # model.safetensors
        (4, "checkpoint-4", 60000, "torch could not write a file ("),  # optimizer.pt
        (None, "the final model", 20000, "File too large"),
    ],
)
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    workshop, monkeypatch, capsys, step, what, size, why
):
    """What was half written is gone, what was whole is there, and the bits are the same."""
    recipe(workshop, output_dir="whole")
    assert main(["train", "--config", "recipe.yaml"]) == 0
    recipe(workshop)
    capsys.readouterr()
    with monkeypatch.context() as m:
        failing_at(m, step, size)
        assert main(["train", "--config", "recipe.yaml"]) == 2
    kept = {2: "there is no checkpoint so far", 4: "out/checkpoint-2 is the last checkpoint"}
    kept = kept.get(step, "out/checkpoint-4 is the last checkpoint")
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"distilllens: error: {what} could not be saved in out: {why}"), line
    after = "begins again" if step == 2 else "goes on from there"
    assert line.endswith(f"; {kept}: make room or mend the disk, and the same command {after}")
    found = {path.name for path in (workshop / "out").iterdir()} - {"README.md"}
    assert found == {"run.json", *[f"checkpoint-{n}" for n in (2, 4) if n < (step or 5)]}
    assert main(["train", "--config", "recipe.yaml"]) == 0
    whole = (workshop / "whole" / "model.safetensors").read_bytes()
    assert (workshop / "out" / "model.safetensors").read_bytes() == whole


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (RuntimeError("basic_ios::clear: iostream error"), "torch could not write a file"),
        (Exception("No space left on device (os error 28)"), ": No space left on device; "),
        (
            SafetensorError("Error while serializing: I/O error: Disk quota exceeded (os error 1)"),
            "in .*: Disk quota exceeded; ",
        ),
    ],
)
def test_every_library_says_that_the_disk_is_full(tmp_path, error, message):
    """Each in its own words; the folder is removed by the process that writes it alone."""
    folder = tmp_path / "checkpoint-1"
    for writes in (False, True):
        folder.mkdir(exist_ok=True)
        with pytest.raises(OSError, match=message), saved_or_removed(folder, "it", writes=writes):
            raise error
        assert folder.exists() != writes


def test_other_errors_are_no_errors_of_the_disk(tmp_path):
    """They are passed on, and nothing is removed."""
    (tmp_path / "checkpoint-1").mkdir()
    for error in (
        RuntimeError("CUDA error: out of memory"),
        OSError("500 Server Error: the hub"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    ):
        with pytest.raises(type(error)) as passed:  # noqa: SIM117
            with saved_or_removed(tmp_path / "checkpoint-1", "it", writes=True):
                raise error
        assert passed.value is error and (tmp_path / "checkpoint-1").exists()


def test_remains_of_a_killed_save_are_not_part_of_the_next_one(tmp_path):
    """Such as the temporary files of safetensors."""
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / ".tmpAbCdEf").write_bytes(b"half a model")
    toys.trainer(tmp_path, **SAVING).train()
    assert not (tmp_path / "checkpoint-1" / ".tmpAbCdEf").exists()
