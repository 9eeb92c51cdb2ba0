"""Slots on a real Ray: one finetune that fails leaves others alone, and what was killed goes on at its checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from make_store import dataset, finetune_of, long_finetune, trained

from kvray.errors import DamagedArtefactError
from kvray.finetune import job
from kvray.finetune.placement import Shape
from kvray.finetune.storage import Checkpoints, load_rows
from kvray.finetune.train import train
from kvray.planning.work import FINETUNE, Seat, Unit
from kvray.store.schemas import LOSS_SCHEMA
from kvray.store.store import Store
from kvray.sweep.model import Finetune, Runtime

HERE = Path(__file__).parent


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def files(store, artefact):
    return [entry.name for entry in store.manifest(artefact.id).files]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_two_cpus")
def test_a_slot_makes_one_finetune_after_the_other_and_one_that_fails_leaves_the_others_alone(store, mini, tmp_path):
    made = dataset(store, "one", 20)
    good = finetune_of({made: 1.0}, Finetune(learning_rate=3e-3))
    bad = finetune_of({made: 1.0}, Finetune(max_length=9))
    other = finetune_of({made: 1.0}, Finetune(method="attention"))
    torn = Path(store.path(".work", "finetunes", good.fingerprint))
    torn.mkdir(parents=True)
    (torn / "step-00000002.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    runtime = Runtime(checkpoint_every_steps=2, scratch=str(tmp_path / "scratch"), model_cache=str(tmp_path / "cache"))
    errors = trained(store, [bad, good, other], mini, runtime)
    assert "20 of 20 rows are longer than 9 tokens" in errors.pop(bad.id)
    assert errors == {good.id: None, other.id: None}
    assert files(store, good) == ["adapter_config.json", "adapter_model.safetensors", "loss.parquet"]
    assert files(store, other) == ["changed.safetensors", "config.json", "loss.parquet"]
    assert store.manifest(bad.id) is None
    assert store.problems(good.id, verify=True) == store.problems(other.id, verify=True) == []
    log = store.read_table(good.id)
    assert log.schema.equals(LOSS_SCHEMA)
    assert log["step"].to_pylist() == [1, 2, 3, 4]
    facts = store.manifest(good.id).measurements
    assert (facts["steps"], facts["rows_per_epoch"], facts["workers"], facts["precision"]) == (4, 20, 1, "fp32")
    assert (facts["resumed_at_step"], facts["loss"]) == (0, log["loss"].to_pylist()[-1])
    assert facts["trained_tokens"] == 2 * facts["tokens_per_epoch"]
    assert facts["tokens_per_epoch"] == facts["prompt_tokens"] + facts["answer_tokens"]
    assert facts["budget_tokens"] is None
    assert facts["datasets"] == {made: {"rows": 20, "tokens": facts["tokens_per_epoch"]}}
    assert not list(Path(store.path(".work")).rglob("*.*"))
    assert list((tmp_path / "scratch").iterdir()) == []
    # Nothing is left to do, which takes no training: whoever committed these died before it could say so.
    created = store.manifest(good.id).created
    assert trained(store, [good, other], mini, runtime) == {good.id: None, other.id: None}
    assert store.manifest(good.id).created == created


def test_the_reason_of_a_failure_is_one_line_without_rays_traces():
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    damaged = DamagedArtefactError("datasets/x cannot be trained on: a byte changed")
    assert job._reason(WorkerGroupError("Traceback…", {1: ValueError("b\nc"), 0: damaged})) == f"worker 0: {damaged}"
    assert job._reason(WorkerGroupError("Traceback…", {1: ValueError("b\nc")})) == "worker 1: ValueError: b"
    assert job._reason(ControllerError(TimeoutError("no workers"))) == "TimeoutError: no workers"


def test_a_finetune_too_large_for_its_gpu_fails_at_once_with_what_to_change(store, mini, monkeypatch):
    import torch

    artefact = finetune_of({dataset(store, "one", 16): 1.0}, Finetune(epochs=1))
    unit, seat, failed = Unit(0, artefact.id), Seat("slot", FINETUNE), []

    class Told:
        def failed(self, unit, error):
            failed.append((unit.artefact_id, error))

    def run_out(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("kvray.finetune.train.train", run_out)
    given = job.Slot(Told(), seat, store, mini, Runtime(), {artefact.id: artefact}, 0.0)
    with pytest.raises(torch.OutOfMemoryError):  # which ends the process, and what fills its GPU
        job._train(given, job.Order(unit, None), None, first=True)
    ((told, error),) = failed
    assert told == artefact.id
    assert "lower runtime.per_device_batch_size" in error and error.endswith("Tried to allocate 2.00 GiB)")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_two_cpus")
def test_a_worker_killed_in_its_second_finetune_leaves_the_first_and_goes_on_at_the_checkpoint(store, mini):
    long = long_finetune(store)
    first = finetune_of(dict(long.params.mixture), Finetune(method="attention"))
    errors: dict[str, str | None] = {}

    def run():
        errors.update(trained(store, [first, long], mini, Runtime(checkpoint_every_steps=10)))

    thread = threading.Thread(target=run)
    thread.start()
    checkpoints, deadline = Checkpoints(store, long), time.monotonic() + 200
    while checkpoints.last() is None:
        assert thread.is_alive() and time.monotonic() < deadline
        time.sleep(0.05)
    created = store.manifest(first.id).created
    (worker,) = [each for each in psutil.Process().children(recursive=True) if "RayTrainWorker" in each.name()]
    worker.kill()
    thread.join()
    assert errors == {first.id: None, long.id: None}
    assert store.manifest(first.id).created == created
    facts = store.manifest(long.id).measurements
    assert facts["resumed_at_step"] >= 10 and facts["steps"] == 60
    assert checkpoints.last() is None


@pytest.mark.slow
@pytest.mark.usefixtures("ray_two_cpus")
def test_a_finetune_that_kills_its_workers_fails_with_the_reason_and_costs_the_others_nothing(store, mini):
    made = {dataset(store, "one", 16): 1.0}
    good = finetune_of(made, Finetune(epochs=1))
    refused = finetune_of({"datasets/../x": 1.0}, Finetune())  # by the store: an error that needs no second attempt
    deadly = finetune_of(made, Finetune().model_copy(update={"learning_rate": "high"}))  # which nobody foresaw
    errors = trained(store, [refused, deadly, good], mini, Runtime(retries=1))
    assert errors.pop(refused.id).startswith("'datasets/../x' is refused")
    assert errors.pop(deadly.id).startswith("worker 0: TypeError: ")
    assert errors == {good.id: None}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_two_cpus")
def test_two_workers_share_each_finetune_and_an_error_that_one_meets_is_met_by_both(store, mini):
    made = dataset(store, "one", 20)
    lora, attention = (finetune_of({made: 1.0}, Finetune(method=method)) for method in ("lora", "attention"))
    odd = finetune_of({made: 1.0}, Finetune(batch_size=5))
    errors = trained(store, [lora, odd, attention], mini, Runtime(workers_per_finetune=2), workers=2)
    assert "batch_size 5 cannot be shared evenly" in errors.pop(odd.id)
    assert errors == {lora.id: None, attention.id: None}
    assert store.manifest(attention.id).measurements["workers"] == 2
    away = replace(mini, location=str(store.root) + "/none")
    (error,) = trained(store, [finetune_of({made: 1.0}, Finetune(seeds=(1,)), seed=1)], away, Runtime(), 2).values()
    assert "none is not on this node" in error


@pytest.mark.slow
def test_a_finetune_whose_driver_was_killed_goes_on_at_its_checkpoint_and_ends_the_same(store, mini, tmp_path):
    artefact = long_finetune(store)
    command = [sys.executable, str(HERE / "make_store.py"), store.root, mini.location]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    first = subprocess.Popen(command, env=environment)
    checkpoints, deadline = Checkpoints(store, artefact), time.monotonic() + 240
    while checkpoints.last() is None and time.monotonic() < deadline:
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
    assert checkpoints.last() is None


@pytest.mark.slow
def test_a_slot_waits_for_a_node_and_trains_when_one_joins(store, mini):
    command = [sys.executable, str(HERE / "make_store.py"), store.root, mini.location, "late"]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    assert subprocess.run(command, env=environment, timeout=300, check=False).returncode == 0
    assert store.manifest(long_finetune(store).id).measurements["steps"] == 60
