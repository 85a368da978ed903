"""A column of JSON in a ``datasets.Dataset`` whose values come back as they were."""

from __future__ import annotations

import json
from dataclasses import dataclass

from datasets import Json


@dataclass
class ExactJson(Json):
    """A column of JSON whose values come back as they were.

    A column of structs would give every object the keys of all the others, as None, and the chat
    template would print them. ``Json`` itself reads with pandas' parser, for which 0.94 is
    0.9400000000000001. A saved data set has ``Json`` columns.
    """

    def decode_example(self, example_data, token_per_repo_id=None):
        """The value of a cell."""
        if example_data is None:
            return None
        value = json.loads(example_data)
        # JSON that pandas' parser refuses (an integer of more than 64 bits) is stored as a text.
        return json.loads(value) if isinstance(value, str) and value[:1] in ("[", "{") else value
