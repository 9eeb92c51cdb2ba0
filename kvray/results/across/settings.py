"""What two sweeps differ in: settings of their files, and what lies behind the same settings (files, versions)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from kvray.results.across.side import Side

ABSENT = "(absent)"

_NO_RECIPE = ("name", "runtime", "scales", "reference")
"""Parts of a sweep that change no result."""
_ROLES = {"train": "datasets", "evaluate": "evaluate"}
_HIDDEN = ("task", "tokenizer")
"""Parts of a dataset's recipe that the sweep's own block says, or the base model."""
_SHOWN = 80  # characters of a value


class Setting(NamedTuple):
    """A setting with another value in the second sweep: its dotted path, and both values as JSON or :data:`ABSENT`."""

    name: str
    first: str
    second: str


def differing(first: Side, second: Side) -> list[Setting]:
    """Return what differs between the recipes of two sweeps; runtime, name and scales are not part of them."""
    one, two = (_recipe(side) for side in (first, second))
    return [*_changes(one, two), *_behind(first, second, one, two)]


def _recipe(side: Side) -> dict[str, Any]:
    sweep = side.document.get("sweep") or {}
    return {name: value for name, value in sweep.items() if name not in _NO_RECIPE}


def _behind(first: Side, second: Side, one: Mapping[str, Any], two: Mapping[str, Any]) -> list[Setting]:
    """Return what differs though the settings are the same: files of the base model, sources, versions of tasks."""
    found: list[Setting] = []
    mine_base, other_base = _base(first), _base(second)
    if one.get("base_model") == two.get("base_model") and None not in (mine_base, other_base):
        found += _changes(mine_base, other_base, "files of base_model")
    ids, others = _datasets(first), _datasets(second)
    common = [key for key in ids if key in others and ids[key] != others[key]]
    manifests = first.store.read_manifests([ids[key] for key in common])
    theirs = second.store.read_manifests([others[key] for key in common])
    for role, name in common:
        mine, other = manifests.get(ids[role, name]), theirs.get(others[role, name])
        if mine is None or other is None:
            continue
        shown, others_shown = ({k: v for k, v in each.recipe.items() if k not in _HIDDEN} for each in (mine, other))
        changes = _changes(shown, others_shown)
        found += [Setting(f"{_ROLES.get(role, role)}.{name}: {each.name}", *each[1:]) for each in changes]
    return found


def _changes(one: Any, two: Any, path: str = "") -> Iterator[Setting]:
    """Yield the differences of two plain values by dotted path; lists are compared as a whole."""
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        for key in dict.fromkeys([*one, *two]):
            yield from _changes(one.get(key, ABSENT), two.get(key, ABSENT), f"{path}.{key}" if path else key)
    elif one != two:
        yield Setting(path, _shown(one), _shown(two))


def _shown(value: Any) -> str:
    text = ABSENT if value == ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _base(side: Side) -> str | None:
    """Return the identity of the base model's files, as predictions know it."""
    return next((str(each.recipe["base"]) for each in side.manifests.values() if "base" in each.recipe), None)


def _datasets(side: Side) -> dict[tuple[str, str], str]:
    planned = [each for each in side.document["artefacts"] if each["kind"] == "dataset"]
    return {(each["labels"].get("role", ""), str(each["labels"].get("dataset"))): each["id"] for each in planned}
