"""The spread of seeds that a plan reckons with, measured on what a store has."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from kvray.results.reader import Results
from kvray.results.spread import spread_of_seeds
from kvray.store.store import Store


def test_the_spread_of_seeds_is_measured_where_the_store_has_several(tmp_path: Path, make_sweep) -> None:
    store = Store(str(tmp_path))
    make_sweep(store, questions=60)
    made = next(iter(store.sweeps()))
    base, method = store.plan_document(made)["base_model"], "lora"
    spreads = spread_of_seeds(store, base, method)
    rows = Results(store).accuracy(["evaluation", "mixture", "seed"], sweep=made).drop_nulls("seed")
    variances = rows.group_by("evaluation", "mixture").agg(pl.col("accuracy").var())  # two seeds each: equal weights
    expected = dict(variances.group_by("evaluation").agg(pl.col("accuracy").mean().sqrt()).rows())
    assert {name: spreads[name] for name in expected} == pytest.approx(expected)
    assert spreads[""] == pytest.approx(variances.select(pl.col("accuracy").mean().sqrt()).item())
    assert spread_of_seeds(store, "another", method) == spread_of_seeds(store, base, "full") == {}
