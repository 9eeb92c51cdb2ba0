"""The background writer: order, entries, bounded memory, and errors that surface."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from kvray.errors import StoreError
from kvray.store.manifest import FileEntry
from kvray.store.store import Store
from kvray.store.writer import Writer

ID = "predictions/cell-0"


class Slow(Store):
    """A store whose writes wait for ``go``, and fail for names with ``bad``."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.go = threading.Event()
        self.began: list[str] = []

    def write(self, artefact_id: str, name: str, data: Any, *, uncommitted: bool = False) -> FileEntry:
        self.began.append(name)
        self.go.wait(20)
        if "bad" in name:
            raise StoreError(f"{artefact_id}/{name}: cannot write")
        return super().write(artefact_id, name, data, uncommitted=uncommitted)


@pytest.fixture
def store(tmp_path: Path) -> Slow:
    return Slow(str(tmp_path / "store"))


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_files_are_written_in_order_and_their_entries_are_those_of_the_store(store: Slow, tmp_path: Path) -> None:
    store.go.set()
    tables = [pa.table({"n": list(range(n))}) for n in range(5)]
    with Writer(store) as writer:
        futures = [writer.write(ID, f"{n}.parquet", table) for n, table in enumerate(tables)]
        futures.append(writer.write(ID, "card.md", b"# card\n"))
    names = [*(f"{n}.parquet" for n in range(5)), "card.md"]
    assert store.began == names
    assert [future.result(0) for future in futures] == [Store(store.uri).entry(ID, name) for name in names]


def test_the_caller_goes_on_until_there_is_no_room(store: Slow) -> None:
    writer = Writer(store, waiting=2)
    for name in ("a", "b"):
        writer.write(ID, name, b"x")
    third = threading.Thread(target=writer.write, args=(ID, "c", b"x"))
    third.start()
    third.join(0.1)
    assert third.is_alive()
    assert store.listing([ID])[ID].files == {}
    store.go.set()
    third.join(20)
    assert not third.is_alive()
    writer.flush()
    assert sorted(store.listing([ID])[ID].files) == ["a", "b", "c"]
    writer.close()
    with pytest.raises(RuntimeError):
        writer.write(ID, "d", b"x")


def test_an_error_is_raised_by_the_next_call_and_once(store: Slow) -> None:
    store.go.set()
    writer = Writer(store)
    failed = writer.write(ID, "bad", b"x")
    until(failed.done)
    with pytest.raises(StoreError, match=f"{ID}/bad: cannot write"):
        writer.write(ID, "refused", b"x")
    good = writer.write(ID, "good", b"x")
    writer.flush()
    assert good.result(0).bytes == 1
    assert list(store.listing([ID])[ID].files) == ["good"]
    writer.write(ID, "bad too", b"x")
    with pytest.raises(StoreError, match="bad too"):
        writer.flush()
    writer.close()


def test_the_end_waits_and_raises_but_not_over_another_error(store: Slow) -> None:
    store.go.set()
    with pytest.raises(StoreError, match="bad"), Writer(store) as writer:
        writer.write(ID, "bad", b"x")
    with pytest.raises(ValueError, match="the work"), Writer(store) as writer:
        writer.write(ID, "kept", b"x")
        writer.write(ID, "bad", b"x")
        raise ValueError("the work failed")
    assert list(store.listing([ID])[ID].files) == ["kept"]
