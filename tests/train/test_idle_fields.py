"""Fields that are set in vain are named, with what is off."""

import pytest
import toys
from trl import ModelConfig

from distilllens.train.idle_fields import idle_fields, idle_teacher
from distilllens.workflows.train_inputs import JobArguments

TAUGHT = {"teacher_model_name_or_path": "a"}

# Fields that are set -> those that have no effect, and why.
IDLE = [
    ({"on_policy_from": 0.5}, {"on_policy_fraction is 0": ["on_policy_from"]}),
    ({"on_policy_from": 0.5, "on_policy_fraction": 0.5}, {}),
    ({"lens_weight": 0, "lens_beta": 0.1}, {"lens_weight is 0": ["lens_beta"]}),
    ({"lens_weight": 0, "lens_beta": 0.1, "eval_strategy": "epoch"}, {}),
    (
        {"lens_weight": 0, "lens_token_fraction": 0.5, "eval_strategy": "epoch"},
        {"lens_weight is 0": ["lens_token_fraction"]},
    ),
    (
        {"lens_divergence": "forward_kl", "lens_beta": 0.1},
        {"lens_divergence is forward_kl": ["lens_beta"]},
    ),
    (
        {"output_weight": 0, "output_divergence": "jsd"},
        {"output_weight is 0": ["output_divergence"]},
    ),
    ({"feature_loss": "cosine"}, {"feature_weight is 0": ["feature_loss"]}),
    ({"feature_loss": "cosine", "feature_weight": 0.1}, {}),
    ({"teacher_cache_dtype": "int8"}, {"there is no teacher_cache": ["teacher_cache_dtype"]}),
    ({"teacher_cache_dtype": "int8", "teacher_cache": "c"}, {}),
    ({"lora_r": 4, "lora_dropout": 0.1}, {"use_peft is not set": ["lora_r", "lora_dropout"]}),
    ({"lora_r": 4, "use_peft": True}, {}),
    ({"bnb_4bit_quant_type": "fp4"}, {"load_in_4bit is not set": ["bnb_4bit_quant_type"]}),
    ({"eval_steps": 5}, {"eval_strategy is no": ["eval_steps"]}),
    ({"save_steps": 5, "save_strategy": "epoch"}, {"save_strategy is epoch": ["save_steps"]}),
    (
        {"eval_generate_kwargs": {"limit": 1}},
        {"eval_generate is not set": ["eval_generate_kwargs"]},
    ),
    ({"dataset_shuffle_buffer": 7}, {"dataset_streaming is not set": ["dataset_shuffle_buffer"]}),
    ({"dataset_config": "x"}, {"dataset_name is not set": ["dataset_config"]}),
    ({"packing_strategy": "wrapped"}, {"packing is not set": ["packing_strategy"]}),
    ({"packing_strategy": "wrapped", "eval_packing": True}, {}),
    ({"hub_model_id": "x"}, {"push_to_hub is not set": ["hub_model_id"]}),
]


def values_of(folder, fields):
    """All fields of a run with a teacher."""
    job = {k: v for k, v in fields.items() if k.startswith("dataset_")}
    model = {k: v for k, v in fields.items() if k.startswith(("lora_", "use_peft", "bnb_"))}
    rest = {k: v for k, v in fields.items() if k not in job | model}
    parts = JobArguments(train_file=["a"], **job), ModelConfig(**model)
    return {k: v for p in (*parts, toys.config(folder, **rest)) for k, v in vars(p).items()}


@pytest.mark.parametrize(("fields", "expected"), IDLE)
def test_what_has_no_effect_is_named(tmp_path, fields, expected):
    """The fields of a term, or of a part of the run, that is off."""
    assert idle_fields(values_of(tmp_path, TAUGHT | fields), list(fields)) == expected


def test_without_a_teacher_all_of_its_fields_are_idle(tmp_path):
    """Not those of the cross-entropy."""
    fields = {"cross_entropy_weight": 1, "lens_beta": 0.1, "temperature": 2.0}
    found = idle_fields(values_of(tmp_path, fields), list(fields))
    assert found == {"there is no teacher": ["lens_beta", "temperature"]}


ASKED_NOTHING = {"output_weight": 0, "lens_weight": 0, "cross_entropy_weight": 1}
TEACHERS = {
    "teacher_model_name_or_path": "a",
    "teacher_cache": "c",
    "teachers": [{"model": "a", "weight": 1}],
    "teacher_server": "http://localhost:8000/v1",
}


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher_that_is_asked_for_nothing_is_named(tmp_path, name):
    """Whatever kind it is; an evaluation measures it, and so does any weight."""
    fields = ASKED_NOTHING | {name: TEACHERS[name]}
    assert idle_teacher(values_of(tmp_path, fields)) == name
    assert idle_teacher(values_of(tmp_path, fields | {"eval_strategy": "epoch"})) is None
    assert idle_teacher(values_of(tmp_path, fields | {"output_weight": 1})) is None
    assert idle_teacher(values_of(tmp_path, {**ASKED_NOTHING})) is None
