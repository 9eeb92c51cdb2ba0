"""The spread of seeds that a plan reckons with, measured on what a store has."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from kvray.planning.cost.spread import spread_of_seeds
from kvray.results.reader import Results
from kvray.results.snapshot import collect
from kvray.store.content import encode
from kvray.store.schemas import SCORES_SCHEMA
from kvray.store.store import Store


def test_the_spread_of_seeds_is_measured_where_the_store_has_several(tmp_path: Path, make_sweep) -> None:
    store = Store(str(tmp_path))
    make_sweep(store, questions=60)
    made = next(iter(store.sweeps()))
    assert spread_of_seeds(store, "kvray-tiny", "lora") == {}
    for report in (made, "the same cells in another sweep"):
        scores = collect(store, made).scores.select(SCORES_SCHEMA.names).to_arrow()
        store.write_document(f"reports/{report}/scores.parquet", bytes(encode(scores)))
    store.write_document("reports/odd/scores.parquet", b"PAR1 torn")
    earlier = pa.table({"base_model": ["kvray-tiny"], "evaluation": ["mdqa20"]})
    store.write_document("reports/of an earlier kvray/scores.parquet", bytes(encode(earlier)))
    base, method = store.plan_document(made)["base_model"], "lora"
    spreads = spread_of_seeds(store, base, method)
    rows = Results(store).accuracy(["evaluation", "mixture", "seed"], sweep=made).drop_nulls("seed")
    variances = rows.group_by("evaluation", "mixture").agg(pl.col("accuracy").var())  # two seeds each: equal weights
    expected = dict(variances.group_by("evaluation").agg(pl.col("accuracy").mean().sqrt()).rows())
    assert {name: spreads[name] for name in expected} == pytest.approx(expected)
    assert spreads[""] == pytest.approx(variances.select(pl.col("accuracy").mean().sqrt()).item())
    assert spread_of_seeds(store, "another", method) == spread_of_seeds(store, base, "full") == {}
