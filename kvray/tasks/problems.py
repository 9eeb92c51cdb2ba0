"""Texts for what is wrong with an input: what was found, what was expected, and the nearest valid name."""

import difflib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from kvray.errors import Path, Problem

MAX_PROBLEMS = 100
"""Most problems reported of one input; with more, something is wrong with the input as a whole."""
_SHOWN_CHARACTERS = 60
_SHOWN_NAMES = 60
_NEAR_CHARACTERS, _NEAR_NAMES = 60, 1000
"""Longer names are not misspelt, and more of them take too long to compare."""
_PLAIN = {
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "a mapping"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing", "finite_number"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    "string_type": "text (in quotes, if it looks like something else)",
    "none_required": "nothing",
}
"""pydantic's error types in the words of YAML."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most like ``name``, or None when nothing is near."""
    if len(name) > _NEAR_CHARACTERS:
        return None
    by_lower = {other.lower(): other for other in itertools.islice(known, _NEAR_NAMES)}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.55)
    if found:
        return by_lower[found[0]]
    # "dicts" for "dictionaries": people shorten names more than they misspell them.
    starts = [other for low, other in by_lower.items() if len(name) >= 3 and low.startswith(name.lower()[:3])]
    return starts[0] if len(starts) == 1 else None


def unknown(name: object, known: Iterable[str], what: str) -> str:
    """Return the text for a name that is none of ``known``."""
    names = list(known)
    near = nearest(name, names) if isinstance(name, str) else None
    ending = f"; did you mean {near!r}?" if near else ""
    more = f" … ({len(names) - _SHOWN_NAMES} more)" if len(names) > _SHOWN_NAMES else ""
    return f"found {show(name)}; expected {what}: {', '.join(names[:_SHOWN_NAMES]) or 'there is none'}{more}{ending}"


def one_line(text: str) -> str:
    """Return a text as one line of a terminal; unprintable characters become their codes."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def show(value: object) -> str:
    """Return a short form of a value found in a YAML file."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping"
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


def explain(error: ValidationError, model: type[BaseModel], raw: Mapping[str, Any], at: Path = ()) -> list[Problem]:
    """Turn pydantic's errors about ``raw``, at the path ``at`` of its document, into problems, one for each value."""
    texts: dict[Path, list[str]] = {}
    found: dict[Path, str] = {}
    for item in error.errors(include_url=False)[: MAX_PROBLEMS + 1]:
        inner = _real_path(raw, item["loc"])
        kind, ctx = item["type"], item.get("ctx", {})
        found.setdefault(inner, f"found {show(item['input'])}; expected ")
        if kind == "extra_forbidden":
            found[inner], text = "", unknown(str(inner[-1]), _fields(model, inner[:-1]), "one of")
        elif kind == "missing":
            inner = inner if inner[-1:] == item["loc"][-1:] else (*inner, *item["loc"][-1:])
            text = _missing(model, item["loc"])
            found[inner] = "found nothing; expected "
        elif kind in ("value_error", "assertion_error"):
            text = str(ctx.get("error", item["msg"]))
            if isinstance(item["input"], Mapping) or "expected" in text or "found" in text:
                found[inner] = ""
        elif kind == "too_short":
            text = f"at least {ctx['min_length']} of them"
        elif kind == "literal_error":
            text = str(ctx["expected"]) + _did_you_mean(item["input"], str(ctx["expected"]))
        else:
            text = _PLAIN.get(kind) or item["msg"].removeprefix("Input should be ").removeprefix("Input should ")
        texts.setdefault(inner, [])
        if text not in texts[inner]:
            texts[inner].append(text)
    # A list with one wrong item is reported at the item, not also as a whole that fits none of its other types.
    around = {inner[:length] for inner in texts for length in range(len(inner))}
    told = [inner for inner in texts if inner not in around]
    return [Problem((*at, *inner), found[inner] + " or ".join(texts[inner])) for inner in told]


def misread_booleans(model: type[BaseModel], raw: Mapping[str, Any], at: Path = ()) -> list[Problem]:
    """Return the fields where pydantic would read a boolean as a number, which is never what was meant."""
    return [
        Problem((*at, name), f"found {show(value)}; expected a number")
        for name, value in raw.items()
        if isinstance(value, bool) and name in model.model_fields and _numeric(model.model_fields[name].annotation)
    ]


def _numeric(annotation: Any) -> bool:
    kinds = {annotation, *get_args(annotation)}
    return bool(kinds & {int, float}) and bool not in kinds


def _missing(model: type[BaseModel], loc: Sequence[str | int]) -> str:
    field = model.model_fields.get(str(loc[0])) if len(loc) == 1 else None
    return field.description if field is not None and field.description else "a value"


def _fields(model: type[BaseModel], path: Path) -> list[str]:
    for part in path:
        inner = model.model_fields[str(part)].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)


def _did_you_mean(value: object, expected: str) -> str:
    names = [part.strip("' ") for part in expected.replace(" or ", ", ").split(",")]
    near = nearest(value, names) if isinstance(value, str) else None
    return f"; did you mean {near!r}?" if near else ""


def _real_path(raw: object, loc: Sequence[str | int]) -> Path:
    """Drop what pydantic adds to a location (branches of unions, validators' names)."""
    path: Path = ()
    for part in loc:
        inside = raw if isinstance(raw, Mapping) else range(len(raw)) if isinstance(raw, list) else ()
        if part in inside:
            raw, path = raw[part], (*path, part)  # type: ignore[index]
    return path
