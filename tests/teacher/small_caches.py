"""A small cache of given rows, and what is wrong with it; no test in here."""

from dataclasses import replace
from hashlib import blake2b

import torch

from distilllens import Head
from distilllens.teacher import manifest, shards, store

MANIFEST = manifest.Manifest(
    teacher="t",
    tokenizer="k",
    num_layers=4,
    depths=[1, 3],
    normed=True,
    dtype="float32",
    stored="auto",
    width=5,
    precision="no",
    head={"scale": 2.0, "softcap": 30.0},
    teacher_name="somebody",
    teacher_files=None,
    data={"max_length": 64},
    library="0.1.0",
)


def key(number):
    """The key of a document."""
    return blake2b(str(number).encode(), digest_size=16).digest()


def documents(count=9):
    """Key -> rows ``[2, 3, 5]``."""
    torch.manual_seed(0)
    return {key(n): torch.randn(2, 3, 5) for n in range(count)}


def written(folder, rows, manifest_=MANIFEST, shard_bytes=200):
    """A complete cache of key -> rows, opened."""
    manifest.write_manifest(folder, manifest_)
    store.write_head(folder, Head(torch.ones(7, 5), torch.ones(7)))
    writer = shards.ShardWriter(folder, manifest_, shard_bytes)
    for name, states in rows.items():
        writer.add(name, states)
    writer.flush()
    store.write_mark(folder, manifest_)
    return opened(folder, manifest_)


def opened(folder, manifest_=MANIFEST):
    """Every shard of a folder, whatever the mark says."""
    return shards.Shards(folder, manifest_, {p.name: None for p in shards.shard_files(folder)})


def small(**changes):
    """The manifest with other entries."""
    return replace(MANIFEST, **changes)
