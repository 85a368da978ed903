"""Equal terms: how many steps each method has, if all are to cost the same."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from distilllens.files import write_json
from distilllens.stored import read_stored
from distilllens.train import run_folder
from distilllens.workflows.run_arguments import build
from distilllens.workflows.study.matrix import Study
from distilllens.workflows.study.measures import UNCOUNTED, Begun, cost_of_run
from distilllens.workflows.study.runs import Folders
from distilllens.workflows.train import run_job

logger = logging.getLogger(__name__)
_TRIED = 6  # steps of a trial


class _Trial(TypedDict):
    seconds: float  # of a step
    flops: float
    steps: float  # of a whole run of the recipe


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
        self.study, self.folders = study, folders
        self._steps: dict[str, int] = {}

    def settle(self, fields: Callable[[str], Mapping], alone: Callable):
        """Decide how many steps each method has.

        Args:
            fields: the recipe of a method.
            alone: ``(name, function, *arguments)``: does something in a process of its own.

        Raises:
            ValueError: a method that has not one step for what the baseline's run costs.
        """
        study = self.study
        if study.equal == "steps":
            return
        trials = self.trials(fields, alone)
        budget = trials[study.baseline]["steps"] * trials[study.baseline][study.equal]
        for method, found in trials.items():
            steps = self._steps[method] = int(budget / found[study.equal] + 1e-9)
            if steps < 1:
                raise ValueError(
                    f"{study.path}: a step of {method} costs {found[study.equal]:.3g} "
                    f"{study.equal}, and a whole run of the baseline {study.baseline} "
                    f"{budget:.3g}; raise max_steps in base"
                )
        listed = ", ".join(f"{method} {steps}" for method, steps in self._steps.items())
        logger.info("equal %s: steps of %s", study.equal, listed)

    def applied(self, method: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a method's runs, with its number of steps where the study decides it."""
        steps = {"max_steps": self._steps[method]} if method in self._steps else {}
        return {**fields, **steps}

    def trials(self, fields: Callable[[str], Mapping], alone: Callable) -> dict[str, _Trial]:
        """Method -> what a step costs, from a few steps of each; known ones are not repeated."""
        found = {}
        for method in self.study.methods:
            recipe = fields(method)
            kind = "" if recipe.get("teacher_cache") else "-live"
            file = self.folders.output / "trials" / f"{method}{kind}.json"
            if not file.is_file():
                logger.info("timing %d steps of %s", _TRIED, method)
                alone(f"trial-{method}", try_out, dict(recipe), file)
            found[method] = read_stored(file, _Trial)
        return found


def try_out(fields: dict, file: Path):
    """Run a few steps of a recipe, and write what a step costs; the run is removed."""
    folder = file.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    short = {"max_steps": _TRIED, "logging_steps": 1, "save_strategy": "no", "eval_strategy": "no"}
    recipe = {**fields, **short, "report": False, "output_dir": str(folder)}
    run_job(*build(recipe))
    cost = cost_of_run(recipe, folder, Begun(0, 0.0))
    _, state = run_folder.read_state(folder)
    epochs = fields.get("num_train_epochs", 3.0)
    steps = fields.get("max_steps", -1)
    whole = steps if steps > 0 else round(epochs * _TRIED / state["epoch"])
    # Flops that are not known are not asked for either.
    per_step = {name: (cost[name] or 0.0) / cost["steps"] for name in ("seconds", "flops")}
    write_json(file, {**per_step, "steps": float(whole)})
    shutil.rmtree(folder)
