"""What people type for a list of numbers: one number, ``[1, 5, 10]``, or on a command line ``1,5,10``."""

from __future__ import annotations

import re
from typing import Any

_LISTED = re.compile(r"\s*\d+(\.\d+)?\s*(,\s*\d+(\.\d+)?\s*)+")


def listed(value: Any) -> Any:
    """Return one number, or numbers in a text with commas, as a tuple; leave anything else to pydantic."""
    if isinstance(value, str) and _LISTED.fullmatch(value):
        return tuple(part.strip() for part in value.split(","))
    return (value,) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def refuse_repeats(name: str, values: tuple[Any, ...]) -> None:
    """Refuse an empty list, and one that names something twice.

    Raises:
        ValueError: for pydantic; the message names the field.
    """
    if not values or len(set(values)) != len(values):
        raise ValueError(f"{name}: found {list(values)}, expected at least one, and each once")
