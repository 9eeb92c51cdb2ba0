"""Whole sweeps by two drivers on one store, each with a Ray of its own: started together, one killed, one suspended."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import pytest

import kvray.results

pytestmark = pytest.mark.slow
BEAT_S = 1.0
"""Of runs here; a run is dead after four missed ones."""
KVRAY = f"from kvray.store import leases; leases.BEAT_S = {BEAT_S}; from kvray.cli import main; main()"
SWEEP = """
name: small
base_model: kvray-tiny
datasets:
  kv: {task: simple_kv, rows: 48, dictionaries: 4}
  more: {task: simple_kv, rows: 56, dictionaries: 4, seed: 1}
mixtures:
  kv: {kv: 1}
  more: {more: 1}
finetune: {method: lora, epochs: 1, learning_rate: 1e-3, batch_size: 8, lora_rank: 8, lora_alpha: 16, match: rows}
evaluate:
  mdqa: {task: mdqa, documents: 3, positions: [1, 3], questions: 8}
  recall: {task: recall, questions: 10}
runtime: {num_cpus: 2, object_store_memory: 100_000_000}
"""
ARTEFACTS = 12  # 4 datasets, 2 finetunes, 6 cells
MADE = re.compile(r"^(\d+) made, (?:(\d+) made by another run, )?(\d+) were there", re.MULTILINE)


@dataclass
class Runs:
    """Drivers of one sweep, and what they print."""

    store: Path
    sweep: Path
    started: list[tuple[subprocess.Popen[bytes], Path]] = field(default_factory=list)

    def start(self) -> subprocess.Popen[bytes]:
        log = self.store.parent / f"run-{len(self.started)}.log"
        environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONUNBUFFERED": "1"}
        with log.open("w") as stream:
            command = [sys.executable, "-c", KVRAY, "run", str(self.sweep), "--store", str(self.store)]
            driver = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)
        self.started.append((driver, log))
        return driver

    def said(self, number: int) -> str:
        return self.started[number][1].read_text()

    def ended(self, number: int, timeout: float = 500) -> tuple[int, int, int]:
        """Return what a run counted when it ended well: made, made by another run, there before."""
        status = self.started[number][0].wait(timeout)
        said = self.said(number)
        assert status == 0, said
        counted = MADE.search(said)
        if counted is None:
            assert "nothing to do" in said, said
            return 0, 0, ARTEFACTS
        return int(counted[1]), int(counted[2] or 0), int(counted[3])

    def until(self, check: Callable[[], bool], seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not check():
            assert time.monotonic() < deadline, "\n".join(self.said(number) for number in range(len(self.started)))
            time.sleep(0.05)

    def committed(self, kind: str) -> int:
        return len(list((self.store / kind).glob("*/manifest.json")))

    def check(self) -> None:
        """Check that every artefact is whole by its bytes, and every row there once."""
        status = subprocess.run(
            [sys.executable, "-m", "kvray.cli", "status", "small", "--store", self.store, "--verify", "--json"],
            capture_output=True,
            text=True,
            check=True,
        )
        counts = json.loads(status.stdout)
        assert (counts["planned"], counts["committed"], counts["failed"]) == (ARTEFACTS, ARTEFACTS, 0)
        rows = kvray.results.open(self.store).predictions(sweep="small").collect()
        assert rows.height == 3 * (16 + 10)
        assert rows.select(pl.struct("mixture", "example_id").is_unique().all()).item()


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    sweep = tmp_path / "small.yaml"
    sweep.write_text(SWEEP)
    made = Runs(tmp_path / "store", sweep)
    yield made
    for driver, _ in made.started:
        if driver.poll() is None:
            driver.send_signal(signal.SIGCONT)
            driver.kill()
            driver.wait()


def test_two_runs_started_together_make_everything_once(runs: Runs) -> None:
    runs.start()
    runs.start()
    counted = [runs.ended(number) for number in range(2)]
    assert sum(made for made, _, _ in counted) == ARTEFACTS, "nothing twice, nothing lost"
    assert all(sum(each) == ARTEFACTS for each in counted)
    assert any("of these; waiting for" in runs.said(number) for number in range(2))
    runs.check()


@pytest.mark.parametrize("kind", ["datasets", "finetunes"])
def test_the_command_of_a_killed_run_typed_again_at_once_goes_on(runs: Runs, kind: str) -> None:
    first = runs.start()
    runs.until(lambda: runs.committed(kind) >= 1)
    first.send_signal(signal.SIGKILL)
    there = sum(runs.committed(each) for each in ("datasets", "finetunes", "predictions"))
    runs.start()  # while the first one's Ray may live on for some seconds
    made, elsewhere, cached = runs.ended(1)
    assert "has died; what it held is free again" in runs.said(1)
    assert made + elsewhere + cached == ARTEFACTS and cached >= there
    runs.check()


def test_a_run_that_is_suspended_for_longer_than_its_lease_harms_nothing(runs: Runs) -> None:
    first = runs.start()
    runs.until(lambda: runs.committed("datasets") >= 1)
    first.send_signal(signal.SIGSTOP)
    runs.start()
    runs.until(lambda: "has died; what it held is free again" in runs.said(1))
    runs.until(lambda: runs.committed("finetunes") >= 1)
    first.send_signal(signal.SIGCONT)
    counted = [runs.ended(number) for number in range(2)]
    assert all(sum(each) == ARTEFACTS for each in counted)
    runs.check()
