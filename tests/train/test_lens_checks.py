"""Forms of the lens that do not exist or do not fit together: one line, before a model loads."""

import pytest
import toys

REFUSED = [
    ({"lens_weight_schedule": "linar"}, "is one of constant, linear, cosine, got 'linar'"),
    ({"lens_weight_schedule": None}, "lens_weight_schedule must be a name, got None"),
    ({"lens_weight_until": 0}, "lens_weight_until must be above 0 and at most 1, got 0"),
    ({"lens_weight_until": 1.01}, "lens_weight_until must be above 0 and at most 1, got 1.01"),
    ({"lens_weight_until": "half"}, "lens_weight_until must be a number, got 'half'"),
    ({"lens_token_weights": "entrpy"}, "lens_token_weights is one of uniform, entropy, got"),
    ({"lens_detach_head": "yes"}, "lens_detach_head must be true or false, got 'yes'"),
    ({"feature_loss": "l1"}, "feature_loss is one of mse, cosine, got 'l1'"),
    ({"feature_weight": -1}, "feature_weight must be at least 0, got -1"),
    ({"feature_weight": None}, "feature_weight must be a number, got None"),
    ({"lens_pair_weights": "deep"}, "must be uniform or depth, or a number for each pair .*'deep'"),
    ({"lens_pair_weights": []}, r"or a number for each pair such as \[1, 2, 3\], got \[\]"),
    ({"lens_pair_weights": 3}, "or a number for each pair .* got 3"),
    ({"lens_pair_weights": [1, "2"]}, "or a number for each pair .* got '2' in it"),
    ({"lens_pair_weights": [1, True]}, "or a number for each pair .* got True in it"),
    ({"lens_pair_weights": [1, -2]}, "lens_pair_weights must be finite and at least 0, got -2"),
    ({"lens_pair_weights": "1,nan"}, "lens_pair_weights must be finite and at least 0, got nan"),
    ({"lens_pair_weights": [0, 0]}, r"lens_pair_weights are 0 for all pairs: \[0, 0\]"),
    (
        {"lens_pair_weights": [1, 2], "lens_layers": "3"},
        "each of the 3 pairs of lens_layers 3, got 2",
    ),
    ({"lens_pair_weights": "1", "lens_layers": "1:2,2:3"}, "the 2 pairs of lens_layers .*, got 1"),
    ({"lens_weight_until": 0.5, "output_weight": 0}, "until 0.5 leaves nothing to learn from"),
    ({"lens_layers": "exit"}, "cannot read the layer map 'exit'.*; or .auto., .*or .exits."),
    ({"lens_layers": "exits", "lens_norm": False}, "exits .* it needs lens_norm: true"),
    ({"cross_tokenizer": "shared", "feature_weight": 1}, "feature_weight does not go with cross_"),
    ({"cross_tokenizer": "uld", "on_policy_fraction": 1}, "on_policy_fraction does not go with cr"),
    ({"cross_tokenizer": "same"}, "cross_tokenizer is one of shared, uld, or not set; got 'same'"),
    ({"feature_weight": 1, "teacher_cache": "x"}, "feature_weight .* set lens_norm: false, or"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_it_is_refused_when_it_is_set(tmp_path, settings, message):
    """With the field, the value and what would be right."""
    with pytest.raises(ValueError, match=message) as refused:
        toys.config(tmp_path, **settings)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lens_pair_weights": [1, 2, 3]}, "each of the 2 pairs 1:1,2:3, got 3"),
        ({"lens_layers": "exits", "student": 1}, "the student has no inner depth for exits"),
        ({"feature_weight": 1, "lens_weight": 0, "student": 1}, "feature_weight needs depth pairs"),
    ],
)
def test_what_the_models_tell_is_refused_before_a_step(tmp_path, settings, message):
    """The number of pairs of "auto", and models without an inner depth."""
    student = toys.llama(settings.get("student", 3))
    with pytest.raises(ValueError, match=message):
        toys.trainer(tmp_path, **settings | {"student": student})


@pytest.mark.parametrize("given", [[1, 2], (1, 2.0), "1,2", "[1, 2.0]", " 1 , 2 "])
def test_one_list_is_one_recipe(tmp_path, given):
    """However it is written, so that a resumed run is known for the same."""
    assert toys.config(tmp_path, lens_pair_weights=given).lens_pair_weights == [1.0, 2.0]
    assert toys.config(tmp_path, lens_pair_weights=None).lens_pair_weights == "uniform"
