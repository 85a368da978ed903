"""Equal terms: how many steps each method has, if all are to cost the same."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from distilllens.files import write_json
from distilllens.stored import read_stored
from distilllens.train import run_folder
from distilllens.train.recipe_difference import FOLLOWS_EVALUATION
from distilllens.workflows.run_arguments import build
from distilllens.workflows.study.materials import Materials, data_of
from distilllens.workflows.study.matrix import Study
from distilllens.workflows.study.measures import UNCOUNTED, Begun, cost_of_run
from distilllens.workflows.study.runs import Folders
from distilllens.workflows.train import run_job

logger = logging.getLogger(__name__)
_TRIED = 6  # steps of a trial
_SHORT = {
    "max_steps": _TRIED,
    "logging_strategy": "steps",  # the log counts tokens
    "logging_steps": 1,
    "save_strategy": "no",
    "eval_strategy": "no",
    "eval_generate": False,
    "load_best_model_at_end": False,
    "report": False,
}
# Fields that change the number of steps, or where something lies, and not what a step costs.
_NOT_OF_A_STEP = ("max_steps", "num_train_epochs", "teacher_cache", "seed", "output_dir")


class _Trial(TypedDict):
    seconds: float  # of a step
    flops: float | None
    epoch: float  # steps of one
    made_of: dict[str, Any]


class Trial(NamedTuple):
    """What a step of a method costs, and how many steps a run of its recipe has."""

    seconds: float
    flops: float | None
    steps: float


class Terms:
    """What makes the runs of a study equal, and the trials that tell what a step costs.

    Raises:
        ValueError: equal flops with a method whose flops are not known.
    """

    def __init__(self, study: Study, folders: Folders):
        for method in study.methods if study.equal == "flops" else ():
            if found := [field for field in UNCOUNTED if study.recipe(method).get(field)]:
                raise ValueError(
                    f"{study.path}: equal: flops does not go with {found[0]} (method {method}), "
                    "whose flops are not counted; set equal: seconds or steps"
                )
        self.study, self.folders, self._materials = study, folders, Materials()
        self._steps: dict[str, int] = {}

    def settle(self, fields: Callable[[str], Mapping], alone: Callable):
        """Decide how many steps each method has.

        Args:
            fields: the recipe of a method.
            alone: ``(name, function, *arguments)``: does something in a process of its own.

        Raises:
            ValueError: a method that has not one step for what the baseline's run costs.
        """
        if self.study.equal == "steps":
            return
        self._steps = self.equal_steps(self.trials(fields, alone))
        listed = ", ".join(f"{method} {steps}" for method, steps in self._steps.items())
        logger.info("equal %s: steps of %s", self.study.equal, listed)

    def equal_steps(self, trials: Mapping[str, Trial]) -> dict[str, int]:
        """Method -> the steps that cost what the baseline's run costs.

        Raises:
            ValueError: as ``settle``, or costs that are not known.
        """
        study, found = self.study, {}
        costs = {method: getattr(trial, study.equal) for method, trial in trials.items()}
        if unknown := [method for method, cost in costs.items() if not cost]:
            raise ValueError(
                f"{study.path}: the {study.equal} of a step of {unknown[0]} are not known; set "
                "equal: steps"
            )
        budget = trials[study.baseline].steps * costs[study.baseline]
        for method, cost in costs.items():
            found[method] = int(budget / cost + 1e-9)
            if found[method] < 1:
                raise ValueError(
                    f"{study.path}: a step of {method} costs {cost:.3g} "
                    f"{study.equal}, and a whole run of the baseline {study.baseline} "
                    f"{budget:.3g}; raise max_steps in base"
                )
        return found

    def applied(self, method: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a method's runs, with its number of steps where the study decides it."""
        steps = {"max_steps": self._steps[method]} if method in self._steps else {}
        return {**fields, **steps}

    def trials(self, fields: Callable[[str], Mapping], alone: Callable) -> dict[str, Trial]:
        """Method -> what a step costs, from a few steps of each.

        Known ones are not repeated while they are of the same fields, data and models.
        """
        found = {}
        for method in self.study.methods:
            recipe = fields(method)
            file = self.folders.trial(method, live=not recipe.get("teacher_cache"))
            made_of = self._made_of(recipe)
            known = read_stored(file, _Trial) if file.is_file() else None
            if known is None or known["made_of"] != made_of:
                logger.info("timing %d steps of %s", _TRIED, method)
                alone(f"trial-{method}", try_out, dict(recipe), file, made_of)
                known = read_stored(file, _Trial)
            steps = recipe.get("max_steps", -1)
            if steps <= 0:
                steps = round(recipe.get("num_train_epochs", 3.0) * known["epoch"])
            found[method] = Trial(known["seconds"], known["flops"], float(steps))
        return found

    def _made_of(self, recipe):
        """What decides the cost of a step."""
        values = {name: value for name, value in recipe.items() if name not in _NOT_OF_A_STEP}
        files = self._materials.files(data_of(recipe))
        made_of = {"values": values, "files": files, "models": self._materials.models(recipe)}
        return json.loads(json.dumps(made_of))


def try_out(fields: dict, file: Path, made_of: dict):
    """Run a few steps of a recipe, and write what a step costs; the run is removed."""
    folder = file.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    recipe = {**fields, **_SHORT, "output_dir": str(folder)}
    recipe.pop("metric_for_best_model", None)
    if recipe.get("lr_scheduler_type") in FOLLOWS_EVALUATION:  # and nothing is evaluated
        recipe["lr_scheduler_type"] = "constant"
    run_job(*build(recipe))
    cost = cost_of_run(recipe, folder, Begun(0, 0.0))
    _, state = run_folder.read_state(folder)
    trial = {
        "seconds": cost["seconds"] / cost["steps"],
        "flops": None if cost["flops"] is None else cost["flops"] / cost["steps"],
        "epoch": cost["steps"] / state["epoch"],
        "made_of": made_of,
    }
    write_json(file, trial)
    shutil.rmtree(folder)
