"""Every field of every configuration model is classified: recipe decides content, runtime decides where and how fast.

Whoever adds a field to a model that a sweep file can reach must add its name to one of the two lists below, and
declare it with ``recipe(...)`` or ``runtime(...)`` to match. Ask: would another value give other bytes, weights or
answers? Then it is recipe.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from kvray.sweep.model import Finetune, Sweep
from kvray.tasks import load_all
from kvray.tasks.base import REGISTRY, Strict, Task, added, recipe

load_all()
TASKS = dict(REGISTRY)

RECIPE: dict[str, set[str]] = {
    "Sweep": {
        "base_model", "tokenizer", "system_message", "trust_remote_code", "datasets", "mixtures", "finetune",
        "evaluate", "grid", "zip", "adapters",
    },
    "Finetune": {
        "method", "epochs", "learning_rate", "batch_size", "seeds", "lora_rank", "lora_alpha", "lora_dropout",
        "lora_targets", "scheduler", "warmup_ratio", "weight_decay", "max_grad_norm", "max_length", "match",
        "reseed_data", "api_batch_size", "api_learning_rate_multiplier",
    },
    "Runtime": set(),
    "simple_kv": {
        "task", "seed", "rows", "dictionaries", "keys_min", "keys_max", "digits_min", "digits_max", "template", "law",
        "max_tokens", "forced_first", "early", "count_bos",
    },
    "multi_subkey_kv": {
        "task", "seed", "rows", "dictionaries", "keys_min", "keys_max", "gold_key_size", "key_size_min", "key_size_max",
        "common_subkeys", "share_probability", "subkey_probability", "common_ordered", "shuffle_query", "subkey_digits",
        "value_digits", "template", "max_tokens", "forced_first", "early", "count_bos", "law", "subkey_digits_max",
        "value_digits_max",
    },
    "several_kv": {
        "task", "seed", "rows", "keys_asked", "dictionaries", "keys_min", "keys_max", "digits_min", "digits_max",
        "template", "max_tokens", "count_bos",
    },
    "mdqa": {
        "task", "seed", "split", "documents", "positions", "questions", "distractors", "passage_words", "order",
        "query_aware", "answers", "answer_writer", "writer_prompt",
    },
    "flenqa": {"task", "seed", "tasks", "lengths", "dispersions", "paddings", "cot", "questions", "limit"},
    "multidoc_qa": {
        "task", "seed", "split", "documents", "positions", "rows", "restate", "max_tokens", "english_only",
    },
    "recall": {"task", "seed", "split", "questions"},
    "in2": {
        "task", "seed", "rows", "split", "question_writer", "segment_tokens", "length_min", "length_max", "short_share",
        "integration_share", "integration_segments", "corpus_segments", "writer_surplus",
    },
    "needle": {"task", "seed", "needles", "split", "rows", "lengths", "depths"},
    "ruler": {"task", "seed", "tasks", "rows", "lengths", "template_tokens"},
    "kv_retrieval": {"task", "seed", "keys", "positions", "questions", "query_aware"},
    "val_probing": {"task", "seed", "probe", "pieces", "positions", "questions"},
    "messages": {
        "task", "seed", "messages", "prompt", "answer", "references", "turns", "split", "test_share", "rows", "scorer",
    },
    "lm_eval": {
        "task", "seed", "benchmark", "shots", "limit", "metric", "max_tokens", "length", "chat_template",
        "metadata",
    },
}  # fmt: skip
"""Fields that enter fingerprints, by model (tasks by their name in YAML)."""

RUNTIME: dict[str, set[str]] = {
    "Sweep": {"name", "runtime", "scales", "reference"},
    "Finetune": set(),
    "Runtime": {
        "address", "num_cpus", "object_store_memory", "max_gpus", "wait_minutes", "workers_per_finetune",
        "gpus_per_finetune", "cpus_per_finetune", "concurrent_finetunes", "strategy", "per_device_batch_size",
        "gradient_checkpointing", "checkpoint_minutes", "checkpoint_every_steps", "scratch", "model_cache", "engines",
        "engine",
        "gpus_per_engine", "cpus_per_engine", "tensor_parallel", "max_loras", "kv_cache_gib", "gpu_memory_utilization",
        "max_model_len", "retries", "stall_minutes", "start_minutes", "api_base_url", "api_concurrency", "api_retries",
        "api_timeout_s",
        "api_price_input", "api_price_output", "api_price_training", "gpu_price", "budget", "trackers",
    },
    "Budget": {"gpu_hours", "usd"},
    "simple_kv": set(),
    "multi_subkey_kv": set(),
    "several_kv": set(),
    "mdqa": {"source", "corpus"},
    "flenqa": {"source", "padding_source"},
    "multidoc_qa": {"source"},
    "recall": {"source"},
    "in2": {"source"},
    "needle": {"source"},
    "ruler": {"source", "squad", "hotpot"},
    "kv_retrieval": {"source"},
    "val_probing": {"source"},
    "messages": {"source"},
    "lm_eval": {"include_path"},
}  # fmt: skip
"""Fields that never do."""


def reachable(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield a model and every model that its fields can hold."""
    yield model
    for field in model.model_fields.values():
        kinds: list[Any] = [field.annotation]
        while kinds:
            kind = kinds.pop()
            kinds += get_args(kind)
            if isinstance(kind, type) and issubclass(kind, BaseModel) and kind is not model:
                yield from reachable(kind)


def models() -> dict[str, type[BaseModel]]:
    named = {model.__name__: model for model in reachable(Sweep) if model is not Task}
    for name, cls in TASKS.items():
        named[name] = cls
        named |= {model.__name__: model for model in reachable(cls) if model is not cls}
    return named


@pytest.mark.parametrize("name", sorted(models()))
def test_every_field_is_classified(name: str) -> None:
    model = models()[name]
    assert issubclass(model, Strict), f"{name}: derive it from kvray.tasks.base.Strict, so that its fields are declared"
    for field in model.model_fields:
        lists = [kind for kind, table in (("recipe", RECIPE), ("runtime", RUNTIME)) if field in table.get(name, ())]
        assert len(lists) == 1, (
            f"{name}.{field} stands in {len(lists)} lists of tests/test_identity.py: add it to RECIPE[{name!r}] if "
            f"another value gives other bytes, weights or answers, else to RUNTIME[{name!r}]"
        )
        assert model.identity(field) == lists[0], (
            f"{name}.{field} is declared with {model.identity(field)}(...) but listed as {lists[0]} in "
            "tests/test_identity.py: make the two agree"
        )
    gone = (RECIPE.get(name, set()) | RUNTIME.get(name, set())) - set(model.model_fields)
    assert not gone, f"{name} has no {sorted(gone)}: take it out of the lists of tests/test_identity.py"


def test_the_lists_name_no_model_that_is_gone() -> None:
    gone = (set(RECIPE) | set(RUNTIME)) - set(models())
    assert not gone, f"no sweep file reaches {sorted(gone)}: take it out of the lists of tests/test_identity.py"


def test_a_field_that_is_not_declared_is_an_error() -> None:
    class Careless(Strict):
        knob: int = 3

    with pytest.raises(TypeError, match=r"Careless.knob must be declared with recipe\(...\) or runtime\(...\)"):
        Careless().recipe()


def test_recipes_hold_recipe_fields_alone() -> None:
    api = {"api_batch_size", "api_learning_rate_multiplier"}
    assert set(Finetune().recipe()) == RECIPE["Finetune"] - {"seeds", "reseed_data"} - api
    assert set(Finetune().recipe(api=True)) == {"epochs", "match"} | api
    for name, cls in TASKS.items():
        required = {field: "x" for field, info in cls.model_fields.items() if info.is_required()}
        later = {field for field, info in cls.model_fields.items() if (info.json_schema_extra or {}).get("added")}  # type: ignore[union-attr]
        assert set(cls.model_validate({**required, "task": name}).recipe()) == RECIPE[name] - later


def test_a_field_that_was_added_later_is_in_the_recipe_only_where_it_is_not_the_default() -> None:
    class Old(Strict):
        rows: int = recipe(3)

    class New(Old):
        order: str = added("given")

    assert New().recipe() == Old().recipe() == {"rows": 3}
    assert New(order="given").recipe() == {"rows": 3}
    assert New(order="random").recipe() == {"rows": 3, "order": "random"}
