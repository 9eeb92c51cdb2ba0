"""Finetunes on a real Ray: one failing leaves others alone, damage is mended, a killed driver is continued."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from make_store import dataset, finetune_of, long_finetune

from kvray.errors import DamagedArtefactError, InputError, ResourceError
from kvray.finetune import job
from kvray.finetune.placement import Shape
from kvray.finetune.storage import load_rows
from kvray.finetune.train import train
from kvray.store.schemas import LOSS_SCHEMA
from kvray.store.store import Store
from kvray.sweep.model import Finetune, Runtime

HERE = Path(__file__).parent


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_two_cpus")
def test_finetunes_are_committed_and_one_that_fails_leaves_the_others_alone(store, mini):
    made = dataset(store, "one", 20)
    good = finetune_of({made: 1.0}, Finetune(learning_rate=3e-3))
    bad = finetune_of({made: 1.0}, Finetune(max_length=9))
    # A snapshot as a kill in the middle of its writing leaves it.
    torn = Path(store.path(".work", "finetunes", good.fingerprint))
    torn.mkdir(parents=True)
    (torn / "checkpoint_manager_snapshot.json").write_text('{"checkpoint_re')
    outcomes = job.finetune([bad, good], store, mini, Runtime(checkpoint_every_steps=2))
    assert [outcome.artefact_id for outcome in outcomes] == [bad.id, good.id]
    assert "20 of 20 rows are longer than 9 tokens" in outcomes[0].error
    assert outcomes[1].error is None
    assert not torn.exists()
    manifest = store.manifest(good.id)
    assert [entry.name for entry in manifest.files] == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "loss.parquet",
    ]
    assert store.problems(good.id, verify=True) == []
    assert store.manifest(bad.id) is None
    log = store.read_table(good.id)
    assert log.schema.equals(LOSS_SCHEMA)
    assert log["step"].to_pylist() == [1, 2, 3, 4]
    facts = manifest.measurements
    assert (facts["steps"], facts["rows_per_epoch"], facts["workers"], facts["precision"]) == (4, 20, 1, "fp32")
    assert facts["loss"] == log["loss"].to_pylist()[-1]
    assert facts["trained_tokens"] == 2 * facts["tokens_per_epoch"]
    assert facts["tokens_per_epoch"] == facts["prompt_tokens"] + facts["answer_tokens"]
    assert facts["budget_tokens"] is None
    assert facts["datasets"] == {made: {"rows": 20, "tokens": facts["tokens_per_epoch"]}}
    assert not torn.exists()


@pytest.mark.usefixtures("ray_two_cpus")
def test_what_the_cluster_cannot_hold_is_refused_before_anything_starts(store, mini):
    one = finetune_of({dataset(store, "one", 4): 1.0}, Finetune())
    with pytest.raises(ResourceError, match=r"needs 1 GPU .* the cluster has 0"):
        job.finetune([one], store, mini, Runtime(gpus_per_finetune=1))
    with pytest.raises(InputError, match="batch_size 5"):
        job.finetune(
            [finetune_of(dict(one.params.mixture), Finetune(batch_size=5))],
            store,
            mini,
            Runtime(workers_per_finetune=2),
        )
    assert job.finetune([], store, mini, Runtime()) == []
    assert not Path(store.path(".work")).exists()


def test_the_reason_of_a_failure_is_one_line_without_rays_traces():
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    damaged = DamagedArtefactError("datasets/x cannot be trained on: a byte changed")
    assert job._reason(WorkerGroupError("Traceback…", {1: ValueError("b\nc"), 0: damaged})) == f"worker 0: {damaged}"
    assert job._reason(WorkerGroupError("Traceback…", {1: ValueError("b\nc")})) == "worker 1: ValueError: b"
    assert job._reason(ControllerError(TimeoutError("no workers"))) == "TimeoutError: no workers"


@pytest.mark.slow
def test_a_finetune_whose_driver_was_killed_goes_on_at_its_checkpoint_and_ends_the_same(store, mini, tmp_path):
    artefact = long_finetune(store)
    command = [sys.executable, str(HERE / "make_store.py"), store.root, mini.location]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    first = subprocess.Popen(command, env=environment)
    work = Path(store.path(".work", "finetunes", artefact.fingerprint))
    deadline = time.monotonic() + 240
    while not list(work.glob("step-0*/trainer_state.json")) and time.monotonic() < deadline:
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert store.manifest(artefact.id) is None
    assert subprocess.run(command, env=environment, timeout=300, check=False).returncode == 0
    facts = store.manifest(artefact.id).measurements
    assert facts["resumed_at_step"] >= 10
    assert facts["steps"] == 60
    rows, _ = load_rows(store, artefact.params, mini)
    shape = Shape(workers=1, cpus=1, gpus=0)
    whole = train(mini, rows, artefact.params.finetune, 0, tmp_path / "whole", shape=shape, runtime=Runtime())
    losses = store.read_table(artefact.id)["loss"].to_pylist()
    assert losses == pytest.approx([row["loss"] for row in whole.log], abs=1e-5)
    assert not work.exists()
