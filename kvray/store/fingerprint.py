"""Identity: one byte form per recipe, its sha256, and the differences of two recipes. Standard library alone."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

_ABSENT = object()
_SURROGATES = re.compile("[\ud800-\udfff]")  # halves of characters, which UTF-8 cannot encode
_Place = tuple[Any, str | int] | None  # where a value lies: the place of what holds it, and its key or index there
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)
_SHOWN = 80  # characters of a value in a line of a diff


def canonical_json(value: Any) -> bytes:
    """Return the one JSON form of a value: sorted keys, no spaces, UTF-8.

    Raises TypeError if a part, named by its dotted path, has no stable form: NaN, bytes, a key not str, any object.
    """
    return encoded(plain(value))


def encoded(value: Any) -> bytes:
    """Return the form of :func:`canonical_json` of a value that is :func:`plain`."""
    return _ENCODER.encode(value).encode("utf-8")


def fingerprint(recipe: Mapping[str, Any] | bytes, needs: Sequence[str] = ()) -> str:
    """Return the sha256 (64 hex digits) of a recipe and, in order, the fingerprints of what it needs.

    A recipe that many artefacts share may be given as its :func:`canonical_json`.
    """
    data = recipe if isinstance(recipe, bytes) else canonical_json(recipe)
    return hashlib.sha256(b'{"needs":%b,"recipe":%b}' % (canonical_json(list(needs)), data)).hexdigest()


def plain(value: Any, place: _Place = None) -> Any:
    """Copy a value as a JSON round trip would; TypeError as from :func:`canonical_json`."""
    # Types are compared exactly: a subclass (an enum, numpy.float64) may print differently in its next version.
    kind = type(value)
    if (kind is str and (value.isascii() or not _SURROGATES.search(value))) or value is None or kind in (int, bool):
        return value
    if kind is float and math.isfinite(value):
        return value + 0.0  # -0.0 equals 0.0, so both must print alike
    if kind is dict or isinstance(value, Mapping):
        odd = [key for key in value if type(key) is not str]
        if odd:
            raise TypeError(f"{_dotted(place)}: key {odd[0]!r} is {type(odd[0]).__name__}; expected str")
        return {plain(key, place): plain(item, (place, key)) for key, item in value.items()}
    if kind in (list, tuple):
        return [plain(item, (place, index)) for index, item in enumerate(value)]
    raise TypeError(f"{_dotted(place)}: {value!r} ({kind.__name__}) has no stable JSON form")


def recipe_diff(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Return the differences of two recipes, one ``dotted.path: old -> new`` per line, sorted by path.

    Lists of equal length are compared item by item, others as a whole; a missing field shows as ``(absent)``.
    """
    return [f"{path}: {_show(old)} -> {_show(new)}" for path, old, new in _differences(a, b, "")]


def _dotted(place: _Place) -> str:
    names = []
    while place is not None:
        place, name = place
        names.append(str(name))
    return ".".join(reversed(names)) or "value"


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
