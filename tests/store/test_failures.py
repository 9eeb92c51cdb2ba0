"""Failure notes: written, read back, read as older versions wrote them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvray.store import failures
from kvray.store.store import Store


def test_a_note_is_read_back_listed_and_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert failures.read(store, "predictions/a-1") is None and failures.noted(store) == set()
    failures.note(store, "predictions/a-1", "no memory\nfor it: ü")
    failures.note(store, "datasets/b-2", "gone")
    assert failures.read(store, "predictions/a-1") == "no memory\nfor it: ü"
    assert failures.noted(store) == {"predictions/a-1", "datasets/b-2"}
    failures.delete(store, "predictions/a-1")
    failures.delete(store, "predictions/a-1")
    assert failures.read(store, "predictions/a-1") is None and failures.noted(store) == {"datasets/b-2"}


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b'{"artefact": "predictions/a-1", "error": "died"}\n', "died"),  # as the evaluate stage wrote it
        (b'{"error": "died"}', "died"),
        (b'{"id": "predictions/a-1"}', ""),
        (b'"died"', "died"),
        (b"half a no\xff", "half a no�"),
    ],
)
def test_older_and_broken_notes_are_read(tmp_path: Path, data: bytes, error: str) -> None:
    store = Store(tmp_path)
    store.write_document("failures/predictions/a-1.json", data)
    assert failures.read(store, "predictions/a-1") == error
