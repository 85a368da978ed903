"""Bad fields of a training job, refused before torch is imported and before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from distilllens.data import data_files
from distilllens.data.sources import sources_of
from distilllens.errors import did_you_mean
from distilllens.generate.predictions_server import check_reachable
from distilllens.generate.server import KEY
from distilllens.places import check_folder_of, check_hub_of, missing_in
from distilllens.train.config_checks import (
    check_bounds,
    check_finite,
    check_save_dtype,
)
from distilllens.train.lens_checks import (
    check_cross_tokenizer,
    check_lens_layers,
    check_schedule,
    settled_pair_weights,
)
from distilllens.train.on_policy_checks import check_named_teacher, check_on_policy
from distilllens.train.stream_checks import check_stream_settings
from distilllens.train.teacher_checks import check_teachers
from distilllens.workflows.outputs import check_folder

_MODELS = {"student": "model_name_or_path", "teacher": "teacher_model_name_or_path"}

# What transformers can report to -> the package that this needs.
_LOGGERS = {
    "all": "",
    "azure_ml": "azureml",
    "clearml": "clearml",
    "codecarbon": "codecarbon",
    "comet_ml": "comet_ml",
    "dagshub": "dagshub",
    "dvclive": "dvclive",
    "flyte": "flytekit",
    "kubeflow": "",
    "mlflow": "mlflow",
    "neptune": "neptune",
    "none": "",
    "swanlab": "swanlab",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}


def check_values(values: Mapping[str, Any]):
    """Refuse values of which torch is not needed to know that no run can use them.

    Args:
        values: field -> value of those that are set, each of its field's type.

    Raises:
        ValueError: with the field and the value.
    """
    check_bounds(values)
    check_finite(values)
    layers = str(values.get("lens_layers", "auto"))
    check_lens_layers(layers)
    settled_pair_weights(values.get("lens_pair_weights"), layers)
    check_schedule(values.get("lens_weight_schedule", "constant"))
    if values.get("deepspeed") and find_spec("deepspeed") is None:
        raise ValueError("deepspeed is not installed: pip install deepspeed, or leave it out")
    if values.get("dataset_streaming") or values.get("streaming"):
        check_stream_settings(values)
    check_cross_tokenizer(values.get("cross_tokenizer"))
    check_save_dtype(values.get("save_dtype", "auto"))
    check_teachers(values)
    check_on_policy(values)
    check_named_teacher(values)


def check_files(values: Mapping[str, Any]):
    """Refuse data, models and folders that are not there, or cannot be written.

    Args:
        values: as ``check_values``.

    Raises:
        ValueError: with the file or folder; also fields that contradict each other.
        OSError: an output_dir that cannot be written.
    """
    check_sources(values)
    for name in ("train_file", "eval_file"):
        if values.get(name):
            list(data_files(values[name], warn=False))
    for role, field in _MODELS.items():
        if (name := values.get(field)) is not None:
            _check_model(f"the {role} {name!r}", name, field, values)
    for who, field in (("student", ""), ("teacher", "teacher_")):
        if (name := values.get(f"{field}tokenizer_name_or_path")) is not None:
            what = f"the tokenizer of the {who} {name!r}"
            check_folder_of(what, name)
            check_hub_of(what, name, f"; it is named by {field}tokenizer_name_or_path")
    check_folders(values["output_dir"], values.get("teacher_cache"))
    for number, entry in enumerate(values.get("teachers") or (), 1):
        if entry.get("model") is not None:
            what = f"entry {number} of teachers {entry['model']!r}"
            _check_model(what, entry["model"], "teachers", values)
        elif entry.get("cache") is None:
            raise ValueError(f"entry {number} of teachers needs a model or a cache")
        check_folders(values["output_dir"], entry.get("cache"))


def check_server(values: Mapping[str, Any]):
    """Refuse a ``teacher_server`` that does not answer.

    Raises:
        ValueError: no such model there, or a key that it refuses.
        OSError: it does not answer.
        ImportError: openai is not installed.
    """
    if (server := values.get("teacher_server")) is not None:
        check_reachable(server, values.get("teacher_server_model"), key_variable=KEY)


def check_cache(values: Mapping[str, Any]):
    """Refuse to write a teacher cache without a folder or a teacher.

    Raises:
        ValueError: with the field that is missing.
    """
    if values.get("teachers"):
        raise ValueError(
            "distilllens cache writes the cache of one teacher; those that the entries of teachers "
            "name are written by distilllens train, before its first step"
        )
    if values.get("teacher_server"):
        raise ValueError(
            "a cache holds hidden states, and a server returns none: leave teacher_server out"
        )
    for name in ("teacher_cache", "teacher_model_name_or_path"):
        if not values.get(name):
            raise ValueError(f"distilllens cache needs {name}")


def check_sources(values: Mapping[str, Any]):
    """Refuse data that are not named exactly once.

    Raises:
        ValueError: no data, or fields that contradict each other.
    """
    for name in ("train_file", "eval_file"):
        if values.get(name) == []:
            raise ValueError(f"{name} is empty; give it a value, or leave it out")
    named = [n for n in ("train_file", "dataset_name", "datasets") if values.get(n) is not None]
    if len(named) != 1:
        raise ValueError(
            "name the training data by either train_file or dataset_name, or a mixture by datasets"
            + (f", not by {' and '.join(named)}" if named else "")
        )
    if values.get("datasets") is not None:
        sources_of(values["datasets"])
    evaluated = {
        "eval_file": ("train_file", "datasets"),
        "dataset_test_split": ("dataset_name",),
        "test_split_size": ("datasets",),
    }
    ways = [name for name in evaluated if values.get(name) is not None]
    for name in ways:
        if named[0] not in evaluated[name]:
            others = [other for other, places in evaluated.items() if named[0] in places]
            raise ValueError(
                f"{name} goes with {' or '.join(evaluated[name])}; with {named[0]}, set "
                f"{' or '.join(others)}"
            )
    if len(ways) > 1:
        raise ValueError(f"set {' or '.join(ways)}, not both")
    _check_streaming(values)


def _check_streaming(values):
    is_streamed = values.get("dataset_streaming") or values.get("streaming")
    if (size := values.get("test_split_size")) is not None:
        if not size > 0 or (size >= 1 and size != int(size)):
            raise ValueError(
                f"test_split_size must be a share below 1 or a whole number of rows, got {size!r}"
            )
        if is_streamed:
            raise ValueError(
                "test_split_size is drawn from all rows, which a stream does not know; set "
                "eval_file"
            )


def _check_model(what, name, field, values):
    """Refuse a folder that is not there, or holds no model; a hub id is left to the hub."""
    check_folder_of(what, name)
    if "cache_dir" not in (values.get("teacher_model_init_kwargs") or {}):
        check_hub_of(what, name, f"; it is named by {field}")
    folder = Path(name)
    is_adapter = (folder / "adapter_config.json").is_file()
    if folder.is_dir() and not is_adapter and (problem := missing_in(folder, "config.json")):
        raise ValueError(f"cannot load {what}: {problem}")


def check_loggers(report_to: str | list[str] | None, *, has_tensorboard: bool | None = None):
    """Refuse to report to a library that is not installed, or to one that is misspelt.

    Args:
        has_tensorboard: whether it is installed; by default, it is looked for.

    Raises:
        ValueError: with how to install it, or with the name that was probably meant.
    """
    if has_tensorboard is None:
        has_tensorboard = any(find_spec(name) for name in ("tensorboard", "tensorboardX"))
    for name in report_to if isinstance(report_to, list) else [report_to]:
        package = _LOGGERS.get(name)
        if name is not None and package is None and (hint := did_you_mean(name, _LOGGERS)):
            raise ValueError(f"report_to {name!r} is not known{hint}")
        found = has_tensorboard if name == "tensorboard" else package and find_spec(package)
        if package and not found:
            extra = "'distilllens[tensorboard]'" if name == "tensorboard" else package
            raise ValueError(
                f"report_to {name} needs {package}, which is not installed: pip install {extra}, "
                "or set report_to: none"
            )


def check_folders(output_dir: str, teacher_cache: str | None):
    """Refuse an output_dir that cannot be written, or that would hold the teacher cache.

    Raises:
        ValueError, OSError: with the folder.
    """
    folder = Path(output_dir)
    check_folder("output_dir", folder)
    # transformers would write through them, into somebody's folder or file.
    for path in [*folder.glob("checkpoint-*"), folder / "trainer_state.json"]:
        if path.is_symlink():
            raise ValueError(
                f"output_dir {folder}: {path.name} is a symbolic link, through which nothing is "
                "written; move it away"
            )
    if teacher_cache is None:
        return
    if Path(teacher_cache).is_file():
        raise ValueError(f"teacher_cache {teacher_cache} is a file; name a folder")
    cache, output = Path(teacher_cache).resolve(), folder.resolve()
    if output in (cache, *cache.parents):
        raise ValueError(
            f"teacher_cache {teacher_cache} lies in output_dir {output_dir}, which must "
            "hold nothing but the run; name another folder"
        )
