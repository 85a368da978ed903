"""Secrets are masked in everything that is written: tokens of the hub, keys, passwords."""

from __future__ import annotations

import re
from typing import Any

MASK = "***"
_NAMES = ("token", "hub_token", "use_auth_token", "api_key", "password", "secret")
# How tokens of the Hugging Face hub look, wherever they stand in a text.
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}")

# TOKENIZERS_PARALLELISM is none.
_SECRET_NAME = re.compile(r"TOKEN(?!IZERS)|KEY|SECRET|PASS|CREDENTIAL|AUTH|COOKIE|HEADER")
# User and password of an address, whose scheme may be left out; a password may hold an @.
_LOGIN = re.compile(r"(^|://)[^/\s]*@")
_ADDRESS_NAME = re.compile(r"(PROXY|URL|ENDPOINT|URI)$")


def masked(value: Any) -> Any:
    """The value with secrets replaced by ``***``: by the names of mappings, at any depth.

    True, False and None are no secrets: ``token: true`` asks for the token of the login.
    """
    if isinstance(value, dict):
        return {
            key: MASK if _is_secret(key, inner) else masked(inner) for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(masked(inner) for inner in value)
    return _HUB_TOKEN.sub(MASK, value) if isinstance(value, str) else value


def masked_variable(name: str, value: str) -> str:
    """The value of an environment variable; ``***`` for one that holds a secret by its name.

    Of an address, user and password are masked.
    """
    name, value = name.upper(), masked(value)
    if _SECRET_NAME.search(name):
        return MASK
    if not _ADDRESS_NAME.search(name) and "://" not in value:
        return value
    return _LOGIN.sub(rf"\1{MASK}@", value)


def _is_secret(key, value):
    return key in _NAMES and value is not None and not isinstance(value, bool)
