"""The store in a bucket whose server refuses, cuts, halves or delays a third of all requests, or is away a while."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from flaky_proxy import Faults, FlakyProxy
from s3_server import BUCKET, endpoint

from kvray.errors import InputError, StoreUnavailableError
from kvray.store import failures, patience
from kvray.store.fingerprint import fingerprint
from kvray.store.places import object_store
from kvray.store.store import Store, artefact_id

__all__ = ["endpoint"]
RECIPE = {"rows": 6}
ID = artefact_id("dataset", "ours", fingerprint(RECIPE))


@pytest.fixture
def proxy(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyProxy]:
    monkeypatch.setenv(patience.VARIABLE, "60")
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(patience, "LONGEST_WAIT_S", 0.2)
    with FlakyProxy(endpoint, Faults.of(1 / 3)) as made:
        yield made


def store_at(proxy: FlakyProxy, name: str) -> Store:
    return Store(f"s3://{BUCKET}/{name}?endpoint_override=http://{proxy.endpoint}")


def rows(start: int, stop: int) -> pa.Table:
    return pa.table({"n": list(range(start, stop))})


def commit(store: Store) -> None:
    files = [store.write(ID, f"shard-{n}.parquet", rows(3 * n, 3 * n + 3)) for n in range(2)]
    files.append(store.write(ID, "card.md", b"# card\n"))
    names: dict[str, Any] = {
        "kind": "dataset",
        "name": "ours",
        "fingerprint": fingerprint(RECIPE),
        "recipe": RECIPE,
        "needs": [],
    }
    store.commit(id=ID, files=files, **names)


@pytest.mark.parametrize("seed", range(6))
def test_every_operation_gives_the_right_bytes_where_a_third_of_all_requests_fails(
    proxy: FlakyProxy, seed: int, tmp_path: Path
) -> None:
    proxy._seed = seed
    store = store_at(proxy, f"third-{seed}")
    store.check(write=True)
    assert store.manifest(ID) is None and store.states([ID]) == {ID: "missing"}
    commit(store)
    assert store.states([ID]) == {ID: "committed"} == {ID: store.state(ID, verify=True)}
    assert store.read_table(ID).equals(rows(0, 6))
    assert [entry.name for entry in store.manifests("dataset")[0].files] == [
        "card.md",
        "shard-0.parquet",
        "shard-1.parquet",
    ]
    assert (store.fetch(ID, tmp_path / "copy") / "card.md").read_bytes() == b"# card\n"
    documents = store.folder("reports/mine")
    assert documents.put_new("first", b"1") or documents.read("first") == b"1"  # the answer to the first may be lost
    assert not documents.put_new("first", b"2") and documents.read("first") == b"1"
    documents.delete("first")
    for number in range(8):
        failures.note(store, f"datasets/a-{number}", f"why {number}")
    assert failures.noted(store) == {f"datasets/a-{number}" for number in range(8)}
    for number in range(8):
        failures.delete(store, f"datasets/a-{number}")
    assert failures.noted(store) == set()
    store.discard(ID)
    assert store.states([ID]) == {ID: "missing"}
    assert store._files.listing(store.root, hidden=True) == {}
    assert sum(proxy.counts.values()) - proxy.counts["requests"] >= 0.2 * proxy.counts["requests"]


def test_a_large_object_is_uploaded_and_read_part_by_part(proxy: FlakyProxy, tmp_path: Path) -> None:
    data = os.urandom(25 * 2**20)
    store = store_at(proxy, "large")
    entry = store.write(ID, "weights", data)
    store.commit(id=ID, kind="dataset", name="w", fingerprint="0", recipe={}, needs=[], files=[entry])
    assert (store.fetch(ID, tmp_path / "copy") / "weights").read_bytes() == data
    assert store.fs.open_input_file(store.path(ID, "weights")).read() == data  # as other libraries read it


def test_a_store_that_is_away_for_seconds_costs_these(proxy: FlakyProxy) -> None:
    proxy.faults = Faults()
    store = store_at(proxy, "away")
    store.check()
    proxy.dead_for(2)
    began = time.monotonic()
    commit(store)
    assert 2 < time.monotonic() - began < 20
    assert store.states([ID]) == {ID: "committed"}
    assert proxy.counts["dead"] > 2


def test_a_store_that_stays_away_is_given_up_and_found_again(
    proxy: FlakyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.faults = Faults()
    monkeypatch.setenv(patience.VARIABLE, "1")
    store = store_at(proxy, "gone")
    store.check()
    proxy.dead_for(3600)
    began = time.monotonic()
    with pytest.raises(StoreUnavailableError, match=r"s3://.*manifest.json: cannot read: .*NETWORK_CONNECTION"):
        commit(store)
    with pytest.raises(StoreUnavailableError):
        store.states([ID])
    assert time.monotonic() - began < 10
    proxy.dead_for(0)
    commit(store)
    assert store.states([ID]) == {ID: "committed"}


def test_the_first_look_is_short_and_that_of_a_worker_as_patient_as_the_rest(
    proxy: FlakyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.faults = Faults()
    monkeypatch.setattr(object_store, "LOOK_S", 0.5)
    store = store_at(proxy, "look")
    proxy.dead_for(3)
    with pytest.raises(InputError, match="cannot reach"):
        store.check()
    kind, given, known = store.__reduce__()
    assert not known["_reached"]
    worker = kind(*given)
    worker.__dict__.update(known, _reached=True)
    assert worker.states([ID]) == {ID: "missing"}
