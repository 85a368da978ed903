"""The tokenizer of the demo: tokens for the template and known words, else characters."""

from __future__ import annotations

import re

from distilllens.data.format import format_prompt

_PAD, _EOS, _UNKNOWN = "<pad>", "<eos>", "<unk>"
_WORDS = (
    "Repeat Reverse Write Sort Count Add Which the word in capitals letters letter numbers number "
    "is larger or first of each"
)


def synthetic_tokenizer():
    """A ``PreTrainedTokenizerFast`` with about 130 tokens; records of the demo have 20 to 40.

    Each fixed part of the prompt template and each word of the instructions is one token; other
    text is split into characters. Printable ASCII survives a round trip, other characters become
    ``<unk>``. There are a padding and an end-of-sequence token; neither is added automatically.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [*_template_pieces(), *_words()]
    vocabulary = [_PAD, _EOS, _UNKNOWN, *pieces, *"\n", *map(chr, range(32, 127))]
    model = models.WordLevel({t: i for i, t in enumerate(vocabulary)}, unk_token=_UNKNOWN)
    tokenizer = Tokenizer(model)
    # A word matches only if no letter follows: "letters" is not "letter" + "s".
    words = "|".join(f"{re.escape(word)}(?![A-Za-z])" for word in _words())
    template = "|".join(map(re.escape, _template_pieces()))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(f"{template}|{words}|[\\s\\S]"), behavior="isolated"
    )
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_PAD,
        eos_token=_EOS,
        unk_token=_UNKNOWN,
        clean_up_tokenization_spaces=False,
        model_max_length=128,
    )


def _template_pieces():
    """The text around the fields of both prompt templates."""
    alone = format_prompt({"instruction": "\0", "input": ""}).split("\0")
    paired = format_prompt({"instruction": "\0", "input": "\0"}).split("\0")
    return sorted({*alone, *paired}, key=len, reverse=True)


def _words():
    words = _WORDS.split()
    spaced = [f" {word}" for word in words]
    return [*spaced, *(word for word in words if word[0].isupper())]
