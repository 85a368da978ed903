"""Cut blocks out of a model: a student that is its teacher with some of the blocks only."""

from __future__ import annotations

import copy
import json
import math
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import nn
from transformers import GenerationConfig
from transformers.initialization import no_init_weights

from distilllens.errors import first_line
from distilllens.layer_map import Cut
from distilllens.lens.anatomy import Anatomy
from distilllens.lens.logit_lens import LogitLens
from distilllens.lens.probe import logits_of, probe_ids, undisturbed, without_cache
from distilllens.lens.stand_in import standing_in
from distilllens.lens.structure import same, with_first, worst

# The entry of config.json in which a cut model remembers its blocks; transformers keeps it.
_KEY = "distilllens_blocks"
# Entries of a configuration that depend on the places of its blocks, in any family.
_INDICES = ("mlp_only_layers", "moe_layers", "attn_layer_indices", "local_layer_ids")
_NUM_FIRST = ("first_k_dense_replace", "num_dense_layers", "max_window_layers")
_NUM_FIRST += ("moe_layer_start_index",)
_PERIODS = ("attn_layer", "expert_layer")  # with _period and _offset
# Lists that may by chance be as long as the model is deep.
_NO_BLOCKS = re.compile(r"architectures|.*tokens?(_ids?)?|.*words_ids|.*_limit")


def student_from_blocks(
    teacher: nn.Module, blocks: int | str | Iterable[int]
) -> tuple[nn.Module, list[tuple[int, int]]]:
    """``(model, depth pairs)``: the teacher with some of its blocks only, as a model of its own.

    Its logits equal those of the teacher's own forward in which each other block returns the stream
    that it was given. This is proved on a few tokens before the model is returned; so is that
    each block has the settings that it had. The configuration describes the cut and remembers the
    blocks: ``save_pretrained`` writes a folder of plain transformers, and ``lens_layers: auto``
    pairs the depths of the model and of what is trained from it with the teacher's.

    Args:
        teacher: a causal LM of transformers whose lens is "closed"; it stays as it is. Of a PEFT
            model, the adapter is merged.
        blocks: how many (6: evenly spread, with the first and the last), or which ([0, 3, 6] or
            "0,3,6").

    Returns:
        The model, in evaluation mode, on the teacher's device and in its dtypes, with weights of
        its own. For each depth k from 1 to its last, the pair of k and the teacher's depth after
        the same block.

    Raises:
        ValueError: blocks that the teacher does not have, or a teacher that cannot be cut exactly,
            and why.
    """
    if hasattr(teacher, "merge_and_unload"):
        teacher = copy.deepcopy(teacher).merge_and_unload()
    lens = LogitLens(teacher)
    model, anatomy, name = lens.model, lens.anatomy, type(lens.model).__name__
    cut = Cut.chosen(blocks, anatomy.num_layers)
    if (reason := _reason_against(lens)) is not None:
        raise ValueError(f"the blocks of {name} cannot be cut: {reason}")
    try:
        student = _built(model, cut_config(model.config, cut.blocks), anatomy.blocks_path, cut)
        _check_settings(anatomy, student, cut)
        _check_logits(model, anatomy, student, cut)
    except Exception as error:
        text = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise ValueError(f"{name} cannot be cut to its blocks {_listed(cut)}: {text}") from error
    return student, cut.pairs


def cut_config(config, blocks: int | str | Iterable[int]):
    """The configuration of a model with some of its blocks only; it remembers them.

    Raises:
        ValueError: blocks that the model does not have, or that no configuration describes.
    """
    text = config.get_text_config()
    layers = getattr(text, "num_hidden_layers", None)
    if not isinstance(layers, int) or layers < 1:
        raise ValueError("its configuration does not say how many blocks it has")
    cut = Cut.chosen(blocks, layers)
    # Through a file, as everybody will read it.
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.json"
        config.to_json_file(file)
        entries = inner = json.loads(file.read_text(encoding="utf-8"))
        if text is not config:
            part = next(key for key in config.sub_configs if getattr(config, key, None) is text)
            inner = entries.setdefault(part, {})
        inner |= _cut_entries(text.to_dict(), text, cut)
        entries[_KEY] = {"kept": list(cut.blocks), "of": cut.of}
        file.write_text(json.dumps(entries), encoding="utf-8")
        found = type(config).from_json_file(file)
    found.name_or_path = f"blocks {_listed(cut)} of {config.name_or_path or 'a model object'}"
    if found.get_text_config().num_hidden_layers != len(cut.blocks):
        raise ValueError("its configuration does not say how many blocks it has")
    return found


def cut_of(config) -> Cut | None:
    """The blocks that a model was cut to, as its configuration remembers; None for any other."""
    noted = getattr(config, _KEY, None)
    try:
        return Cut.chosen(noted["kept"], noted["of"])
    except (TypeError, KeyError, ValueError):
        return None


def _listed(cut):
    return ", ".join(map(str, cut.blocks))


def _reason_against(lens):
    """Why a model cannot be cut, whatever the blocks; None if nothing is known against it."""
    model, anatomy = lens.model, lens.anatomy
    if lens.kind == "encoder-decoder":
        return "it has an encoder, of whose blocks the configuration speaks too"
    if lens.mode != "closed":
        return (
            f"its lens is not closed (mode {lens.mode!r}), so its blocks may do more than it sees"
        )
    if getattr(model.config, "quantization_config", None) is not None:
        return "its weights are quantised; load it without quantisation"
    if any(hasattr(module, "get_base_layer") for module in model.modules()):
        return "it has an adapter; merge it into its base model first"
    layers = model.config.get_text_config().num_hidden_layers
    if layers != anatomy.num_layers:
        return f"its configuration counts {layers} blocks, and its forward has {anatomy.num_layers}"
    owner = {}
    for index, block in enumerate(anatomy.blocks):
        for parameter in block.parameters():
            other = owner.setdefault(id(parameter), index)
            if other != index:
                return f"its blocks {other} and {index} share weights"
    return None


def _cut_entries(entries: Mapping, config, cut: Cut) -> dict:
    """The entries of a configuration that change with its blocks."""
    kept, new = cut.blocks, {}
    for name, value in entries.items():
        if isinstance(value, list | tuple) and len(value) == cut.of and name not in _INDICES:
            new |= {} if _NO_BLOCKS.fullmatch(name) else {name: [value[block] for block in kept]}
        elif name in _INDICES and value is not None:
            new[name] = [place for place, block in enumerate(kept) if block in value]
        elif name in _NUM_FIRST and value is not None:
            new[name] = sum(block < value for block in kept)
    if entries.get("per_layer_config"):
        each = {str(index): value for index, value in entries["per_layer_config"].items()}
        own = {str(place): each[str(b)] for place, b in enumerate(kept) if str(b) in each}
        new["per_layer_config"] = {k: v for k, v in each.items() if not k.isdecimal()} | own
    if entries.get("decoder_sparse_step"):
        step, dense = entries["decoder_sparse_step"], entries.get("mlp_only_layers") or ()
        places = [p for p, block in enumerate(kept) if block in dense or (block + 1) % step]
        new |= {"decoder_sparse_step": 1, "mlp_only_layers": places}
    if entries.get("moe_layer_end_index", -1) >= 0:
        new["moe_layer_end_index"] = sum(b <= entries["moe_layer_end_index"] for b in kept) - 1
    if entries.get("attention_types"):  # of gpt_neo: [[kinds, repetitions], ...]
        kinds = [k for each, times in entries["attention_types"] for k in each * times]
        new["attention_types"] = [[[kinds[block]], 1] for block in kept]
    if entries.get("block_types"):  # of recurrent_gemma, repeated until they are enough
        kinds = entries["block_types"]
        new["block_types"] = [kinds[block % len(kinds)] for block in kept]
    for name in _PERIODS:
        if f"{name}_period" in entries:
            new |= _period(name, entries, cut)
    if "scale_depth" in entries:  # of MiniCPM, which divides it by the root of its depth
        new["scale_depth"] = entries["scale_depth"] * math.sqrt(len(kept) / cut.of)
    if "num_blocks" in entries:  # of xLSTM, beside the usual name
        new["num_blocks"] = len(kept)
    key = type(config).attribute_map.get("num_hidden_layers", "num_hidden_layers")
    return new | {key: len(kept)}


def _period(name, entries, cut):
    """The period and offset that describe which of the kept blocks are of a kind."""
    period, offset = entries[f"{name}_period"], entries[f"{name}_offset"]
    wanted = [block % period == offset for block in cut.blocks]
    length = len(wanted)
    for period, offset in ((p, o) for p in range(1, length + 2) for o in range(p)):
        if [place % period == offset for place in range(length)] == wanted:
            return {f"{name}_period": period, f"{name}_offset": offset}
    return {}  # the proof will say what does not fit


def _built(model, config, path, cut):
    """A model of a configuration, with copies of the weights of the blocks that stay."""
    copied = {n: t.detach().clone() for n, t in _renamed(model.state_dict(), path, cut).items()}
    before = torch.get_default_dtype()
    torch.set_default_dtype(model.dtype)
    try:
        with torch.random.fork_rng(devices=[]), no_init_weights():
            student = type(model)(config)
    finally:
        torch.set_default_dtype(before)
    wanted = student.state_dict()
    for name in {**copied, **wanted}:
        shapes = [list(s[name].shape) if name in s else "absent" for s in (copied, wanted)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"its configuration cannot describe them: {name} is {shapes[0]} in these blocks, "
                f"and {shapes[1]} in a model of their own"
            )
    student.load_state_dict(copied, assign=True)
    student.tie_weights()
    _copy_buffers(model, student, path, cut)
    student.generation_config = copy.deepcopy(model.generation_config)
    student.set_attn_implementation(model.config._attn_implementation)
    return student.to(model.device).eval()


def _renamed(tensors: Mapping, path, cut):
    """The tensors of a model by their names in the student, without those of dropped blocks."""
    places, found = {block: place for place, block in enumerate(cut.blocks)}, {}
    for name, tensor in tensors.items():
        match = re.match(rf"{re.escape(path)}\.(\d+)\.", name)
        if match is None:
            found[name] = tensor
        elif int(match[1]) in places:
            found[f"{path}.{places[int(match[1])]}.{name[match.end() :]}"] = tensor
    return found


def _copy_buffers(model, student, path, cut):
    """Give what is computed and not saved the teacher's precision: ``.to(bfloat16)`` changes it."""
    saved, theirs = student.state_dict().keys(), _renamed(dict(model.named_buffers()), path, cut)
    for name, buffer in list(student.named_buffers()):
        if name in saved or name not in theirs:
            continue
        parent, _, last = name.rpartition(".")
        if same(theirs[name], buffer.to(theirs[name].device)):
            module = student.get_submodule(parent)
            module.register_buffer(last, theirs[name].clone(), persistent=False)
        elif name.startswith(f"{path}."):
            raise ValueError(f"{name} is computed, and differs in the cut")


def _check_settings(anatomy: Anatomy, student, cut: Cut):
    """Refuse a student in which a module of a block is not set as it was in the teacher.

    A few tokens would not show, for example, another sliding window.
    """
    blocks = student.get_submodule(anatomy.blocks_path)
    for place, block in enumerate(cut.blocks):
        ours, theirs = (dict(b.named_modules()) for b in (blocks[place], anatomy.blocks[block]))
        for name in sorted(ours.keys() | theirs.keys()):
            both = [_settings(each.get(name)) for each in (ours, theirs)]
            for key in sorted(both[0].keys() | both[1].keys()):
                here, there = (each.get(key) for each in both)
                if not _same(here, there) and here != _cut_with(there, place, block, cut):
                    where = f"{name}.{key}".lstrip(".")
                    raise ValueError(
                        f"{where} of block {block} is {there!r}, and {here!r} in the cut"
                    )


def _cut_with(value, place, block, cut):
    """What a setting of a block becomes that is its place, or says something of all blocks."""
    if isinstance(value, tuple) and len(value) == cut.of:
        return tuple(value[each] for each in cut.blocks)
    return {block: place, cut.of: len(cut.blocks)}.get(value) if type(value) is int else value


def _same(here, there):
    is_float = isinstance(here, float) and isinstance(there, float)
    return math.isclose(here, there, rel_tol=1e-12) if is_float else here == there


def _settings(module):
    """What a module is and how it is set: its plain attributes."""
    if module is None:
        return {"type": None}
    found = {}
    for name, value in vars(module).items():
        value = tuple(value) if isinstance(value, list) else value
        parts = value if isinstance(value, tuple) else (value,)
        if name[0] != "_" and all(isinstance(v, int | float | str | None) for v in parts):
            found[name] = value
    found.pop("training", None)
    return {**found, "type": type(module).__name__}


def _check_logits(model, anatomy: Anatomy, student, cut: Cut):
    """Refuse a student whose logits are not the teacher's with the other blocks skipped."""
    ids = probe_ids(model)
    with undisturbed(model), undisturbed(student):
        with skipping(anatomy, model, cut):
            truth = logits_of(model(**without_cache(model, {"input_ids": ids})))
        found = logits_of(student(**without_cache(student, {"input_ids": ids})))
    error, half = worst(found, truth), truth.dtype in (torch.bfloat16, torch.float16)
    if not error <= (torch.finfo(truth.dtype).eps if half else 1e-5):
        raise ValueError(
            f"its logits differ by {error:.1e} of the largest from the teacher's with the other "
            "blocks skipped; a block depends on its place"
        )
    if (reason := _why_mute(student, ids)) is not None and _why_mute(model, ids) is None:
        raise ValueError(f"transformers cannot generate with the cut: {reason}")


def _why_mute(model, ids):
    """Why a model cannot generate, such as a cache without a block of attention; None if it can."""
    settings = GenerationConfig(max_new_tokens=2, do_sample=False, pad_token_id=0)
    try:
        with undisturbed(model):
            model.generate(ids[:1], generation_config=settings)
    except Exception as error:  # of any kind, anywhere in it
        return first_line(error)
    return None


def skipping(anatomy: Anatomy, model, cut: Cut):
    """A context in which the blocks that are not kept return the stream that they are given."""

    def skipped(output):
        return lambda *args, **kwargs: with_first(output, anatomy.stream_in(args, kwargs))

    pairs = enumerate(zip(anatomy.blocks, anatomy.block_outputs, strict=True))
    return standing_in(
        model, {block: skipped(out) for i, (block, out) in pairs if i not in cut.blocks}
    )
