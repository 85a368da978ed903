"""What could prevent a student from being saved is mended or refused before it is trained."""

import json

import pytest
import toys
from transformers import AutoModelForCausalLM

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
    from distilllens.train.saving import make_saveable

    model, tokenizer = toys.llama(), toys.tokenizer()
    damage(model, tokenizer)
    with pytest.raises(ValueError, match=message) as refused:
        make_saveable(model, tokenizer)
    assert "\n" not in str(refused.value)
