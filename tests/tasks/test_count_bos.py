"""``count_bos``: the token budget of dictionary tasks counts the tokenizer's first token, as the paper's scripts do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import toy_tokenizers
from tokenizers import Tokenizer

from kvray.models.tokenizer import TokenCounter
from kvray.tasks.base import REGISTRY
from kvray.tasks.kv.several import SeveralKV
from kvray.tasks.kv.simple import SimpleKV
from kvray.tasks.kv.subkeys import MultiSubkeyKV

KINDS: list[tuple[type[Any], dict[str, Any], int]] = [
    (SimpleKV, {"dictionaries": 12, "max_tokens": 900}, 101),
    (SimpleKV, {"dictionaries": "fit", "law": "strict", "max_tokens": 400}, 0),
    (MultiSubkeyKV, {"dictionaries": 8, "max_tokens": 900}, 0),
    (SeveralKV, {"dictionaries": 8, "max_tokens": 900}, 0),
]
"""Tasks, and how many tokens the budget must exceed a prompt by: law paper keeps it below ``max_tokens - 100``."""


def made(cls: type[Any], counter: TokenCounter, **knobs: Any) -> pa.Table:
    task = cls(rows=60, **knobs)
    table: pa.Table = task.build(0, 60, task.context(counter))
    return table


def test_a_budget_that_counts_bos_is_one_smaller_with_mistrals_tokenizer(mistral_model: Path) -> None:
    tokenizer = Tokenizer.from_file(str(mistral_model / "tokenizer.json"))
    counter = TokenCounter(tokenizer)
    assert counter.first_tokens == 1
    for cls, knobs, margin in KINDS:
        longest = int(made(cls, counter, **knobs)["prompt_tokens"].to_numpy().max())
        budget = longest + margin
        uncounted = made(cls, counter, **{**knobs, "max_tokens": budget})
        assert uncounted["prompt_tokens"].to_numpy().max() == longest, cls
        counted = made(cls, counter, count_bos=True, **{**knobs, "max_tokens": budget})
        assert counted["prompt_tokens"].to_numpy().max() < longest, cls
        assert counted.equals(made(cls, counter, **{**knobs, "max_tokens": budget - 1})), cls
        whole = [len(tokenizer.encode(prompt)) for prompt in counted["prompt"].to_pylist()]
        assert whole == [1 + tokens for tokens in counted["prompt_tokens"].to_pylist()]


def test_without_a_first_token_nothing_changes() -> None:
    counter = TokenCounter(toy_tokenizers.digits())
    assert counter.first_tokens == 0
    knobs = {"dictionaries": 12, "max_tokens": 730}
    assert made(SimpleKV, counter, count_bos=True, **knobs).equals(made(SimpleKV, counter, **knobs))


@pytest.mark.parametrize("name", ["simple_kv", "multi_subkey_kv", "several_kv"])
def test_the_knob_keeps_older_artefacts(name: str) -> None:
    task = REGISTRY[name]
    assert "count_bos" not in task().recipe()
    counting: Any = task
    assert counting(count_bos=True).recipe()["count_bos"] is True
    assert "another seed" in str(task().overlaps(counting(count_bos=True)))
