"""A teacher with a device map trains a student like the plain teacher."""

import pytest
import toys
from safetensors.torch import load_file

from distilllens.data import to_dataset

ENDS = {name: "cpu" for name in ("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head")}
BLOCKS = {f"model.layers.{n}": ("disk" if n % 2 else "cpu") for n in range(4)}
MAPS = {
    "blocks": (True, ENDS | BLOCKS),
    "everything": (True, {"": "disk"}),
    "untied head": (False, ENDS | BLOCKS | {"model.norm": "disk", "lm_head": "disk"}),
    "one device": (True, "cpu"),
}


def trained(folder, settings, **more):
    """The student's weights after three steps with the teacher of a folder."""
    trainer = toys.trainer(
        folder / "out",
        teacher=None,
        teacher_model_name_or_path=str(folder / "teacher"),
        teacher_model_init_kwargs=settings,
        **more,
    )
    trainer.train()
    return toys.weights(trainer.model)


@pytest.fixture
def save(tmp_path):
    """Save a teacher, tied or not; returns the folder above it."""

    def saved(tied):
        toys.llama(4, 24, seed=1, tied=tied).save_pretrained(tmp_path / "teacher")
        toys.tokenizer().save_pretrained(tmp_path / "teacher")
        return tmp_path

    return saved


@pytest.mark.parametrize("form", ["plain", "features"])
@pytest.mark.parametrize("place", MAPS)
def test_offloaded_weights_change_nothing(save, place, form):
    """Bitwise: weights on the disk are fetched for each forward, those of the head for good."""
    tied, device_map = MAPS[place]
    folder = save(tied)
    more = {} if form == "plain" else {"feature_weight": 0.1}
    plain = trained(folder, {}, **more)
    offloaded = {"device_map": device_map, "offload_folder": str(folder / "offload")}
    assert toys.drift(plain, trained(folder, offloaded, **more)) == 0


def test_a_cache_is_filled_by_an_offloaded_teacher(save):
    """The same fingerprint and states as of the plain one."""
    folder, found = save(True), []
    offloaded = {"device_map": MAPS["blocks"][1], "offload_folder": str(folder / "offload")}
    for name, settings in (("plain", {}), ("offloaded", offloaded)):
        cache = folder / name
        trained(folder, settings, teacher_cache=str(cache), data=to_dataset(toys.examples(6)))
        tensors = {}
        for shard in sorted(cache.rglob("*.safetensors")):
            tensors |= {(shard.name, key): value for key, value in load_file(shard).items()}
        manifest = (cache / "manifest.json").read_text()
        found.append((manifest, tensors))
    (one, tensors), (other, others) = found
    assert one == other and tensors.keys() == others.keys() and tensors
    assert all((tensors[key] == others[key]).all() for key in tensors)
