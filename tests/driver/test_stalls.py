"""A real engine that is stopped in the middle of a sweep: noticed, ended, its work done by another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from kvray.store.store import Store

pytestmark = pytest.mark.slow

SWEEP = """
name: stopped
base_model: kvray-tiny
evaluate: {mdqa: {task: mdqa, documents: 3, positions: [1], questions: 512}}
runtime: {num_cpus: 2, object_store_memory: 200_000_000, stall_minutes: 0.5, retries: 1}
"""
LIMIT_S = 400.0


@pytest.fixture
def run(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    (tmp_path / "stopped.yaml").write_text(SWEEP)
    command = [sys.executable, "-m", "kvray.cli", "run", str(tmp_path / "stopped.yaml")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "KVRAY_STORE": str(tmp_path / "store")}
    environment.pop("RAY_ADDRESS", None)
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stderr=log, text=True)
    yield process
    process.kill()
    process.wait()


def test_an_engine_that_is_stopped_is_ended_and_its_rows_are_answered_once_by_another(
    run: subprocess.Popen[str], tmp_path: Path
) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not list((tmp_path / "store/predictions").glob("*/data/chunk-*.parquet")):
        assert run.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.05)
    everyone = psutil.Process(run.pid).children(recursive=True)
    (engine,) = (each for each in everyone if "ImplicitFunc" in " ".join([each.name(), *each.cmdline()]))
    engine.send_signal(signal.SIGSTOP)
    assert run.wait(LIMIT_S) == 0, (tmp_path / "log").read_text()
    assert "no progress for 0.5 minutes (runtime.stall_minutes); it is ended" in (tmp_path / "log").read_text()
    assert not engine.is_running()
    (note,) = (tmp_path / "store/.work/stalls").iterdir()
    assert f"process {engine.pid} " in note.read_text() and "a stopped process (SIGSTOP)" in note.read_text()
    store = Store(tmp_path / "store")
    (cell,) = store.committed("predictions")
    ids = store.read_table(cell)["example_id"].to_pylist()
    assert len(ids) == len(set(ids)) == 512 and store.problems(cell, verify=True) == []
