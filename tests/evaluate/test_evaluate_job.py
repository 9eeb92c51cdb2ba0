"""One real engine for a base model and finetunes of every kind."""

from __future__ import annotations

from pathlib import Path

import evaluate_store as made
import pytest
from local_driver import Driver

from kvray import results
from kvray.models.reference import BaseModelRef
from kvray.store.store import Store

pytestmark = pytest.mark.slow
ROWS = 300
LONG = (5, 280)


def ids(table) -> list[str]:
    return sorted(table["example_id"].to_pylist())


def test_cells_stand_or_fail_alone_and_every_row_is_there_once(
    base: BaseModelRef, adapters: dict[str, Path], tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    examples = made.example_table(ROWS, LONG)
    data = made.dataset(store, examples)
    finetunes = {kind: made.finetune(store, kind, adapters[kind]) for kind in ("real", "other", "zero", "cut")}
    finetunes["full"] = made.finetune(store, "full", made.make_full(base, tmp_path / "full"))
    finetunes["changed"] = made.finetune(store, "changed", made.make_changed(base, tmp_path / "changed"))
    # One byte of a committed adapter is turned.
    finetunes["bad"] = made.finetune(store, "bad", adapters["other"])
    weights = Path(store.path(finetunes["bad"], "adapter_model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    cells = {kind: made.predictions(store, data, name) for kind, name in finetunes.items()}
    cells["base"] = made.predictions(store, data, None)

    driver = Driver(store, base)
    driver.add(list(cells.values()))
    driver.queue.close()
    driver.seat()

    errors = {kind: driver.errors[cell.id] for kind, cell in cells.items()}
    assert {kind for kind, error in errors.items() if error is None} == {"base", "real", "other", "full", "changed"}
    assert "changes nothing" in errors["zero"]
    assert "cannot load it" in errors["cut"]
    assert "sha256" in errors["bad"]
    served = set()
    for kind in ("base", "real", "other", "full", "changed"):
        cell = cells[kind]
        assert store.problems(cell.id, verify=True) == []
        table = store.read_table(cell.id)
        assert ids(table) == ids(examples)
        rows = {row["example_id"]: row for row in table.to_pylist()}
        for number in LONG:
            row = rows[f"e{number:05d}"]
            assert row["finish_reason"] == "too_long" and row["answer"] is None and row["score"] is None
            assert row["prompt_tokens"] > made.MODEL_LENGTH - 100
        run = [row for row in rows.values() if row["finish_reason"] != "too_long"]
        assert len(run) == ROWS - len(LONG)
        assert all(row["score"] in (0.0, 1.0) and row["output_tokens"] > 0 for row in run)
        manifest = store.manifest(cell.id)
        assert manifest is not None and manifest.measurements["too_long"] == 2 and manifest.measurements["engines"]
        served |= {engine["id"] for engine in manifest.measurements["engines"]}
        assert {row["adapter"] for row in run} == {None if kind == "base" else finetunes[kind].rpartition("/")[2]}
    for kind in ("zero", "cut", "bad"):
        assert store.manifest(cells[kind].id) is None
    assert len(served) == 1  # one engine for all of them

    def answers(kind: str) -> list[str]:
        return store.read_table(cells[kind].id)["answer"].to_pylist()

    assert answers("base") != answers("real") != answers("other")
    assert answers("full") != answers("base") != answers("changed")
    assert results.open(store).predictions().collect().is_empty()  # no sweep names them
