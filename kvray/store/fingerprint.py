"""Identity: one byte form per recipe, its sha256, and the differences of two recipes. Standard library alone."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

_ABSENT = object()
_SURROGATES = re.compile("[\ud800-\udfff]")  # halves of characters, which UTF-8 cannot encode
_SHOWN = 80  # characters of a value in a line of a diff


def canonical_json(value: Any) -> bytes:
    """Return the one JSON form of a value: sorted keys, no spaces, UTF-8.

    Raises TypeError if a part, named by its dotted path, has no stable form: NaN, bytes, a key not str, any object.
    """
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def fingerprint(recipe: Mapping[str, Any], needs: Sequence[str] = ()) -> str:
    """Return the sha256 (64 hex digits) of a recipe and, in order, the fingerprints of what it needs."""
    return hashlib.sha256(canonical_json({"recipe": recipe, "needs": list(needs)})).hexdigest()


def plain(value: Any, path: str = "") -> Any:
    """Copy a value as a JSON round trip would; TypeError as from :func:`canonical_json`."""
    # Types are compared exactly: a subclass (an enum, numpy.float64) may print differently in its next version.
    if value is None or type(value) in (bool, int):
        return value
    if type(value) is float and math.isfinite(value):
        return value + 0.0  # -0.0 equals 0.0, so both must print alike
    if type(value) is str and not _SURROGATES.search(value):
        return value
    if isinstance(value, Mapping):
        odd = [key for key in value if type(key) is not str]
        if odd:
            raise TypeError(f"{path or 'value'}: key {odd[0]!r} is {type(odd[0]).__name__}; expected str")
        return {plain(key, path): plain(item, f"{path}.{key}" if path else key) for key, item in value.items()}
    if type(value) in (list, tuple):
        return [plain(item, f"{path}.{index}" if path else str(index)) for index, item in enumerate(value)]
    raise TypeError(f"{path or 'value'}: {value!r} ({type(value).__name__}) has no stable JSON form")


def recipe_diff(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Return the differences of two recipes, one ``dotted.path: old -> new`` per line, sorted by path.

    Lists of equal length are compared item by item, others as a whole; a missing field shows as ``(absent)``.
    """
    return [f"{path}: {_show(old)} -> {_show(new)}" for path, old, new in _differences(a, b, "")]


def _differences(a: Any, b: Any, path: str) -> list[tuple[str, Any, Any]]:
    pairs: list[tuple[str, Any, Any]]
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        pairs = [(key, a.get(key, _ABSENT), b.get(key, _ABSENT)) for key in sorted({*a, *b})]
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        pairs = [(str(index), old, new) for index, (old, new) in enumerate(zip(a, b, strict=True))]
    else:
        return [] if _show(a, None) == _show(b, None) else [(path or "recipe", a, b)]
    return [line for key, old, new in pairs for line in _differences(old, new, f"{path}.{key}" if path else key)]


def _show(value: Any, limit: int | None = _SHOWN) -> str:
    if value is _ABSENT:
        return "(absent)"
    text = canonical_json(value).decode()
    return text if limit is None or len(text) <= limit else text[: limit - 1] + "…"
