"""A run's folder: which recipe it belongs to, and where to go on."""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from pathlib import Path

from distilllens.train.checkpoint import last_whole, write_atomically

RUN_FILE = "run.json"
# Fields that change what is shown or kept, not what is learned: a run may go on under new ones.
_FREE = {
    "config",
    "dataset_num_proc",
    "disable_tqdm",
    "do_eval",
    "do_train",
    "output_dir",
    "overwrite_output_dir",
    "project",
    "push_to_hub",
    "report_to",
    "resume_from_checkpoint",
    "run_name",
    "trackio_space_id",
}
_FREE_PREFIXES = ("dataloader_num", "dataloader_p", "eval_", "hub_", "log_", "logging_", "per_device_eval_", "save_")


def recipe_identity(given: dict, files: list[str], models: dict, num_processes: int) -> dict:
    """What makes two runs the same: fields set, the data's bytes, the models' shapes, processes.

    Args:
        given: field -> value, as set in the recipe or by a flag.
        files: paths of the data files.
        models: role -> configuration of the model as a dict.
        num_processes: each has a batch of its own, so another number takes other steps.
    """
    fields = {
        name: value
        for name, value in sorted(given.items())
        if name not in _FREE and not name.startswith(_FREE_PREFIXES)
    }
    fields["number of processes"] = num_processes
    # Through JSON, so that what was read back compares equal to what is compared with it.
    return json.loads(
        json.dumps(
            {
                "fields": fields,
                "data": {str(file): _sha256(file) for file in files},
                "models": {role: _fingerprint(config) for role, config in models.items()},
            },
            default=str,
        )
    )


def resume_point(output_dir: str | Path, identity: dict) -> Path | None:
    """The checkpoint from which the run in ``output_dir`` goes on; None for the beginning.

    Changes nothing.

    Raises:
        ValueError: the folder is a file, holds a run of another recipe, or files that are no run.
    """
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir {folder} is a file; name a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return None
    try:
        before = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))["recipe"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"output_dir {folder} is not empty and holds no run of distilllens; "
            "choose another folder"
        ) from None
    difference = _first_difference(before, identity)
    if difference:
        raise ValueError(
            f"output_dir {folder} holds a run of another recipe: {difference}; "
            "choose another folder, or go back to the recipe to resume"
        )
    return last_whole(folder)


def is_finished(output_dir: str | Path) -> bool:
    """True when the run in ``output_dir`` has saved its final model."""
    try:
        text = (Path(output_dir) / RUN_FILE).read_text(encoding="utf-8")
        return json.loads(text).get("finished") is True
    except (OSError, ValueError):
        return False


def write_run(output_dir: str | Path, identity: dict, finished: bool = False, **more):
    """Note the recipe in the run's folder, making the folder."""
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    record = {"recipe": identity, "finished": finished, **more}
    write_atomically(folder / RUN_FILE, json.dumps(record, indent=1) + "\n")


@contextmanager
def unmade_on_failure(output_dir: str | Path):
    """Take away the empty folders that a failing block has made: transformers makes them early."""
    folder = Path(output_dir).absolute()
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        for path in missing:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise


def check_checkpoint(path: str | Path, config: dict):
    """Refuse to resume from a checkpoint of another model.

    Raises:
        ValueError: no configuration there, or the first entry that differs.
    """
    file = Path(path) / "config.json"
    if not file.exists():
        file = Path(path) / "adapter_config.json"
        if file.exists():
            return  # an adapter: PEFT compares the names and shapes of its weights itself
        raise ValueError(f"resume_from_checkpoint {path} is no checkpoint: it has no config.json")
    there = _shape(json.loads(file.read_text(encoding="utf-8")))
    here = _shape(config)
    for key in sorted(there.keys() & here.keys()):
        if there[key] != here[key]:
            raise ValueError(
                f"resume_from_checkpoint {path} is a checkpoint of another model: its {key} is "
                f"{there[key]!r}, the student's is {here[key]!r}"
            )


def _first_difference(before, now):
    for part in ("fields", "data", "models"):
        ours, theirs = now.get(part, {}), before.get(part, {})
        for key in sorted(ours.keys() | theirs.keys()):
            if ours.get(key) != theirs.get(key):
                what = {"fields": key, "data": f"data file {key}", "models": f"the {key} model"}[
                    part
                ]
                return f"{what} was {_say(theirs.get(key))} and is now {_say(ours.get(key))}"
    return None


def _say(value):
    text = "not set" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _sha256(file):
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _shape(config):
    """The entries of a model's configuration that its weights' shapes follow from."""
    return {
        key: value
        for key, value in config.items()
        if key == "model_type" or (isinstance(value, int) and not isinstance(value, bool))
        if not key.endswith("token_id")
    }


def _fingerprint(config):
    text = json.dumps(_shape(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
