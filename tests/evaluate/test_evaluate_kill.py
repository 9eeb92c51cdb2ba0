"""A worker killed between chunks and before the manifest: the same command again ends in one whole artefact."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import evaluate_store as made
import pytest

from kvray.evaluate import chunks
from kvray.models.reference import BaseModelRef
from kvray.store.store import Store

pytestmark = pytest.mark.slow


def work(store: Store, base: BaseModelRef, *death: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, made.__file__, store.uri, base.location, *death]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_no_row_is_lost_or_doubled_wherever_the_worker_is_killed(base: BaseModelRef, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    examples = made.example_table(2 * chunks.CHUNK_ROWS + 10)
    cell = made.predictions(store, made.dataset(store, examples), None)
    home = Path(store.path(cell.id))

    killed = work(store, base, "after-chunks", "2")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    written = {file: file.stat().st_mtime_ns for file in home.glob("data/*.parquet")}
    assert 0 < len(written) < 3 and store.manifest(cell.id) is None

    killed = work(store, base, "before-commit")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert store.manifest(cell.id) is None

    done = work(store, base, "never")
    assert done.returncode == 0, done.stderr
    assert all(file.stat().st_mtime_ns == time for file, time in written.items())  # never made again
    table = store.read_table(cell.id)
    assert sorted(table["example_id"].to_pylist()) == sorted(examples["example_id"].to_pylist())
    assert store.problems(cell.id, verify=True) == []
