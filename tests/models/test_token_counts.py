"""Counting tokens: equal to the tokenizer always, cheap where the tokenizer provably allows it."""

from __future__ import annotations

import numpy as np
import pytest
import toy_tokenizers

from kvray.models import tokenizer as tokens
from kvray.models.reference import BaseModelRef, resolve
from kvray.models.tokenizer import TokenCounter, token_counter

TEXT = "Dictionary [12] {123: 4567, 89: 1000}\nthe value of key 1234 is"


@pytest.mark.parametrize(("kind", "apart"), [("digits", True), ("threes", True), ("spaced", True), ("bridging", False)])
def test_a_token_across_integers_is_found_out(kind: str, apart: bool) -> None:
    assert TokenCounter(getattr(toy_tokenizers, kind)()).separates(TEXT) is apart


def test_a_special_token_in_the_text_is_no_proof() -> None:
    tokenizer = toy_tokenizers.digits()
    tokenizer.add_special_tokens(["} 1 {"])
    assert TokenCounter(tokenizer).separates(TEXT)
    assert not TokenCounter(tokenizer).separates(f"{TEXT} {{2}} 1 {{3}}")


def test_counts_are_without_special_tokens_truncation_and_padding() -> None:
    tokenizer = toy_tokenizers.digits()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    assert TokenCounter(tokenizer)(["12345678", "1", ""]).tolist() == [8, 1, 0]


@pytest.mark.parametrize("kind", ["digits", "threes", "spaced"])
def test_integer_table_agrees_with_the_tokenizer_in_every_context(kind: str) -> None:
    counter = TokenCounter(getattr(toy_tokenizers, kind)())
    contexts = [("{", ": 100"), ("100: ", ", 100"), ("Dictionary [", "] {")]
    table = counter.integer_table(contexts, 10, 10_000)
    rng = np.random.default_rng(0)
    for row, (left, right) in enumerate(contexts):
        integers = rng.integers(10, 10_000, 400)
        counts = counter([f"{left}{n}{right}" for n in [10, *integers]])
        assert (table[row, integers] == counts[1:] - counts[0]).all()


def test_counter_of_the_bundled_model_equals_transformers() -> None:
    base = resolve("kvray-tiny")
    tokenizer = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(base.location)
    assert token_counter(base)([TEXT])[0] == len(tokenizer(TEXT, add_special_tokens=False)["input_ids"])


def test_counter_of_a_hub_model_takes_the_fast_tokenizer_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    bundled = resolve("kvray-tiny")
    assert token_counter(bundled) is token_counter(bundled)
    fast = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(bundled.location)
    monkeypatch.setattr(tokens, "load_tokenizer", lambda base: fast)
    hub = BaseModelRef("org/model", "org/model", "0" * 40, "hub:org/model")
    assert token_counter(hub)([TEXT]).tolist() == token_counter(bundled)([TEXT]).tolist()
