"""Training from a teacher cache is training with the teacher."""

import json
import math

import pytest
import torch
import toys
from safetensors.torch import load_file, save_file

from distilllens import LogitLens, files
from distilllens.stored import DamagedFile
from distilllens.targets import Targets
from distilllens.teacher import LiveTeacher, cache, manifest, shards, store

TOLERANCE = 1e-6  # padding changes the shapes of products; float32 rounding is 1e-7 here


def trained(folder, **kwargs):
    trainer = toys.trainer(folder / "out", **kwargs)
    trainer.train()
    return toys.weights(trainer.model), trainer.state.log_history


def filled(folder, **kwargs):
    """A trainer whose teacher cache holds all of its documents."""
    trainer = toys.trainer(folder, **kwargs)
    trainer.fill_teacher_cache()
    return trainer


def bf16_teacher():
    return toys.llama(4, 24, seed=1).bfloat16()


def wide_gpt2():
    return toys.gpt2(4, 24, vocab=29, seed=1)


SETTINGS = {
    "padded": {},
    "two epochs": {"max_steps": 6},
    "accumulated": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "padding-free": {"padding_free": True, "max_length": None},
    "packed": {"packing": True, "per_device_train_batch_size": 1, "max_steps": 1},
    "wrapped": {"packing": True, "packing_strategy": "wrapped", "max_length": 16},
    "raw states": {"lens_norm": False},
    "last depth": {"lens_layers": "1:2,3:4"},
    "plain KD": {"lens_weight": 0.0},
    "plain text": {"data": toys.texts},
    "lora": {"peft_config": toys.lora},
    "more words, LayerNorm": {"teacher": wide_gpt2},
    "bf16 teacher": {"teacher": bf16_teacher},
    "autocast": {"bf16": True},
    "sampled": {**toys.SAMPLED, "lens_layers": "1:1,2:3"},
    "drawn by entropy": toys.FORMS["drawn by entropy"],
    "exits": toys.FORMS["exits"],
    "features": {**toys.FORMS["features"], "lens_norm": False, "lens_weight": 0.0},
    "features at the last depth": {
        "feature_weight": 0.1,
        "lens_norm": False,
        "lens_layers": "1:4,2:4",
        "lens_pair_fraction": 0.5,
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_training_from_a_cache_is_training_with_the_teacher(tmp_path, name):
    """Weights and logged terms are the same; the second run has no teacher at all."""
    settings = {k: v() if callable(v) else v for k, v in SETTINGS[name].items()}
    precise = name not in ("bf16 teacher", "autocast")
    weights, log = trained(tmp_path, **settings)
    folder = str(tmp_path / "cache")
    written, _ = trained(tmp_path, **settings, teacher_cache=folder)
    settings["teacher"] = None
    read, read_log = trained(tmp_path, **settings, teacher_cache=folder)
    assert toys.drift(written, read) == 0
    # bf16 rounds at 2^-8, and the shapes of padded batches differ.
    assert toys.drift(weights, read) < (TOLERANCE if precise else 5e-3)
    for a, b in zip(log[:-1], read_log[:-1], strict=True):
        assert a.keys() == b.keys()
        for key in a:
            if "loss" in key or "entropy" in key:
                assert math.isclose(a[key], b[key], rel_tol=1e-5 if precise else 2e-2), key


@pytest.mark.parametrize("teacher", [lambda: toys.llama(4, 24, seed=1), bf16_teacher, wide_gpt2])
def test_equal_shapes_are_bit_equal(tmp_path, teacher):
    """One row a batch: the teacher runs at the shapes of training, and every bit is the same."""
    one = {"per_device_train_batch_size": 1, "max_steps": 8}
    live, log = trained(tmp_path, **one, teacher=teacher())
    folder = str(tmp_path / "cache")
    cached, cached_log = trained(tmp_path, **one, teacher=teacher(), teacher_cache=folder)
    assert toys.drift(live, cached) == 0
    assert [row.get("loss") for row in log] == [row.get("loss") for row in cached_log]


def test_packing_reads_what_padding_wrote(tmp_path):
    """Documents are found by their tokens: written padded, read packed, shuffled anew."""
    folder = str(tmp_path / "cache")
    trained(tmp_path, teacher_cache=folder)
    packed = {"packing": True, "per_device_train_batch_size": 1, "seed": 7}
    live, _ = trained(tmp_path, **packed)
    cached, _ = trained(tmp_path, **packed, teacher=None, teacher_cache=folder)
    assert toys.drift(live, cached) < TOLERANCE


def test_evaluation_reads_the_cache(tmp_path):
    """Evaluation data are written too, and every term is measured from there."""
    data, folder = toys.dataset(5, seed=3), str(tmp_path / "cache")
    live = toys.trainer(tmp_path / "a", eval_dataset=data).evaluate()
    settings = {"teacher_cache": folder, "eval_dataset": data}
    written = filled(tmp_path / "b", **settings).evaluate()
    read = filled(tmp_path / "c", teacher=None, **settings).evaluate()
    terms = [key for key in live if "loss" in key or "entropy" in key]
    assert len(terms) == 7
    for key in terms:
        assert math.isclose(live[key], read[key], rel_tol=1e-6), key
        assert written[key] == read[key]


def test_new_documents_are_added_by_a_teacher_and_missed_without(tmp_path):
    """A complete cache grows where a teacher is named; without one the difference is said."""
    folder = str(tmp_path / "cache")
    trainer = filled(tmp_path / "out", teacher_cache=folder)
    before = trainer.teacher.num_documents
    more = {"data": toys.dataset(12), "teacher_cache": folder}
    with pytest.raises(ValueError, match=r"lacks 4 documents of this run, .* other data"):
        filled(tmp_path / "out", teacher=None, **more)
    assert filled(tmp_path / "out", **more).teacher.num_documents == before + 4
    filled(tmp_path / "out", teacher=None, **more)
    with pytest.raises(ValueError, match="max_length was 64 and is now 4"):
        filled(tmp_path / "out", teacher=None, teacher_cache=folder, max_length=4)


def test_the_teacher_runs_once_for_each_document(tmp_path, monkeypatch):
    """Writing runs it, a complete cache does not, and a repeated document is stored once."""
    calls = []
    read = LiveTeacher.read

    def counted(self, *args, targets, **kwargs):
        calls.append(len(targets.mask))
        return read(self, *args, targets=targets, **kwargs)

    monkeypatch.setattr(LiveTeacher, "read", counted)
    data = toys.dataset(8)
    data = data.select([*range(8), 0, 1])
    folder = str(tmp_path / "cache")
    written = filled(tmp_path / "out", data=data, teacher_cache=folder)
    assert sum(calls) == 1 + 8  # one row to learn width and dtype, then each document
    assert written.teacher.num_documents == 8
    calls.clear()
    again = filled(tmp_path / "out", data=data, teacher_cache=folder)
    again.train()
    assert calls == []


class Killed(BaseException):
    """Nothing of ours catches it, as nothing survives SIGKILL."""


@pytest.mark.parametrize("torn", [False, True])
def test_a_killed_writer_goes_on(tmp_path, monkeypatch, torn):
    """Killed before any of its files has its name, it goes on to the same bytes.

    Until then it never looks complete.
    """
    monkeypatch.setattr(cache, "SHARD_BYTES", 500)
    settle = files.settle
    reference = str(tmp_path / "whole")
    filled(tmp_path / "out", teacher_cache=reference)
    names = [path.name for path in (tmp_path / "whole").iterdir() if path.name != store.LOCK]
    assert len(names) > 5
    for at in range(len(names)):
        folder, left = tmp_path / f"killed-{at}", [at]

        def dying(part, path, left=left):
            if left[0] == 0:
                if torn:
                    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
                raise Killed
            left[0] -= 1
            settle(part, path)

        with monkeypatch.context() as killing, pytest.raises(Killed):
            killing.setattr(shards, "settle", dying)  # of tensors
            killing.setattr(files, "settle", dying)  # of JSON
            filled(tmp_path / "out", teacher_cache=str(folder))
        assert not (folder / store.MARK).exists()
        with pytest.raises(ValueError, match=r"does not exist|holds no teacher|is not complete"):
            filled(tmp_path / "out", teacher=None, teacher_cache=str(folder))
        filled(tmp_path / "out", teacher_cache=str(folder))
        assert contents(folder) == contents(tmp_path / "whole")


def test_int8_is_near_and_says_how_near(tmp_path):
    """The loss moves by little, the files shrink, and the error is in the mark."""
    exact, small = tmp_path / "exact", tmp_path / "int8"
    _, log = trained(tmp_path, teacher_cache=str(exact))
    _, rough_log = trained(tmp_path, teacher_cache=str(small), teacher_cache_dtype="int8")
    assert math.isclose(log[0]["loss"], rough_log[0]["loss"], rel_tol=2e-2)
    assert log[0]["loss"] != rough_log[0]["loss"]
    error = json.loads((small / store.MARK).read_text())["int8_error"]
    assert set(error) == {"1", "3", "output"}
    assert all(0 < value < 1e-2 for value in error.values())
    with pytest.raises(ValueError, match="stored was 'int8' and is now 'auto'"):
        trained(tmp_path, teacher=None, teacher_cache=str(small))


WRONG = {
    "teacher": ({"teacher": lambda: toys.llama(4, 24, seed=2)}, "teacher was"),
    "depths": ({"lens_layers": "1:2"}, r"depths is \[1, 3\], and depths \[2\] are needed"),
    "raw": ({"lens_norm": False}, "its states are normed .* and raw"),
    "precision": ({"bf16": True}, "precision was 'no' and is now 'bf16'"),
    "int8": ({"teacher_cache_dtype": "int8"}, "stored was 'auto' and is now 'int8'"),
    "dtype": ({"teacher": bf16_teacher}, "teacher was"),
}


@pytest.mark.parametrize("with_teacher", [True, False])
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_cache_says_which_entry_differs(tmp_path, name, with_teacher):
    """The entry, what it was and what it would have to be; the cache is as it was."""
    changes, message = WRONG[name]
    changes = {k: v() if callable(v) else v for k, v in changes.items()}
    if not with_teacher:
        if "teacher" in changes:
            pytest.skip("without a teacher there is none that could differ")
        changes["teacher"] = None
    folder = tmp_path / "cache"
    filled(tmp_path / "out", teacher_cache=str(folder))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=message):
        filled(tmp_path / "out", teacher_cache=str(folder), **changes)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_another_tokenizer_is_another_cache(tmp_path, monkeypatch):
    """The same ids for other words."""
    folder = str(tmp_path / "cache")
    filled(tmp_path / "out", teacher_cache=folder)
    words = toys.WORDS
    swapped = toys.tokenizer([*words[1:], words[0]])
    monkeypatch.setattr(toys, "tokenizer", lambda: swapped)
    with pytest.raises(ValueError, match="tokenizer was"):
        filled(tmp_path / "out", teacher=None, teacher_cache=folder)


def saved(folder, model):
    model.save_pretrained(folder)
    toys.tokenizer().save_pretrained(folder)
    return str(folder)


def test_a_cache_of_a_model_object_is_not_taken_for_a_named_teacher(tmp_path):
    """They cannot be compared without loading; the object, or no teacher at all, is."""
    folder, name = str(tmp_path / "cache"), saved(tmp_path / "t", toys.llama(4, 24, seed=1))
    filled(tmp_path / "out", teacher_cache=folder)
    with pytest.raises(ValueError, match="written by a model object, which cannot be compared"):
        named(tmp_path, name, folder)
    filled(tmp_path / "out", teacher=None, teacher_cache=folder)


def named(tmp_path, name, folder, **kwargs):
    """A trainer whose teacher is a name."""
    args = {"teacher_model_name_or_path": name, "teacher_cache": folder}
    return filled(tmp_path / "out", teacher=None, **args, **kwargs)


def test_a_teacher_that_changed_in_place_is_noticed(tmp_path):
    """One number of one weight in the middle of the file, or one setting beside the weights."""
    model = toys.llama(4, 24, seed=1)
    folder, name = str(tmp_path / "cache"), saved(tmp_path / "t", model)
    named(tmp_path, name, folder)
    named(tmp_path, str(tmp_path / "t" / ".." / "t"), folder)  # the same folder, said otherwise
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[3, 3] += 1
    saved(tmp_path / "t", model)
    with pytest.raises(ValueError, match="teacher_files was"):
        named(tmp_path, name, folder)
    settings = toys.llama(4, 24, seed=1)
    settings.config.rms_norm_eps = 1e-3
    saved(tmp_path / "t", settings)
    with pytest.raises(ValueError, match="teacher_files was"):
        named(tmp_path, name, folder)
    saved(tmp_path / "t", toys.llama(4, 24, seed=1))
    named(tmp_path, name, folder)


def test_an_object_that_differs_in_a_setting_is_another_teacher(tmp_path):
    """Equal weights do not make equal states."""
    folder, teacher = str(tmp_path / "cache"), toys.llama(4, 24, seed=1)
    filled(tmp_path / "out", teacher_cache=folder)
    teacher.config.rms_norm_eps = 1e-3
    with pytest.raises(ValueError, match="teacher was"):
        filled(tmp_path / "out", teacher=teacher, teacher_cache=folder)


def test_an_object_that_adds_to_a_named_cache_keeps_its_name(tmp_path):
    """Documents added by an equal model leave the cache comparable with the name."""
    folder, name = str(tmp_path / "cache"), saved(tmp_path / "t", toys.llama(4, 24, seed=1))
    named(tmp_path, name, folder)
    filled(tmp_path / "out", data=toys.dataset(12), teacher_cache=folder)
    assert named(tmp_path, name, folder).teacher.manifest.teacher_name == name


def test_a_token_never_reaches_the_manifest(tmp_path):
    """What finds a model is not what it is."""
    folder, name = tmp_path / "cache", saved(tmp_path / "t", toys.llama(4, 24, seed=1))
    hidden = {"token": "hf_secret", "local_files_only": True}
    named(tmp_path, name, str(folder), teacher_model_init_kwargs=hidden)
    assert "hf_secret" not in (folder / manifest.MANIFEST).read_text()
    named(tmp_path, name, str(folder))


def test_fewer_pairs_may_add_documents(tmp_path):
    """A cache of two pairs serves one of them, and grows at all its depths."""
    folder = str(tmp_path / "cache")
    filled(tmp_path / "out", teacher_cache=folder)
    fewer = {"lens_layers": "1:1", "data": toys.dataset(12), "teacher_cache": folder}
    assert filled(tmp_path / "out", **fewer).teacher.manifest.depths == [1, 3]
    assert filled(tmp_path / "out", **fewer, lens_weight=0.0).teacher.num_documents == 12
    last = fewer | {"lens_layers": "1:3,2:4", "data": toys.dataset(14)}  # 4 is the final state
    assert filled(tmp_path / "out", **last).teacher.manifest.depths == [1, 3]


def test_two_writers_do_not_meet(tmp_path):
    """A second run is told to wait; the lock of one that has gone is no hindrance."""
    folder = tmp_path / "cache"
    with store.locked(folder), pytest.raises(ValueError, match="being written by another run"):
        filled(tmp_path / "out", teacher_cache=str(folder))
    filled(tmp_path / "out", teacher_cache=str(folder))


def flipped(path, at=-1):
    """Change one bit of a file's byte."""
    content = bytearray(path.read_bytes())
    content[at] ^= 0x40
    path.write_bytes(content)


def cut(path):
    """Take eight bytes off a file."""
    path.write_bytes(path.read_bytes()[:-8])


def contents(folder):
    """Name -> bytes of every file."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# What happens to which file of a complete cache.
DAMAGE = {
    "a shard is cut": ("shard-*", cut),
    "a shard's keys change": ("shard-*", lambda path: flipped(path, -1)),
    "a shard's header changes": ("shard-*", lambda path: flipped(path, 3)),
    "the head changes": (store.HEAD, flipped),
    "the head is gone": (store.HEAD, lambda path: path.unlink()),
    "the mark is empty": (store.MARK, lambda path: path.write_text("{}")),
    "the mark names no shard": (store.MARK, lambda path: path.write_text('{"shards": {}}')),
    "the mark is torn": (store.MARK, cut),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused_without_a_teacher_and_mended_with_one(tmp_path, name):
    """Every byte of the mended cache is that of the undamaged one."""
    pattern, damage = DAMAGE[name]
    folder = tmp_path / "cache"
    filled(tmp_path / "out", teacher_cache=str(folder))
    before = contents(folder)
    damage(next(folder.glob(pattern)))
    with pytest.raises(ValueError, match=r"is not complete: .*; run distilllens cache"):
        filled(tmp_path / "out", teacher=None, teacher_cache=str(folder))
    filled(tmp_path / "out", teacher_cache=str(folder))
    assert contents(folder) == before


@pytest.mark.parametrize("kind", ["auto", "int8"])
def test_a_changed_state_stops_the_run_and_is_written_again(tmp_path, monkeypatch, caplog, kind):
    """Training names shard and document; a writer that adds documents writes both shards again."""
    monkeypatch.setattr(cache, "SHARD_BYTES", 500)
    folder = tmp_path / "cache"
    settings = {"teacher_cache": str(folder), "teacher_cache_dtype": kind}
    undamaged, _ = trained(tmp_path, **settings)
    before = contents(folder)
    damaged = shards.shard_files(folder)[:2]
    for path in damaged:
        states = load_file(path)["states"][:1].view(torch.uint8).numpy().tobytes()
        flipped(path, before[path.name].index(states) + 7)
    with pytest.raises(
        DamagedFile, match=r"shard-\w+.safetensors: the states of document \d+ have"
    ):
        trained(tmp_path, teacher=None, **settings)
    more = settings | {"data": toys.dataset(12)}
    assert filled(tmp_path / "out", **more).teacher.num_documents == 12
    assert "damaged shards are written again, 2 in all" in caplog.text
    kept = before.keys() - {store.MARK, *(path.name for path in damaged)}
    assert len(kept) > 4 and all(contents(folder)[name] == before[name] for name in kept)
    again, _ = trained(tmp_path, teacher=None, **settings)
    assert toys.drift(undamaged, again) < TOLERANCE


@pytest.mark.parametrize("damage", [cut, flipped, lambda path: path.write_text("{}")])
def test_a_damaged_manifest_is_refused_with_and_without_a_teacher(tmp_path, damage):
    """Nothing else says which teacher the states are of: nothing is read, written or deleted."""
    folder = tmp_path / "cache"
    filled(tmp_path / "out", teacher_cache=str(folder))
    file = folder / manifest.MANIFEST
    damage(file)
    before = contents(folder)
    for teacher in (None, "default"):
        with pytest.raises(ValueError, match="name another folder and write the cache again"):
            filled(tmp_path / "out", teacher=teacher, teacher_cache=str(folder))
    assert contents(folder) == before


def test_a_changed_scale_is_refused(tmp_path):
    """A manifest that is readable and says something else of the head."""
    folder = tmp_path / "cache"
    filled(tmp_path / "out", teacher_cache=str(folder))
    file = folder / manifest.MANIFEST
    file.write_text(file.read_text().replace('"scale": 1.0', '"scale": 1.5'))
    for teacher in (None, "default"):
        with pytest.raises(ValueError, match="was changed: its entries do not have the hash in it"):
            filled(tmp_path / "out", teacher=teacher, teacher_cache=str(folder))


@pytest.mark.parametrize("kind", ["auto", "int8"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_states_that_are_not_finite_are_not_written(tmp_path, monkeypatch, kind, number):
    """Depth, number and document are named; the mended teacher goes on from what was written."""
    monkeypatch.setattr(cache, "SHARD_BYTES", 500)
    read, calls = LiveTeacher.read, []

    def broken(self, *args, **kwargs):
        states, head = read(self, *args, **kwargs)
        calls.append(1)
        if len(calls) == 3:  # the first gives width and dtype
            states[3][1, 5] = number
        return states, head

    folder = tmp_path / "cache"
    settings = {"teacher_cache": str(folder), "teacher_cache_dtype": kind}
    with monkeypatch.context() as breaking:
        breaking.setattr(LiveTeacher, "read", broken)
        message = rf"states at depth 3 hold the number {number} in a document of \d+ tokens"
        with pytest.raises(ValueError, match=message):
            filled(tmp_path / "out", **settings)
    assert shards.shard_files(folder) and not (folder / store.MARK).exists()
    filled(tmp_path / "out", **settings)
    reference = tmp_path / "whole"
    filled(tmp_path / "out", **settings | {"teacher_cache": str(reference)})
    assert contents(folder) == contents(reference)


def test_a_cache_of_format_1_is_added_to(tmp_path, monkeypatch):
    """Its shards have no checksums, the new ones have; all are read, and the mark has hashes."""
    folder = tmp_path / "cache"
    filled(tmp_path / "out", teacher_cache=str(folder))
    (old,) = shards.shard_files(folder)
    tensors = load_file(old)
    del tensors["checksums"]
    save_file(tensors, old)
    file = folder / manifest.MANIFEST
    entries = json.loads(file.read_text()) | {"format": 1}
    del entries["sha256"]
    file.write_text(json.dumps(entries))
    (folder / store.MARK).write_text(json.dumps({"shards": {old.name: old.stat().st_size}}))
    unchanged = contents(folder)
    filled(tmp_path / "out", teacher=None, teacher_cache=str(folder))
    assert contents(folder) == unchanged
    more = {"data": toys.dataset(12), "teacher_cache": str(folder)}
    assert filled(tmp_path / "out", **more).teacher.num_documents == 12
    assert contents(folder)[old.name] == unchanged[old.name]
    filled(tmp_path / "out", teacher=None, **more)
    save_file(
        tensors | {"starts": tensors["starts"].clone().index_fill_(0, torch.tensor(1), 0)}, old
    )
    with pytest.raises(DamagedFile, match=f"{old.name}: its index is not the one"):
        filled(tmp_path / "out", teacher=None, **more)


def test_live_and_cached_draw_the_same_dropout(tmp_path):
    """Writing and reading a cache touch no random number of the student."""
    one = {"per_device_train_batch_size": 1, "max_steps": 8}
    runs = []
    for folder in (None, str(tmp_path / "cache"), str(tmp_path / "cache")):
        student = toys.gpt2(dropout=0.3)
        runs.append(trained(tmp_path, student=student, teacher_cache=folder, **one)[0])
    assert toys.drift(runs[0], runs[1]) == toys.drift(runs[0], runs[2]) == 0


@pytest.mark.parametrize("content", ["a file", "other files", "nothing"])
def test_a_folder_that_is_no_cache_is_left_alone(tmp_path, content):
    """A file, a folder of something else, an empty one: only the last may become a cache."""
    folder = tmp_path / "cache"
    if content == "a file":
        folder.write_text("mine")
    else:
        folder.mkdir()
        if content == "other files":
            (folder / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"is a file|holds no teacher cache"):
        filled(tmp_path / "out", teacher=None, teacher_cache=str(folder))
    if content == "nothing":
        filled(tmp_path / "out", teacher_cache=str(folder))
        return
    with pytest.raises(ValueError, match=r"is a file|thesis.txt is there"):
        filled(tmp_path / "out", teacher_cache=str(folder))


def test_a_full_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    """The need and what is free."""
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"cache needs \d+(\.\d+)? kB; its disk has 1 kB free"):
        filled(tmp_path / "out", teacher_cache=str(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_a_batch_of_nothing_reads_nothing(tmp_path):
    """No valid position: zero rows of the right width and dtype."""
    trainer = filled(tmp_path / "out", teacher_cache=str(tmp_path / "cache"))
    labels = torch.full((2, 3), -100)
    targets = Targets.of(labels)
    states, head = trainer.teacher.read([1, 3], normalize=True, targets=targets, input_ids=labels)
    assert [tuple(states[d].shape) for d in (1, 3)] == [(0, 24), (0, 24)]
    assert states.final.dtype == head.weight.dtype


def test_a_teacher_gathers_its_valid_positions():
    """A live teacher gives the states of ``read_states`` at the positions before a target."""
    from distilllens.lens import read_states

    lens = LogitLens(toys.llama(4, 24, seed=1).eval())
    ids = torch.randint(2, 20, (2, 6))
    labels = ids.masked_fill(torch.arange(6) < 3, -100)
    targets = Targets.of(labels)
    states, head = LiveTeacher(lens).read([2], normalize=True, targets=targets, input_ids=ids)
    whole = read_states(lens, [2], input_ids=ids)
    for ours, theirs in ((states[2], whole[2]), (states.final, whole.final)):
        assert torch.equal(ours, theirs[:, 2:5].reshape(-1, 24))
    assert head.weight is lens.head.weight
