"""A run whose bucket fails a third of all requests ends well; one whose bucket stays away ends with one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from flaky_proxy import Faults, FlakyProxy
from planned_toys import BASE, toy_plan
from s3_server import BUCKET, endpoint
from test_run import Stages, stages

from kvray.driver import run as running
from kvray.errors import StoreError
from kvray.planning.artefacts import Artefact
from kvray.store import leases, patience
from kvray.store.store import Store

__all__ = ["endpoint", "stages"]
SWEEP = """\
name: small
base_model: kvray-tiny
datasets: {kv: {task: simple_kv, rows: 16, dictionaries: 3}}
finetune: {learning_rate: 2.0e-2, batch_size: 8}
runtime: {num_cpus: 2, object_store_memory: 100000000}
evaluate: {ask: {task: mdqa, documents: 2, positions: [1, 2], questions: 3}}
"""


@pytest.fixture
def proxy(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyProxy]:
    monkeypatch.setenv(patience.VARIABLE, "120")
    with FlakyProxy(endpoint, Faults.of(1 / 3), seed=11) as made:
        yield made


def store_at(proxy: FlakyProxy, name: str) -> Store:
    return Store(f"s3://{BUCKET}/{name}?endpoint_override=http://{proxy.endpoint}")


def test_the_driver_reads_and_writes_where_a_third_of_all_requests_fails(
    proxy: FlakyProxy, stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.02)
    monkeypatch.setattr(patience, "LONGEST_WAIT_S", 0.2)
    planned, store = toy_plan(), store_at(proxy, "driver")
    lost = next(artefact.id for artefact in planned.artefacts if artefact.kind == "finetune")
    stages.fail = {lost}
    result = running.run(planned, BASE, store)
    assert lost in result.failed
    assert len(result.made) + len(result.failed) == len(planned.artefacts)
    stages.fail = set()
    result = running.run(planned, BASE, store)
    assert not result.failed
    assert set(store.states([one.id for one in planned.artefacts], verify=True).values()) == {"committed"}
    assert sum(proxy.counts.values()) - proxy.counts["requests"] > 0.2 * proxy.counts["requests"]


def test_a_bucket_that_stays_away_ends_the_run_with_one_sentence_and_what_was_made_stays(
    proxy: FlakyProxy, stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.faults = Faults()
    monkeypatch.setenv(patience.VARIABLE, "1")
    monkeypatch.setattr(leases, "BEAT_S", 0.5)  # of the first run, which could not take leave
    planned, store = toy_plan(), store_at(proxy, "away")
    commit, made = stages.commit, threading.Event()

    def then_dead(artefact: Artefact) -> None:
        commit(artefact)
        made.set()
        proxy.dead_for(3600)

    monkeypatch.setattr(stages, "commit", then_dead)
    with pytest.raises(StoreError, match=r"s3://.*: cannot .*NETWORK_CONNECTION|error sending request") as failure:
        running.run(planned, BASE, store)
    assert made.is_set() and "\n" not in str(failure.value)
    proxy.dead_for(0)
    monkeypatch.setattr(stages, "commit", commit)
    monkeypatch.setenv(patience.VARIABLE, "120")
    again = running.run(planned, BASE, Store(store.uri))
    assert not again.failed and again.cached == 1


@pytest.mark.slow
def test_a_sweep_with_real_stages_ends_with_exit_0_where_a_third_of_all_requests_fails(
    proxy: FlakyProxy, tmp_path: Path
) -> None:
    (tmp_path / "small.yaml").write_text(SWEEP)
    store = store_at(proxy, "real")
    ran = subprocess.run(
        [sys.executable, "-m", "kvray.cli", "run", str(tmp_path / "small.yaml"), "--store", store.uri],
        env={**os.environ, patience.VARIABLE: "300", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "5 made, 0 were there" in ran.stdout
    proxy.faults = Faults()
    ids = [artefact["id"] for artefact in store.plan_document("small")["artefacts"]]
    assert set(store.states(ids, verify=True).values()) == {"committed"}
