"""JSON of which no field is lost because another has its name."""

from __future__ import annotations

import json
from collections import Counter


class TwiceNamed(ValueError):
    """An object that has two fields of one name."""


def _object(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise TwiceNamed(f"an object has the field {name!r} twice")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_object)
