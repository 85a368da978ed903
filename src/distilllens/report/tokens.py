"""Readable text of tokens: blanks and fragments of characters made visible."""

from __future__ import annotations

import re
import unicodedata

_VISIBLE = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"}
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Control, format, private and unassigned characters, and blanks of other widths: they are invisible
# or move the text around them.
_INVISIBLE = ("Cc", "Cf", "Co", "Cn", "Cs", "Zs", "Zl", "Zp")


def token_text(tokenizer, token: int) -> str:
    """The text of a token with visible blanks; a part of a character as in the vocabulary.

    Args:
        tokenizer: a transformers tokenizer.
        token: an id beyond the tokenizer's (padding of the vocabulary) becomes ``[id]``.
    """
    raw = tokenizer.convert_ids_to_tokens(token) if token < len(tokenizer) else None
    if raw is None:
        return f"[{token}]"
    if byte := _BYTE.fullmatch(raw):
        value = int(byte[1], 16)
        return visible(chr(value)) if value < 128 else raw
    if "▁" in raw:  # decoding a single token would drop this blank
        return visible(raw.replace("▁", " "))
    text = tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return visible(raw if not text or "\ufffd" in text else text)


def visible(text: str) -> str:
    """Text with every character made visible: ``" a\\n"`` becomes ``"␣a⏎"``."""
    shown = "".join(_VISIBLE.get(c) or _code_point(c) for c in text)
    # A combining accent would attach to the character before it.
    return f"◌{shown}" if shown and unicodedata.combining(shown[0]) else shown


def _code_point(character):
    if unicodedata.category(character) in _INVISIBLE:
        return f"⟨U+{ord(character):04X}⟩"
    return character
