"""One answer to "load this configuration, tokenizer or model, or say in one line why not"."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from distilllens.architectures import check_writes_text, class_of
from distilllens.errors import first_line, named
from distilllens.fingerprints import Unshared, compare_tokenizers
from distilllens.marks import check_noted_weights
from distilllens.places import (
    broken_in,
    check_folder_of,
    check_hub_of,
    is_local,
    meant,
    missing_in,
    without_addresses,
)
from distilllens.stored import DamagedFile, read_stored

_ADAPTER = "adapter_config.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
# Not left open: transformers would then ask on standard input, and take a "y" there for consent.
_NO_REMOTE_CODE = {"trust_remote_code": False}
_HUB = ("cache_dir", "local_files_only", "revision", "subfolder", "token", "trust_remote_code")


class _AdapterConfig(TypedDict):
    base_model_name_or_path: str


def load_config(
    role: str, name: str, *, trust_remote_code: bool = False, adapter: str | None = None, **settings
):
    """The configuration of the model ``name``, a folder or a hub id.

    Args:
        role: what messages call it: "student", "teacher" or "model".
        adapter: the folder of the adapter whose base model this is; named in messages.
        settings: of ``from_pretrained``, such as ``revision``.

    Returns:
        For the folder of a PEFT adapter, the configuration of its base model.

    Raises:
        ValueError: it cannot be loaded.
    """
    what = f"the {role} {str(name)!r}"
    if adapter:
        what = f"the base model {str(name)!r} of the adapter {adapter}"
    elif (base := base_model_name(Path(name))) is not None:
        settings.pop("revision", None)  # of the adapter
        return load_config(
            role, base, trust_remote_code=trust_remote_code, adapter=str(name), **settings
        )
    with _one_line(what, name, "config.json", _base_advice(adapter), settings):
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, **settings)


def check_architectures(name: str, config):
    """Refuse a configuration that names no class of model: the trainer loads a student by it.

    Raises:
        ValueError: with what config.json must name; also as ``check_writes_text``.
    """
    names = config.architectures
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ValueError(
            f"cannot train the student {str(name)!r}: in its config.json, architectures is "
            f'{names!r}; it must name its class, such as ["LlamaForCausalLM"]'
        )
    check_writes_text(names[0])


def load_tokenizer(role: str, name: str, *, advice: str = "", **settings):
    """The tokenizer of the model ``name``; of an adapter without one, that of its base model.

    Args:
        role: what messages call the model.
        advice: what the user can do instead; added to the message.
        settings: of ``from_pretrained``, such as ``revision`` and ``trust_remote_code``.

    Raises:
        ValueError: it cannot be loaded.
    """
    if not _has_tokenizer(name) and (base := base_model_name(Path(name))) is not None:
        settings.pop("revision", None)
        name = base
    what = f"the tokenizer of the {role} {str(name)!r}"
    with _one_line(what, name, "tokenizer", advice, settings):
        return AutoTokenizer.from_pretrained(name, **_NO_REMOTE_CODE | settings)


def find_tokenizer(role: str, name: str, **settings):
    """The tokenizer of the model ``name``, or None where its folder has none.

    Raises:
        ValueError: there is a tokenizer and it cannot be loaded.
    """
    found = base_model_name(Path(name)) or name
    if not _has_tokenizer(name) and not _has_tokenizer(found):
        return None
    return load_tokenizer(role, name, **settings)


def _has_tokenizer(name):
    """Whether a folder holds a tokenizer; of a hub id, True."""
    folder = Path(name)
    return not folder.is_dir() or any((folder / file).exists() for file in _TOKENIZER_FILES)


def with_chat_template(tokenizer, path: str):
    """A copy of a tokenizer as TRL's ``chat_template_path`` makes it.

    Args:
        path: a file ``.jinja`` or ``.j2``; or a model, whose tokenizer also gives its added tokens
            and its end-of-sequence token.

    Raises:
        ValueError: the file or the tokenizer cannot be read.
    """
    made = copy.deepcopy(tokenizer)
    if Path(path).is_file() and path.endswith((".jinja", ".j2")):
        try:
            made.chat_template = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            text = f"chat_template_path {path} cannot be read: {first_line(error)}"
            raise ValueError(text) from error
        return made
    source = load_tokenizer("chat_template_path", path, advice="or name a .jinja file")
    if source.chat_template is None:
        raise ValueError(f"chat_template_path {path}: its tokenizer has no chat template")
    made.chat_template = source.get_chat_template()
    known = made.get_vocab()
    made.add_tokens([t for t in source.added_tokens_decoder.values() if t.content not in known])
    made.eos_token = source.eos_token
    return made


def load_model(role: str, name: str, *, every_kind: bool = False, **settings):
    """The causal or vision-language model ``name``, with every weight found in its files.

    Args:
        role: what messages call it.
        every_kind: also encoder-decoders and masked LMs, where its configuration names one.
        settings: of ``from_pretrained``, such as ``dtype`` and ``revision``.

    Raises:
        ValueError: it cannot be loaded, a weight is missing from its files, or they are not those
            that training noted beside them.
    """
    what, advice = f"the {role} {str(name)!r}", ""
    if (base := base_model_name(Path(name))) is not None:
        check_noted_weights(f"the base model {base!r} of {what}", base)
        what, advice = f"{what}, an adapter of {base!r}", _base_advice(name)
    check_noted_weights(what, name)
    with _one_line(what, name, "weights", advice, settings):
        settings = _NO_REMOTE_CODE | settings
        hub = {k: settings[k] for k in _HUB if k in settings and (base is None or k != "revision")}
        kind = class_of(AutoConfig.from_pretrained(base or name, **hub), every_kind)
        model, found = kind.from_pretrained(name, output_loading_info=True, **settings)
    # transformers would initialise them at random, with no more than a warning.
    if missing := [*sorted(found["missing_keys"]), *sorted(map(str, found["mismatched_keys"]))]:
        raise ValueError(
            f"the weights of {name} lack {missing[0]}, or have it in another shape "
            f"({len(missing)} in all)"
        )
    return model


def load_adapter(kind, base, folder: str):
    """The adapter in a folder on its base model, to be trained; ``kind`` is PEFT's class of it.

    Raises:
        ValueError: it cannot be loaded.
    """
    with _one_line(f"the adapter {folder!r}", folder, "weights"):
        return kind.from_pretrained(base, folder, is_trainable=True)


def saved_dtype(config) -> str | None:
    """The dtype in which a model is saved, as its configuration says, such as "bfloat16"."""
    dtype = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    return None if dtype is None else str(dtype).removeprefix("torch.")


def size_in_words(model) -> str:
    """The number of a model's parameters, how many of them are trained, and their dtypes."""
    sizes, trained = {}, 0
    for parameter in model.parameters():
        num = getattr(parameter, "ds_numel", parameter.numel())  # of DeepSpeed's shards
        dtype = str(parameter.dtype).removeprefix("torch.")
        if (packed := getattr(parameter, "quant_state", None)) is not None:  # of bitsandbytes
            num, dtype = math.prod(packed.shape), "4-bit"
        sizes[dtype] = sizes.get(dtype, 0) + num
        trained += num * parameter.requires_grad
    total = sum(sizes.values())
    names = " and ".join(sorted(sizes, key=sizes.get, reverse=True))
    part = "" if trained in (0, total) else f" ({_count(trained)} trainable)"
    return f"{_count(total)} parameters{part}, {names}"


def _count(num):
    return f"{num / 1e6:,.1f} M" if num >= 1e6 else f"{num:,}"


def is_adapter_folder(name: str | None) -> bool:
    """Whether a name means a folder with a PEFT adapter."""
    return name is not None and (Path(name) / _ADAPTER).is_file()


def base_model_name(folder: Path) -> str | None:
    """The base model of the PEFT adapter in a folder; None for any other folder.

    Raises:
        ValueError: an adapter_config.json that cannot be read, or a base model that was in a folder
            which is no longer there.
    """
    file = folder / _ADAPTER
    if not file.exists():
        return None
    try:
        base = read_stored(file, _AdapterConfig)["base_model_name_or_path"]
    except DamagedFile as error:
        raise ValueError(f"model {folder}: {_ADAPTER} cannot be read: {error}") from error
    if is_local(base) and not Path(base).exists():
        raise ValueError(
            f"model {folder} is an adapter of {base!r}, and there is no such folder; "
            f"{_base_advice(folder)}"
        )
    return base


def _base_advice(adapter):
    return (
        f"set base_model_name_or_path in {adapter}/{_ADAPTER} to the folder or hub id of its base "
        "model"
        if adapter
        else ""
    )


@contextmanager
def _one_line(what, name, part, advice="", settings=_NO_REMOTE_CODE):
    """Any error of loading ``part`` ("config.json", "tokenizer" or "weights") as one line."""
    name, advice = str(name), f"; {advice}" if advice else ""
    check_folder_of(what, name, advice)
    if settings.get("cache_dir") is None:  # of which only the libraries know what is in it
        check_hub_of(what, name, advice)
    try:
        yield
    except Exception as error:  # a broken or missing file raises whatever it likes
        if Path(name).is_dir():
            reason = missing_in(Path(name), part)
            if reason is None and (reason := config_error(name, part, error)) is not None:
                advice = ""  # another tokenizer would not mend it
            reason = reason or broken_in(Path(name), part) or without_addresses(named(error))
        else:
            reason = f"there is no such folder here, and the hub did not have it{meant(name)}"
            reason = f"{reason}: {named(error)}"
        raise ValueError(f"cannot load {what}: {reason}{advice}") from error


def config_error(name: str, part: str, error: Exception) -> str | None:
    """What is wrong with config.json, where that is why a part cannot be loaded; else None."""
    file = Path(name) / "config.json"
    if not file.is_file():
        return None
    if (broken := broken_in(Path(name), "config.json")) is not None:
        return broken
    try:
        config = AutoConfig.from_pretrained(name, **_NO_REMOTE_CODE)
        if part == "weights":
            with torch.device("meta"):
                AutoModelForCausalLM.from_config(config, **_NO_REMOTE_CODE)
    except Exception as found:  # as above
        return f"{file} is not valid: {named(error)}" if str(found) == str(error) else None
    return None


def generation_ends(config) -> int | list[int] | None:
    """The tokens at which generation ends by itself, of the model with a configuration."""
    try:
        return GenerationConfig.from_pretrained(config.name_or_path).eos_token_id
    except Exception:  # a model without such a file, or one that comes from nowhere
        return config.get_text_config().eos_token_id


def positions_of(config) -> int | None:
    """The longest sequence that a model's configuration allows, in tokens, or None."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


def least_positions(configs: Iterable) -> int | None:
    """The longest sequence that all of the configurations allow, or None for no limit."""
    return min((n for config in configs if (n := positions_of(config))), default=None)


def check_tokenizers(student, teacher) -> Unshared:
    """Refuse two tokenizers that do not number the same tokens alike.

    Padding of the vocabulary after the last token is no difference. Added tokens that only one of
    them has, such as a ``<pad>``, are returned: texts must be checked for them.

    Raises:
        ValueError: with the first difference.
    """
    return compare_tokenizers(student, teacher)


def check_lengths(who: str, config, longest: int, *, is_known: bool = True):
    """Refuse sequences longer than a model's positions.

    Args:
        longest: in tokens; if it is not known, what the data may hold.

    Raises:
        ValueError: with the length and the number of positions.
    """
    positions = positions_of(config)
    if positions is not None and longest > positions:
        data = "the data hold a sequence of" if is_known else "the data may hold a sequence of"
        raise ValueError(
            f"{data} {longest} tokens, beyond the {who}'s {positions} "
            f"positions; set max_length to {positions} or less"
        )


def check_vocabulary(who: str, model, largest: int):
    """Refuse token ids that a model has no embedding for.

    Raises:
        ValueError: with the id and the number of embeddings.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if largest >= rows:
        raise ValueError(
            f"the data hold token {largest}, but the {who} has only {rows} embeddings: "
            "its tokenizer is another one"
        )
