"""The disk that a plan takes, and what is said of a disk that it does not fit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_disk import disk, fill

from kvray.driver.run import prepare
from kvray.errors import ResourceError
from kvray.planning.cost.estimate import Estimate, estimate
from kvray.planning.cost.space import Space, check
from kvray.store.places.files import free_bytes
from kvray.store.store import Store
from kvray.sweep.model import Runtime

__all__ = ["disk"]
SWEEP = """\
name: small
base_model: kvray-tiny
datasets: {kv: {task: simple_kv, rows: 400, dictionaries: 20}}
finetune: {method: METHOD, learning_rate: 2.0e-2, seeds: [0, 1]}
runtime: {concurrent_finetunes: 1}
evaluate: {ask: {task: mdqa, documents: 2, positions: [1, 2], questions: 3}}
"""


def planned(tmp_path: Path, method: str) -> Estimate:
    (tmp_path / "small.yaml").write_text(SWEEP.replace("METHOD", method))
    return estimate(prepare(tmp_path / "small.yaml")[0], Store(tmp_path / "store"))


def test_what_trains_decides_the_bytes(tmp_path: Path) -> None:
    weights = 1e-6 * sum(
        file.stat().st_size for file in Path("kvray/models/kvray-tiny").resolve().glob("*.safetensors")
    )
    found = {method: planned(tmp_path, method).space for method in ("lora", "attention", "full")}
    # Two finetunes of all weights in float32, one checkpoint of three times as much, and what is about to be stored.
    assert 1e-6 * found["full"].scratch == pytest.approx(4 * weights, rel=0.2)
    assert 1e-6 * found["full"].store == pytest.approx(6 * weights, rel=0.2)
    assert found["lora"].store < found["attention"].store < found["full"].store / 3
    text = planned(tmp_path, "full").text()
    assert f"disk: {found['full']}" in text and "scratch directory" in text


def test_nothing_is_taken_of_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = planned(tmp_path, "full")
    monkeypatch.setattr(
        "kvray.planning.cost.estimate.status",
        lambda artefacts, *_: [SimpleNamespace(id=one.id, state="committed", reason=None) for one in artefacts],
    )
    monkeypatch.setattr("kvray.planning.cost.measured.manifests", lambda *_: {})
    assert estimate(made.planned, Store(tmp_path / "store")).space == Space()


def told(disk: Path, need: float, **runtime: Any) -> list[str]:
    return check(Space(store=need), Store(disk / "store"), Runtime(**runtime), here=True)


def test_a_disk_that_is_too_small_is_one_sentence(disk: Path) -> None:
    fill(disk, 100)
    free = free_bytes(str(disk))
    assert free == 409600
    assert told(disk, 0.7 * free) == []
    (warning,) = told(disk, 1.5 * free)
    assert warning.startswith(f"{disk}/store: this sweep takes about 614 kB there, and 410 kB are free; ")
    with pytest.raises(ResourceError) as failure:
        told(disk, 2.1 * free)
    assert str(failure.value) == (
        f"{disk}/store: this sweep takes about 860 kB there, and 410 kB are free; make room, or give another place "
        "(--store, runtime.scratch)"
    )


def test_store_and_scratch_on_one_disk_add_up_and_other_machines_are_not_looked_at(disk: Path, tmp_path: Path) -> None:
    fill(disk, 100)
    both = Space(store=300_000, scratch=700_000)
    with pytest.raises(ResourceError, match=r"1\.0 MB there"):
        check(both, Store(disk), Runtime(scratch=str(disk / "scratch")), here=True)
    assert check(both, Store(disk), Runtime(scratch=str(disk / "scratch")), here=False) == []
    with pytest.raises(ResourceError, match=f"{disk}/scratch: .* 900 kB there"):
        check(Space(1, 900_000), Store(tmp_path), Runtime(scratch=str(disk / "scratch")), here=True)
    assert check(Space(0, 1000), Store(tmp_path), Runtime(), here=True) == []
