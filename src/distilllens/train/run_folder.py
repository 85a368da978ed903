"""A run's folder: which recipe it belongs to, and where to resume."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from distilllens.files import is_part_of, sha256, write_json
from distilllens.joined_map import depths_in
from distilllens.marks import MARK, RUN_FILE, unreadable
from distilllens.masking import masked
from distilllens.stored import DamagedFile, read_stored
from distilllens.train.checkpoint import damage_of, last_whole
from distilllens.train.elastic import PROCESSES, StepRows, with_shape_of
from distilllens.train.recipe_difference import first_difference, keeps_best
from distilllens.train.run_lock import LOCK_FILE

# What begins the name of a pair of depths in the log.
_PAIR = "lens_loss/"
_SERVED = "teacher_server_model"
# What is written into a run's folder under a temporary name.
_WRITTEN = (RUN_FILE, "README.md", "report.html")


class _Recipe(TypedDict):
    fields: dict[str, Any]
    data: NotRequired[dict[str, Any]]
    models: NotRequired[dict[str, Any]]


class _Run(TypedDict):
    recipe: _Recipe
    finished: NotRequired[bool]
    id: NotRequired[str]


# Fields that change what is shown or kept, not what is learned: a run may resume with new values.
_FREE = {
    "config",
    "dataset_num_proc",
    "disable_tqdm",
    "do_eval",
    "do_train",
    "output_dir",
    "overwrite_output_dir",
    "project",
    "report",
    "push_to_hub",
    "report_to",
    "resume_from_checkpoint",
    "run_name",
    "trackio_space_id",
}
_FREE_PREFIXES = ("dataloader_", "eval_", "hub_", "log", "per_device_eval_", "save_")


def recipe_identity(
    given: dict, files: list[str], models: dict, num_processes: int, rows: dict | None = None
) -> dict:
    """What makes two runs the same: fields, data, models and the number of processes.

    Args:
        given: field -> value, as set in the recipe or by a flag.
        files: paths of the data files.
        models: role -> fingerprint of the model, and of the "tokenizer".
        rows: role -> fingerprint of the records of a data set by name, which is no file.
        num_processes: each process has its own batch, so another number changes the steps, unless
            the accumulation follows it (``train/elastic.py``).
    """
    # When the best checkpoint is kept, evaluation and saving decide which weights are final.
    free = ("dataloader_", "hub_", "log") if keeps_best(given) else _FREE_PREFIXES
    fields = {
        name: value
        for name, value in sorted(given.items())
        if name == "dataloader_drop_last" or (name not in _FREE and not name.startswith(free))
    }
    fields[PROCESSES] = num_processes
    # Through JSON, so that it compares equal to what was written and read.
    return json.loads(
        json.dumps(
            {
                "fields": masked(fields),
                "data": {str(file): sha256(file) for file in files},
                "models": models,
                **({"rows": rows} if rows else {}),
            },
            default=str,
        )
    )


def resume_point(output_dir: str | Path, identity: dict) -> Path | None:
    """The checkpoint from which the run in ``output_dir`` resumes; None to start from scratch.

    Nothing is changed.

    Raises:
        ValueError: a file, a folder with a run of another recipe or with other files.
    """
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir {folder} is a file; name a folder")
    # A run that was killed at its very beginning may have left a partial run.json.
    if not folder.exists() or all(map(_is_remains, folder.iterdir())):
        return None
    if not (folder / RUN_FILE).exists():
        raise ValueError(
            f"output_dir {folder} is not empty and holds no run of distilllens; "
            "choose another folder"
        )
    try:
        note = read_stored(folder / RUN_FILE, _Run)
    except DamagedFile as error:
        raise DamagedFile(
            f"{error}; so nobody knows the recipe of this run: to go on all the same, choose "
            "another output_dir and name the newest checkpoint by resume_from_checkpoint"
        ) from error
    identity = _with_shape_of(note["recipe"], identity)
    before = _with_teacher_of(note, _with_map_of(folder, note["recipe"], identity), identity)
    difference = first_difference(before, identity)
    if difference:
        raise ValueError(
            f"output_dir {folder} holds a run of another recipe: {difference}; "
            "choose another folder, or go back to the recipe to resume"
        )
    return last_whole(folder, run=note.get("id"))


def other_layer_map(checkpoint: str | Path, layer_map: str) -> str | None:
    """How the layer map of a checkpoint's run differs from another; None if not, or if unknown.

    The same recipe may give another map than the version that began the run.
    """
    folder = Path(checkpoint).parent
    pairs, is_whole = _noted_pairs(folder)
    now = set(layer_map.split(","))
    if pairs == now or (pairs < now and not is_whole):
        return None
    text = _map_in_words(pairs)
    return (
        f"{folder} holds a run with the layer map {text}, and its recipe now gives {layer_map}: "
        f'set lens_layers: "{text}" to go on as it began, or choose another folder'
    )


def other_served(checkpoint: str | Path, model: str) -> str | None:
    """As ``other_layer_map``, of the name of a teacher at its server."""
    folder = Path(checkpoint).parent
    if (noted := _run_json(folder).get(_SERVED)) in (None, model):
        return None
    return (
        f"{folder} holds a run whose teacher is {noted}, and teacher_server now gives {model}: "
        f"set teacher_server_model: {noted} to go on as it began, or choose another folder"
    )


def _noted_pairs(folder):
    """The pairs that a run was trained on, and whether those are all; older runs log them only."""
    if isinstance(noted := _run_json(folder).get("layer_map"), str):
        return set(noted.split(",")), True
    newest = last_whole(folder, contents=False)
    rows = _read_json(newest / "trainer_state.json").get("log_history") if newest else None
    names = {name for row in rows or () for name in row if name.startswith(_PAIR)}
    return {name.removeprefix(_PAIR) for name in names}, False


def _map_in_words(pairs):
    return ",".join(sorted(pairs, key=depths_in))


def _with_map_of(folder, before, now):
    """The recipe of a run with its layer map written out, if it is written so now."""
    asked = "".join(str(now.get("fields", {}).get("lens_layers", "")).split())
    if ":" not in asked or asked != _map_in_words(_noted_pairs(folder)[0]):
        return before
    return {**before, "fields": {**before["fields"], "lens_layers": asked}}


def _with_teacher_of(note, before, now):
    """The recipe of a run with the name that its teacher had at the server, if it is named now.

    If it is not, ``other_served`` compares, once the server has been asked.
    """
    fields, asked = before["fields"], now.get("fields", {}).get(_SERVED)
    if fields.get("teacher_server") is None:
        return before
    noted = note.get(_SERVED) or fields.get(_SERVED)
    return {**before, "fields": {**fields, _SERVED: asked and noted}}


def run_id(output_dir: str | Path) -> str | None:
    """What distinguishes the run in a folder from others; None for no run, or one of 0.1.0."""
    try:
        return read_stored(Path(output_dir) / RUN_FILE, _Run).get("id")
    except DamagedFile:
        return None


def other_recipe(output_dir: str | Path, identity: dict) -> str | None:
    """How the recipe of the run in a folder differs from another; None if not, or for no run."""
    try:
        note = read_stored(Path(output_dir) / RUN_FILE, _Run)
    except DamagedFile:
        return None
    identity = _with_shape_of(note["recipe"], identity)
    return first_difference(_with_teacher_of(note, note["recipe"], identity), identity)


def step_rows(output_dir: str | Path) -> StepRows | None:
    """How the run in a folder began to share out the rows of a step; None for no run."""
    try:
        recipe = read_stored(Path(output_dir) / RUN_FILE, _Run)["recipe"]
    except DamagedFile:
        return None
    return StepRows.of_fields(recipe["fields"])


def _with_shape_of(before, now):
    """A recipe, as the earlier one where it only shares out the rows of a step anew."""
    return {**now, "fields": with_shape_of(before["fields"], now["fields"])}


def is_finished(output_dir: str | Path) -> bool:
    """Whether the run in ``output_dir`` has saved its final model."""
    return _run_json(Path(output_dir)).get("finished") is True


def write_run(output_dir: str | Path, identity: dict, finished: bool = False, **more):
    """Write run.json, creating the folder; ``more`` is for the report.

    What a killed run left of files in its folder is removed.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if is_part_of(path, *_WRITTEN) and path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)
    with suppress(DamagedFile):
        identity = _with_shape_of(read_stored(folder / RUN_FILE, _Run)["recipe"], identity)
    # It stays while the recipe may be spelled anew at every resume.
    number = run_id(folder) or hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    record = {"recipe": identity, "finished": finished, "id": number, **more}
    write_json(folder / RUN_FILE, record)


def read_run(output_dir: str | Path) -> dict:
    """The contents of run.json: recipe, finished, command, and what the report needs.

    Raises:
        ValueError: the folder does not exist, or holds no run.
    """
    folder = Path(output_dir)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ValueError(f"{folder} {what}; name the output_dir of a run of distilllens train")
    try:
        return read_stored(folder / RUN_FILE, _Run)
    except DamagedFile as error:
        raise ValueError(
            f"{folder} holds no run of distilllens train: {error}; name the output_dir of one"
        ) from error


def read_state(output_dir: str | Path) -> tuple[Path, dict]:
    """The folder of a run's newest model, and the trainer's state in it.

    For a finished run, the final model; otherwise the newest complete checkpoint.

    Raises:
        ValueError: no complete checkpoint yet, or a state that cannot be read.
    """
    folder = Path(output_dir)
    where = folder if is_finished(folder) else last_whole(folder)
    if where is None:
        raise ValueError(f"{folder} holds a run without a whole checkpoint so far; wait for one")
    file = where / "trainer_state.json"
    state = _read_json(file)
    rows = state.get("log_history")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file} cannot be read: it is missing, incomplete or no trainer state")
    return where, state


def check_checkpoint(path: str | Path, config: dict):
    """Refuse to resume from a checkpoint of another model.

    Raises:
        ValueError: no complete checkpoint, or the first entry that differs.
    """
    folder = Path(path)
    if not (folder / "trainer_state.json").is_file():
        raise ValueError(
            f"resume_from_checkpoint {path} is no checkpoint: it has no trainer_state.json"
        )
    if (damage := _damage_of_named(folder)) is not None:
        raise ValueError(f"resume_from_checkpoint {path} is torn: {damage}")
    if (folder / "adapter_config.json").is_file():
        return  # an adapter: PEFT compares the names and shapes of its weights itself
    there, here = _shape(_read_json(folder / "config.json")), _shape(config)
    for key in sorted(there.keys() & here.keys()):
        if there[key] != here[key]:
            raise ValueError(
                f"resume_from_checkpoint {path} is a checkpoint of another model: its {key} is "
                f"{there[key]!r}, the student's is {here[key]!r}"
            )


def _damage_of_named(folder):
    """What is wrong with a checkpoint of ours, or of another trainer, which has no mark."""
    if (folder / MARK).exists():
        return damage_of(folder)
    for file in sorted(folder.iterdir()):
        if file.is_file() and (why := unreadable(file)) is not None:
            return f"{file.name} cannot be read: {why}"
    return None


def _is_remains(path):
    """Whether a file is what a run that was killed before its first step has left."""
    return path.name == LOCK_FILE or is_part_of(path, RUN_FILE)


def _run_json(folder):
    return _read_json(folder / RUN_FILE)


def _read_json(file):
    """The JSON object in a file; an empty one if there is none."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _shape(config):
    """The entries of a configuration that decide the shapes of the weights."""
    return {
        key: value
        for key, value in config.items()
        if key == "model_type" or (isinstance(value, int) and not isinstance(value, bool))
        if not key.endswith("token_id")
    }
