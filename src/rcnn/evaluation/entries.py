"""What a value in an entry of a JSON file may be."""

import sys
from typing import Any


def is_number(value: Any) -> bool:
    """Whether it is a finite number; True is an int by isinstance, and an int may be larger than any float."""
    return type(value) in (float, int) and abs(value) <= sys.float_info.max


def is_id(value: Any) -> bool:
    """Whether it can name an image: a text or a whole number."""
    return type(value) in (int, str)


def are_ids(values: Any) -> bool:
    """Whether it is a list of such, or of objects that have one as `id`."""
    return isinstance(values, list) and all(is_id(v.get("id") if isinstance(v, dict) else v) for v in values)
