"""Tokens as people can read them: blanks and fragments of characters made visible."""

from __future__ import annotations

import re
import unicodedata

_VISIBLE = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"}
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Control, format, private and unassigned characters, and blanks of other widths: they show
# nothing, or move the text around them.
_UNSEEN = ("Cc", "Cf", "Co", "Cn", "Cs", "Zs", "Zl", "Zp")


def token_text(tokenizer, token: int) -> str:
    """What a token says, with blanks visible; a part of a character as the vocabulary has it.

    Args:
        tokenizer: one of transformers.
        token: an id that the tokenizer does not have (padding of the vocabulary) becomes ``[id]``.
    """
    raw = tokenizer.convert_ids_to_tokens(token) if token < len(tokenizer) else None
    if raw is None:
        return f"[{token}]"
    if byte := _BYTE.fullmatch(raw):
        value = int(byte[1], 16)
        return visible(chr(value)) if value < 128 else raw
    if "▁" in raw:  # decoding a single token drops the blank that this stands for
        return visible(raw.replace("▁", " "))
    text = tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return visible(raw if not text or "\ufffd" in text else text)


def visible(text: str) -> str:
    """Text in which every character can be seen: ``" a\\n"`` is ``"␣a⏎"``."""
    shown = "".join(_VISIBLE.get(c) or _seen(c) for c in text)
    # An accent alone would sit on whatever stands before it.
    return f"◌{shown}" if shown and unicodedata.combining(shown[0]) else shown


def _seen(character):
    if unicodedata.category(character) in _UNSEEN:
        return f"⟨U+{ord(character):04X}⟩"
    return character
