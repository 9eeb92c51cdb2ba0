"""The JSON schema of a sweep file, by which editors complete keys, show what they mean and mark mistakes."""

from __future__ import annotations

from typing import Any

from kvray.sweep.blocks import TASK_SECTIONS, entry_points
from kvray.sweep.check import reference_sets
from kvray.sweep.model import NAME, Sweep
from kvray.tasks import load_all
from kvray.tasks.base import REGISTRY, Task

DRAFT = "https://json-schema.org/draft/2020-12/schema"
EDITOR_LINE = "# yaml-language-server: $schema={}"
"""The comment on a sweep's first line by which editors that know YAML's language server find the schema's file."""
_OWN = ("identity", "added")  # kvray's marks on its fields, which schemas do not know


def json_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a sweep file, with every task's knobs under its ``task:``.

    It knows what one file says by itself. Sources, a model's limits and names that refer to each other are checked by
    ``kvray plan`` alone; values inside ``grid``, ``zip`` and ``scales`` are free here.
    """
    load_all()
    schema = Sweep.model_json_schema()
    definitions: dict[str, Any] = schema.setdefault("$defs", {})
    definitions.pop("Task", None)
    for name, cls in REGISTRY.items():
        part = cls.model_json_schema(ref_template="#/$defs/{model}")
        definitions |= part.pop("$defs", {})
        part["properties"]["task"] = {"const": name, "description": "the task's name"}
        part["required"] = sorted({"task", *part.get("required", [])})
        definitions[f"task.{name}"] = part | {"description": _says(cls)}
    for section in TASK_SECTIONS:
        names = sorted(name for name, cls in REGISTRY.items() if section == "evaluate" or cls.TRAINABLE)
        schema["properties"][section] |= {
            "propertyNames": {"pattern": f"^{NAME.pattern}$"},
            "additionalProperties": _block(names),
        }
    schema["properties"]["mixtures"]["propertyNames"] = {"pattern": f"^{NAME.pattern}$"}
    schema["properties"]["reference"]["items"] = {"enum": list(reference_sets())}
    described: dict[str, Any] = _plain(schema)
    return {"$schema": DRAFT, **described, "title": "kvray sweep"}


def _block(names: list[str]) -> dict[str, Any]:
    """Return the schema of a task block; one condition per task, so that a mistake is told of the task meant."""
    elsewhere = {
        "description": "a task of another package, or module:Class of a package or of a file beside this one",
        "anyOf": [{"type": "string", "pattern": ":"}, {"enum": entry_points()}],
    }
    told = [{"const": name, "description": _says(REGISTRY[name])} for name in names]
    return {
        "type": "object",
        "properties": {"task": {"description": "what it is made of", "anyOf": [*told, elsewhere]}},
        "required": ["task"],
        "allOf": [
            {
                "if": {"properties": {"task": {"const": name}}, "required": ["task"]},
                "then": {"$ref": f"#/$defs/task.{name}"},
            }
            for name in names
        ],
    }


def _says(cls: type[Task]) -> str:
    """Return the first paragraph of a task's docstring on one line."""
    return " ".join((cls.__doc__ or cls.__name__).split("\n\n")[0].split())


def _plain(value: Any) -> Any:
    """Return a schema without pydantic's titles, which repeat the keys, and without kvray's own marks."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if not isinstance(value, dict):
        return value
    kept = {}
    for key, each in value.items():
        if key == "properties" and isinstance(each, dict):
            kept[key] = {name: _plain(inner) for name, inner in each.items()}  # a knob may have any name
        elif key not in _OWN and not (key == "title" and isinstance(each, str)):
            kept[key] = _plain(each)
    return kept
