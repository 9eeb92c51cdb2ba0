"""Loss logs: which are read, and what is averaged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from loss_logs import commit, frame, log

from kvray.results import frames, losses
from kvray.store.schemas import LOSS_SCHEMA
from kvray.store.store import Store


def test_a_curve_averages_each_twentieth_then_the_seeds() -> None:
    rising, falling = [float(v) for v in range(40)], [float(v) for v in range(40, 0, -1)]
    rows = losses.curves(frame({"kv": [log(rising, rising), log(falling, rising)]}))
    line = rows.filter(pl.col("part") == "integers")
    assert line.height == losses.BINS
    # The first twentieth holds steps 1 and 2: 0.5 of one seed, 39.5 of the other.
    assert line.row(0, named=True) == {
        "model": "kv", "part": "integers", "share": pytest.approx(0.5 / 39), "loss": 20.0, "low": 0.5, "high": 39.5,
        "seeds": 2,
    }  # fmt: skip
    assert line["share"].is_sorted()
    words = rows.filter(pl.col("part") == "words")
    assert words["low"].to_list() == words["high"].to_list() == words["loss"].to_list()
    assert words["loss"][-1] == 38.5


@pytest.mark.parametrize(("steps", "first", "last"), [(1, [1], [1]), (10, [1], [10]), (25, [1, 2, 3], [23, 24, 25])])
def test_a_tenth_is_at_least_a_step(steps: int, first: list[int], last: list[int]) -> None:
    values = [float(step**2) for step in range(1, steps + 1)]
    row = losses.tenths(frame({"kv": [log(values, values)]})).row(0, named=True)
    assert row["first"] == pytest.approx(np.mean([step**2 for step in first]))
    assert row["last"] == pytest.approx(np.mean([step**2 for step in last]))


def test_steps_without_an_integer_are_no_zeros() -> None:
    rows = frame({"kv": [log([None, 3.0, 5.0, None], [1.0, 1.0, 1.0, 1.0])], "needle": [log([None] * 4, [2.0] * 4)]})
    assert losses.split(rows) == ["kv"]
    lines = losses.curves(rows).filter(pl.col("part") == "integers")
    assert lines["loss"].to_list() == [3.0, 5.0]
    assert set(lines["model"]) == {"kv"}
    ends = {(r["model"], r["part"]): (r["first"], r["last"]) for r in losses.tenths(rows).iter_rows(named=True)}
    assert ends["kv", "integers"] == (None, None)
    assert ends["kv", "words"] == (1.0, 1.0)
    assert ("needle", "integers") not in ends


def test_only_logs_that_tell_integers_from_words_are_read(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    good = log([2.0, 1.0], [1.0, 0.5])
    whole = ("kv", "lora", 0, good)
    old, api, damaged = ("kv", "lora", 1, {"loss": [9.0]}), ("kv", "lora", 2, None), ("kv", "lora", 3, good)
    ids = commit(store, [whole, old, api, damaged, ("kv", "lora", 4, good)])
    Path(store.path(ids[3], losses.FILE)).write_bytes(b"no parquet")
    manifests = {one: manifest for one in ids if (manifest := store.manifest(one)) is not None}
    del manifests[ids[4]]  # as if it were not committed
    planned = json.loads(store.read_document("sweeps/first.json") or b"")["artefacts"]
    names = pl.DataFrame(schema={"mixture": pl.String, "finetune": pl.String, "model": pl.String})
    rows = losses.read(store, planned, manifests, names)
    assert rows.rows() == [("kv", 0, 1, 0.0, 1.5, 2.0, 1.0), ("kv", 0, 2, 1.0, 0.75, 1.0, 0.5)]


def test_models_are_called_as_in_the_predictions(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    made = [("kv", f"lora[learning_rate={rate}]", 0, log([1.0], [1.0])) for rate in (1, 2)]
    ids = commit(store, made)
    manifests = {one: manifest for one in ids if (manifest := store.manifest(one)) is not None}
    planned = json.loads(store.read_document("sweeps/first.json") or b"")["artefacts"]
    known = {"mixture": ["kv"], "finetune": ["lora[learning_rate=1]"], "model": ["kv"]}
    rows = losses.read(store, planned, manifests, pl.DataFrame(known))
    assert frames.models(rows) == ["kv", "kv [learning_rate=2]"]


def test_the_log_has_the_columns_that_are_read() -> None:
    assert {"step", *losses._LOGGED} <= set(LOSS_SCHEMA.names)
