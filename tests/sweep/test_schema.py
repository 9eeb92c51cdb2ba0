"""The JSON schema for editors: it takes every sweep of the repository, and marks the mistakes that people make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from kvray.sweep.model import Finetune, Runtime, Sweep
from kvray.sweep.schema import json_schema
from kvray.tasks.base import REGISTRY

ROOT = Path(__file__).parents[2]
SWEEPS = sorted(path for path in (ROOT / "sweeps").rglob("*.yaml") if path.parent.name not in ("tasks", "instructions"))


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return json_schema()


@pytest.fixture(scope="module")
def validator(schema: dict[str, Any]) -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.name)
def test_every_sweep_of_the_repository_fits(path: Path, validator: jsonschema.Draft202012Validator) -> None:
    validator.validate(yaml.safe_load(path.read_text()))


def sweep(**changes: Any) -> dict[str, Any]:
    """A small sweep with changes by dotted path (written with __)."""
    values: dict[str, Any] = {
        "name": "s",
        "base_model": "kvray-tiny",
        "datasets": {"kv": {"task": "simple_kv", "rows": 4}},
        "finetune": {"method": "lora", "seeds": 1},
        "evaluate": {"ask": {"task": "mdqa", "positions": 2}},
    }
    for path, value in changes.items():
        *above, last = path.split("__")
        inner = values
        for key in above:
            inner = inner.setdefault(key, {})
        inner[last] = value
    return values


@pytest.mark.parametrize(
    ("changes", "at"),
    [
        ({"finetune__epcohs": 2}, ["finetune"]),
        ({"finetune__method": "lore"}, ["finetune", "method"]),
        ({"finetune__epochs": -1}, ["finetune", "epochs"]),
        ({"datasets__kv__rosw": 4}, ["datasets", "kv"]),
        ({"datasets__kv__task": "simple_kvv"}, ["datasets", "kv", "task"]),
        ({"datasets__kv__task": "recall"}, ["datasets", "kv", "task"]),  # which only asks
        ({"datasets__kv": {"rows": 4}}, ["datasets", "kv"]),
        ({"evaluate__ask__documents": "many"}, ["evaluate", "ask", "documents"]),
        ({"mixtures__both__kv": 0}, ["mixtures", "both", "kv"]),
        ({"evaluate__a b": {"task": "recall"}}, ["evaluate"]),
        ({"reference": ["no-such-paper"]}, ["reference", 0]),
        ({"runtime__gpus": 1}, ["runtime"]),
        ({"evalute": {}}, []),
    ],
)
def test_a_mistake_is_marked_where_it_is(
    changes: dict[str, Any], at: list[str | int], validator: jsonschema.Draft202012Validator
) -> None:
    (error,) = validator.iter_errors(sweep(**changes))
    assert list(error.absolute_path) == at


@pytest.mark.parametrize(
    "changes",
    [
        {"finetune__seeds": [0, 1]},
        {"evaluate__ask__positions": [1, 2]},
        {"evaluate__ask__positions": "random"},
        {"evaluate__ask__positions": None},
        {"evaluate__ask": {"task": "flenqa", "tasks": "PIR", "lengths": 250}},
        {"datasets__mine": {"task": "my_tasks:Shout", "words": 3}},
        {"scales__small": {"evaluate.ask": None, "finetune": {"epochs": 1}}},
    ],
)
def test_what_kvray_takes_is_not_marked(changes: dict[str, Any], validator: jsonschema.Draft202012Validator) -> None:
    validator.validate(sweep(**changes))


def test_every_knob_says_what_it_means_and_carries_its_default(schema: dict[str, Any]) -> None:
    described = {Sweep: schema, Finetune: schema["$defs"]["Finetune"], Runtime: schema["$defs"]["Runtime"]}
    described |= {cls: schema["$defs"][f"task.{name}"] for name, cls in REGISTRY.items()}
    for cls, part in described.items():
        assert set(part["properties"]) == set(cls.model_fields)
        for name, field in cls.model_fields.items():
            assert part["properties"][name].get("description"), f"{cls.__name__}.{name}"
            assert "identity" not in part["properties"][name]
            assert field.is_required() or name == "task" or "default" in part["properties"][name]


def test_a_task_says_what_it_asks(schema: dict[str, Any]) -> None:
    told = schema["properties"]["evaluate"]["additionalProperties"]["properties"]["task"]["anyOf"]
    assert {each["const"]: each["description"] for each in told if "const" in each}.keys() == REGISTRY.keys()
    assert all(each["description"] for each in told)
