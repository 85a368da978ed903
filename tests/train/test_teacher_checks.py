"""What does not go with several teachers, or with one at a server: refused before torch."""

import pytest
import toys

from distilllens.train.teacher_checks import check_teacher_sharding, check_teachers
from distilllens.workflows.launch import check_profile, read_profile
from distilllens.workflows.train_checks import check_cache, check_values

TWO = [{"model": "a", "weight": 0.7}, {"model": "b", "weight": 0.3}]
SERVER = {"teacher_server": "http://localhost:8000/v1", "lens_weight": 0}

ENTRIES = {
    "no list": ({"model": "a", "weight": 1}, "teachers must be a list such as"),
    "empty": ([], "teachers must be a list"),
    "no mapping": (["a", "b"], "entry 1 of teachers must be a mapping"),
    "unknown key": ([{"model": "a", "wieght": 1}], "unknown key 'wieght'; known: model, weight"),
    "no weight": ([{"model": "a"}], r"entry 1 of teachers has no weight; give each one, as in \["),
    "a word": ([{"model": "a", "weight": "x"}], "entry 1 of teachers: weight must be a number"),
    "negative": ([*TWO, {"model": "c", "weight": -1}], "entry 3 of teachers: weight .* got -1"),
    "not finite": ([{"model": "a", "weight": float("nan")}], "weight must be"),
    "true": ([{"model": "a", "weight": True}], "weight must be"),
    "none": ([{"model": "a", "weight": 0}], "one of the teachers must have a weight above 0"),
    "model": ([{"model": 3, "weight": 1}], "model must be a folder or hub id, got 3"),
    "layers": (
        [{"model": "a", "weight": 1, "lens_layers": "2-3"}],
        "entry 1 of teachers: lens_lay",
    ),
    "kwargs": ([{"model": "a", "weight": 1, "model_init_kwargs": 1}], "must be a mapping"),
    "one cache": ([{**each, "cache": "c"} for each in TWO], "c is the cache of two"),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_entries_of_teachers(name):
    """One line, with the number of the entry."""
    teachers, match = ENTRIES[name]
    with pytest.raises(ValueError, match=match) as error:
        check_teachers({"teachers": teachers})
    assert "\n" not in str(error.value)


ALONE = {
    "teacher_model_name_or_path": "a",
    "teacher_cache": "a",
    "teacher_server": SERVER["teacher_server"],
    "cross_tokenizer": "shared",
    "lens_readout": "tuned",
    "lens_token_weights": "entropy",
    "feature_weight": 0.1,
    "student_blocks": 3,
}
NOT_SERVED = {
    "teacher_model_name_or_path": "a",
    "teacher_model_init_kwargs": {"dtype": "bfloat16"},
    "teacher_cache": "a",
    "cross_tokenizer": "shared",
    "feature_weight": 0.1,
    "student_blocks": 3,
    "temperature": 2.0,
    "lens_weight": 0.5,
    "output_divergence": "uld",
}


@pytest.mark.parametrize("name", ALONE)
def test_fields_beside_teachers(name):
    """Each with its reason, also by the command line's first check."""
    values = {"teachers": TWO, name: ALONE[name]}
    for check in (check_teachers, check_values):
        with pytest.raises(ValueError, match=rf"teachers does not go with {name}: "):
            check(values)


@pytest.mark.parametrize("name", NOT_SERVED)
def test_fields_beside_teacher_server(name):
    """Each with its reason, also by the command line's first check."""
    word = "a lens" if name == "lens_weight" else name
    for check in (check_teachers, check_values):
        with pytest.raises(ValueError, match=rf"teacher_server does not go with {word}"):
            check({**SERVER, name: NOT_SERVED[name]})


SHARDED = {
    "another word": ({"teacher_sharding": "split"}, "is one of shard, replicate, got 'split'"),
    "cached": ({"teacher_cache": "a"}, "replicate does not go with a cache of the teacher"),
    "all cached": (
        {"teachers": [{"model": "a", "weight": 1, "cache": "b"}]},
        "replicate does not go with a cache of the teacher",
    ),
    "at a server": (SERVER, "teacher_server does not go with teacher_sharding"),
}


@pytest.mark.parametrize("case", SHARDED)
def test_a_teacher_that_is_not_here_has_no_sharding(case):
    """Nor is there another word for it; several of which one runs here have one."""
    values, match = SHARDED[case]
    with pytest.raises(ValueError, match=match):
        check_teachers({"teacher_sharding": "replicate", **values})
    check_teachers({"teachers": TWO, "teacher_sharding": "replicate"})


def test_whole_models_have_no_sharding(monkeypatch):
    """Neither a recipe nor a profile that shards nothing; the default says nothing."""
    fields = {"teacher_sharding": "replicate"}
    for profile in ({}, {"fsdp": False}, read_profile("ddp").fields):
        with pytest.raises(ValueError, match="is about FSDP and DeepSpeed"):
            check_teacher_sharding({**fields, **profile})
    for profile in ({"fsdp": True}, read_profile("fsdp2").fields, read_profile("zero3").fields):
        check_teacher_sharding({**fields, **profile})
    check_teacher_sharding({"teacher_sharding": "shard"})
    for kind in ("FSDP", "DEEPSPEED"):  # as accelerate launch says it
        with monkeypatch.context() as launched:
            launched.setenv(f"ACCELERATE_USE_{kind}", "true")
            check_teacher_sharding(fields)
    with pytest.raises(ValueError, match="is about FSDP and DeepSpeed"):
        check_profile(read_profile("ddp"), fields)


def test_addresses():
    """Only a web address, without a password in it."""
    for address in ("localhost:8000", "ftp://host/v1", 3):
        with pytest.raises(ValueError, match="is no address such as"):
            check_teachers({**SERVER, "teacher_server": address})
    with pytest.raises(ValueError, match="OPENAI_API_KEY"):
        check_teachers({**SERVER, "teacher_server": "http://me:secret@host/v1"})
    with pytest.raises(ValueError, match="teacher_server_model is a name at teacher_server"):
        check_teachers({"teacher_server_model": "a"})
    with pytest.raises(ValueError, match="teacher_server_top_k 50 is asked of teacher_server"):
        check_teachers({"teacher_server_top_k": 50})


def test_defaults_go_with_either(tmp_path):
    """Both kinds, as a recipe would have them; no cache of one teacher is written of them."""
    cached = [{**TWO[0], "cache": "c"}, TWO[1]]
    check_values({"teachers": TWO, "on_policy_fraction": 0.5})
    check_values({**SERVER, "on_policy_fraction": 0.5})
    with pytest.raises(ValueError, match="on_policy_fraction does not go with a cache in teachers"):
        check_values({"teachers": cached, "on_policy_fraction": 0.5})
    assert toys.config(tmp_path, teachers=cached).teachers[0]["lens_layers"] is None
    for values, match in (({"teachers": TWO}, "one teacher"), (SERVER, "a server returns none")):
        with pytest.raises(ValueError, match=match):
            check_cache(values)
