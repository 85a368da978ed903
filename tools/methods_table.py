"""Write docs/methods.md: each method of distillation, its recipe, its code and its test.

A row appears when all of its fields are fields of a recipe. Its code and tests must exist.
"""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path
from pkgutil import resolve_name
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "methods.md"
BEGIN, END = "<!-- methods: begin -->", "<!-- methods: end -->"
DEFINITION = "tests/test_divergence.py::test_equals_its_definition"
FORMULA = "tests/test_methods.py::test_a_recipe_is_its_formula"
FORMS = "tests/test_objective.py::test_every_form_of_the_lens_is_its_formula"


class Method(NamedTuple):
    """A row.

    Args:
        recipe: the fields that a recipe sets beside its models, data and folder.
        code: names under ``distilllens``; a call's arguments are shown only.
        tests: ``FILE::FUNCTION``; the oracle of one at least shares no code with ours.
        remark: what the method has beside its loss, and how it is run here.
    """

    name: str
    recipe: dict
    code: tuple[str, ...]
    tests: tuple[str, ...]
    remark: str = ""
    teacher: bool = True


def _at_the_output(name, divergence, remark="", **parameters):
    recipe = {"output_divergence": divergence}
    if parameters:
        recipe["output_divergence_kwargs"] = parameters
    code = (f'divergence("{divergence}")', "Objective")
    return Method(name, recipe | {"lens_weight": 0}, code, (FORMULA, DEFINITION), remark)


def _form(name, recipe, tests=(FORMS,), code=("Objective",)):
    return Method(name, recipe, code, tests)


METHODS = (
    Method(
        "SFT",
        {"cross_entropy_weight": 1},
        ("Objective",),
        (FORMULA, "tests/train/test_agreement.py::test_steps_are_those_of_trl_and_of_the_formulas"),
        "no teacher; for the teacher itself, too",
        teacher=False,
    ),
    Method(
        "SeqKD (Kim and Rush 2016)",
        {"cross_entropy_weight": 1},
        ("workflows.generate.generate", "Objective"),
        (
            FORMULA,
            "tests/cli/test_generate.py::test_a_row_is_its_record_with_the_teachers_answer",
        ),
        "SFT on what `distilllens generate` wrote; see [seqkd.md](seqkd.md)",
        teacher=False,
    ),
    Method(
        "KD (Hinton et al. 2015)",
        {
            "output_divergence": "forward_kl",
            "cross_entropy_weight": 0.5,
            "output_weight": 0.5,
            "lens_weight": 0,
            "temperature": 2.0,
        },
        ('divergence("forward_kl")', "Objective"),
        (FORMULA, DEFINITION),
        "not multiplied by T²: set `output_weight` for that",
    ),
    _at_the_output("forward KL", "forward_kl"),
    _at_the_output(
        "reverse KL (the loss of MiniLLM, Gu et al. 2024)",
        "reverse_kl",
        "on the data's answers; MiniLLM's policy gradient on the student's own is not here",
    ),
    _at_the_output(
        "FKL + RKL", "jeffreys", "the mean of both", forward_weight=0.5, reverse_weight=0.5
    ),
    _at_the_output(
        "JSD (the loss of GKD, Agarwal et al. 2024)",
        "jsd",
        "[beta](divergences.md#the-ends-of-beta) strictly between 0 and 1",
        beta=0.5,
    ),
    _at_the_output("AKL (Wu et al. 2025)", "adaptive_kl", mu=0.5),
    _at_the_output("skew KL (DistiLLM, Ko et al. 2024)", "skew_forward_kl", alpha=0.1),
    _at_the_output("skew reverse KL (DistiLLM)", "skew_reverse_kl", alpha=0.1),
    _at_the_output("total variation (f-distill, Wen et al. 2023)", "total_variation"),
    Method(
        "DistillLens",
        {"output_divergence": "reverse_kl", "lens_divergence": "jsd", "lens_layers": "auto"},
        ("LogitLens", "Objective"),
        (
            FORMULA,
            "tests/test_objective.py::test_value_and_gradients_are_those_of_the_formula",
        ),
        "the defaults",
    ),
    Method(
        "DistillLens, Jeffreys",
        {"lens_divergence": "jeffreys"},
        ('divergence("jeffreys")', "Objective"),
        (FORMULA, DEFINITION),
    ),
    Method(
        "GKD (Agarwal et al. 2024)",
        {
            "output_divergence": "jsd",
            "output_divergence_kwargs": {"beta": 0.5},
            "lens_weight": 0,
            "on_policy_fraction": 0.5,
            "on_policy_max_new_tokens": 48,
        },
        ("train.on_policy.OnPolicyTrainer", "Objective"),
        ("tests/train/test_on_policy.py::test_the_loss_is_that_of_trls_gkd_on_equal_text",),
        "half of the steps [on the student's own answers](on_policy.md)",
    ),
    Method(
        "DistillLens, on-policy",
        {"on_policy_fraction": 0.5, "on_policy_from": 0.25, "on_policy_max_new_tokens": 48},
        ("train.on_policy.OnPolicyTrainer", "Objective"),
        ("tests/train/test_on_policy.py::test_a_step_reads_the_students_own_answers",),
    ),
    Method(
        "DistillLens as published",
        {"lens_norm": False},
        ("Objective",),
        (FORMULA, "tests/test_objective.py::test_without_the_norm_the_head_reads_raw_states"),
        "without the final norm; its [mask](paper.md) is not reproduced",
    ),
    _form(
        "features, MSE",
        {"feature_weight": 1, "feature_loss": "mse", "lens_weight": 0},
        ("tests/test_objective.py::test_the_feature_loss_is_its_formula",),
    ),
    _form(
        "features, cosine",
        {"feature_weight": 1, "feature_loss": "cosine", "lens_weight": 0},
        ("tests/test_objective.py::test_the_feature_loss_is_its_formula",),
    ),
    _form(
        "DistillLens that fades",
        {"lens_weight_schedule": "cosine", "lens_weight_until": 0.5},
        ("tests/train/test_schedule.py::test_the_weight_falls_as_the_formula",),
    ),
    _form("DistillLens, deeper pairs weigh more", {"lens_pair_weights": "depth"}),
    _form("DistillLens, uncertain tokens weigh more", {"lens_token_weights": "entropy"}),
    _form(
        "DistillLens that leaves the head alone",
        {"lens_detach_head": True},
        ("tests/test_objective.py::test_a_detached_head_is_left_to_the_output",),
    ),
    _form(
        "early exits",
        # The second field came with the value of the first.
        {
            "lens_layers": "exits",
            "lens_divergence": "forward_kl",
            "output_divergence": "forward_kl",
        },
        ("tests/train/test_trainer.py::test_the_teacher_is_read_once_for_all_exits",),
    ),
    _form(
        "DistillLens through a tuned lens",
        {"lens_readout": "tuned"},
        (
            "tests/train/test_tuned_lens.py"
            "::test_the_lens_is_measured_through_both_models_translators",
            "tests/lens/test_translator_fit.py::test_it_is_ridge_regression",
        ),
    ),
)


def known_fields() -> set[str]:
    """The fields of a recipe that are ours."""
    from distilllens.train.config import DistillLensConfig
    from distilllens.workflows.train import JobArguments

    return {each.name for owner in (JobArguments, DistillLensConfig) for each in fields(owner)}


def methods() -> list[Method]:
    """The methods whose fields exist.

    Raises:
        ValueError: one names no test, a test that is not there, or code that is not there.
    """
    known = known_fields()
    found = [method for method in METHODS if method.recipe.keys() <= known]
    for method in found:
        problems = [name for name in method.tests if not _is_test(name)]
        problems += [name for name in method.code if not _is_code(name)]
        if problems or not method.tests:
            what = f"names {problems[0]}, which is not there" if problems else "names no test"
            raise ValueError(f"{method.name} {what}")
    return found


def table() -> str:
    """The rows of the methods."""
    lines = ["| method | recipe | code | test |", "|---|---|---|---|"]
    for method in methods():
        recipe = "<br>".join(f"`{line}`" for line in recipe_lines(method))
        remark = f"<br>{method.remark}" if method.remark else ""
        cells = [method.name + remark, recipe, *(_spans(s) for s in (method.code, method.tests))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def recipe_lines(method: Method) -> list[str]:
    """The lines of a recipe, as YAML."""
    lines = ["teacher_model_name_or_path: TEACHER"] if method.teacher else []
    return [*lines, *(f"{name}: {_yaml(value)}" for name, value in method.recipe.items())]


def rewritten(page: str) -> str:
    """The page with the current table between its markers."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


def _yaml(value):
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {item}' for name, item in value.items())}}}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _spans(names):
    return ", ".join(f"`{name}`" for name in names)


def _is_test(name):
    path, _, function = name.partition("::")
    if not (ROOT / path).is_file():
        return False
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return any(isinstance(n, ast.FunctionDef) and n.name == function for n in ast.walk(tree))


def _is_code(name):
    try:
        resolve_name(f"distilllens.{name.split('(')[0]}")
    except (ImportError, AttributeError):
        return False
    return True


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
