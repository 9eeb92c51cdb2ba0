"""Finetunes that a fine-tuning API makes, against a local server: nothing is uploaded, created or paid twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import make_store as made
import pytest
from api_server import KEY, Api, Fault, serving

import kvray.models.openai
from kvray.errors import InputError
from kvray.finetune import openai as stage
from kvray.finetune.openai import document_name, finetune
from kvray.finetune.storage import read_whole, select
from kvray.models.chat import json_lines
from kvray.models.openai import ApiError
from kvray.models.reference import BaseModelRef, resolve
from kvray.planning.artefacts import Artefact
from kvray.store.store import Store
from kvray.sweep.model import Finetune, Runtime

BASE = BaseModelRef("openai:tiny", "tiny", None, "openai:tiny", tokenizer=resolve("kvray-tiny"))
SYSTEM = "Write a response."


class Killed(BaseException):
    """Stands for the driver's end at that point."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(kvray.models.openai, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(stage, "FIRST_POLL_S", 0.01)


@pytest.fixture
def api() -> Iterator[Api]:
    with serving() as api:
        yield api


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def tuned(store: Store, seed: int = 0, **given: Any) -> Artefact:
    """A finetune on two datasets, of which the second is cut to half."""
    mixture = {made.dataset(store, "one", 12): 0.5, made.dataset(store, "two", 24): 0.5}
    one = made.finetune_of(mixture, Finetune(match="rows", **given), seed)
    return replace(one, recipe={**one.recipe, "system_message": SYSTEM})


def quietly(done: float, note: str = "", total: float | None = None) -> None:
    """Show nothing."""


def make(store: Store, api: Api, *artefacts: Artefact, **given: Any) -> list[str | None]:
    return [one.error for one in finetune(artefacts, store, BASE, Runtime(api_base_url=api.url, **given), quietly)]


def test_a_mixture_becomes_a_model_behind_the_api(store: Store, api: Api, capfd: pytest.CaptureFixture[str]) -> None:
    one = tuned(store, seed=7, epochs=3, api_batch_size=4)
    assert make(store, api, one) == [None]
    (file,), (job,) = api.files, api.jobs
    mixture = select(one.params, BASE, lambda name: read_whole(store, name))
    tables = [read_whole(store, part.name).take(part.rows) for part in mixture.parts]
    rows = [row for table in tables for row in table.to_pylist()]
    assert [len(part.rows) for part in mixture.parts] == [12, 12]
    lines = [json.loads(line) for line in file["content"].decode().splitlines()]
    assert lines == [
        {
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["answer"]},
            ]
        }
        for row in rows
    ]
    asked = job["asked"]
    assert asked["method"] == {
        "type": "supervised",
        "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 4}},
    }
    assert (asked["model"], asked["seed"], asked["training_file"]) == ("tiny", 7, file["id"])
    assert asked["suffix"] == f"kvray-{one.fingerprint[:12]}" and asked["metadata"] == {"kvray": one.fingerprint}
    manifest = store.manifest(one.id)
    assert manifest is not None and [entry.name for entry in manifest.files] == ["model.json"]
    told = json.loads((Path(store.path(one.id)) / "model.json").read_text())
    assert told["model"] == manifest.measurements["model"] == job["model"] and told["job"] == job["id"]
    assert (told["trained_tokens"], manifest.measurements["trained_tokens"], manifest.measurements["seconds"]) == (
        4321,
        4321,
        90,
    )
    assert told["hyperparameters"] == {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 2.0}
    assert manifest.measurements["rows_per_epoch"] == 24
    assert f"job {job['id']} makes {one.id}" in capfd.readouterr().err


def test_no_system_message_means_none(store: Store) -> None:
    table = read_whole(store, made.dataset(store, "one", 4))
    assert [len(json.loads(line)["messages"]) for line in json_lines(table, None).splitlines()] == [2] * 4


def test_a_driver_killed_between_create_and_poll_goes_on(
    store: Store, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = tuned(store)
    with monkeypatch.context() as killing:
        killing.setattr(stage._Stage, "_known", _die)
        with pytest.raises(BaseExceptionGroup):
            make(store, api, one)
    assert len(api.jobs) == 1
    before = json.loads(store.read_document(document_name(one.id)) or b"")
    assert before["job"] == "ftjob-0" and before["file"] == "file-0"
    asked = len(api.requests)
    assert make(store, api, one) == [None]
    assert {method for method, _ in api.requests[asked:]} == {"GET"}
    assert len(api.jobs) == len(api.files) == 1
    assert store.manifest(one.id).measurements["rows_per_epoch"] == 24  # type: ignore[union-attr]


def _die(*given: Any, **named: Any) -> Any:
    raise Killed


def test_a_driver_killed_before_it_wrote_the_job_down_finds_it(
    store: Store, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = tuned(store), tuned(store, seed=1)
    assert make(store, api, other) == [None]
    with monkeypatch.context() as killing:
        killing.setattr(stage._Stage, "_write", _die)
        with pytest.raises(BaseExceptionGroup):
            make(store, api, one)
    assert len(api.files) == 2 and len(api.jobs) == 1
    api.keeps_metadata = False
    with monkeypatch.context() as killing:
        killing.setattr(stage._Stage, "_write", lambda self, artefact, note: _die() if "job" in note else None)
        with pytest.raises(BaseExceptionGroup):
            make(store, api, one)
    assert len(api.jobs) == 2 and store.read_document(document_name(one.id)) is None
    assert make(store, api, one) == [None]
    assert len(api.jobs) == 2 and len(api.files) == 2
    assert store.manifest(one.id).measurements["job"] == "ftjob-1"  # type: ignore[union-attr]


def test_a_create_that_broke_off_after_it_was_done_is_not_repeated(store: Store, api: Api) -> None:
    def break_off(number: int) -> None:
        raise Fault(500, f"lost in the middle; you sent {KEY}")

    api.after_create = break_off
    assert make(store, api, tuned(store)) == [None]
    assert len(api.jobs) == 1 and api.made("/fine_tuning/jobs") == 1


def test_a_failed_job_tells_why_and_the_next_run_starts_another(store: Store, api: Api, tmp_path: Path) -> None:
    one = tuned(store)
    api.path, api.error = ("queued", "failed"), {"code": "bad_file", "message": f"line 3 is empty (key {KEY})"}
    assert make(store, api, one) == ["fine-tuning job ftjob-0 failed: line 3 is empty (key <key>) (bad_file)"]
    assert store.manifest(one.id) is None and store.read_document(document_name(one.id)) is None
    api.path = ("running", "succeeded")
    assert make(store, api, one) == [None]
    assert len(api.jobs) == 2 and len(api.files) == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY[3:15].encode() in path.read_bytes()]


def test_a_cancelled_job_fails_its_finetune_alone(store: Store, api: Api) -> None:
    first, second = tuned(store), tuned(store, seed=1)

    def cancel(number: int) -> None:
        if not number:
            api.jobs[0]["status"] = "cancelled"

    api.after_create = cancel
    assert make(store, api, first, second, concurrent_finetunes=1) == [
        "fine-tuning job ftjob-0 was cancelled at the API",
        None,
    ]


def test_jobs_run_side_by_side_up_to_the_limit(store: Store, api: Api) -> None:
    api.path = ("queued", "running", "running", "succeeded")
    most = []
    api.after_create = lambda number: most.append(sum(job["status"] != "succeeded" for job in api.jobs))
    assert make(store, api, *(tuned(store, seed=seed) for seed in range(5)), concurrent_finetunes=2) == [None] * 5
    assert max(most) == 2 and len(api.jobs) == 5


def test_a_wrong_key_is_one_clear_error(store: Store, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "other-key-9876543210")
    with pytest.raises(ApiError, match="refuses the key") as caught:
        make(store, api, tuned(store), tuned(store, seed=1))
    assert "987654" not in str(caught.value) and not api.files and not api.jobs


def test_a_server_without_fine_tuning_is_one_clear_error(store: Store, api: Api) -> None:
    api.tunes = False
    with pytest.raises(ApiError, match="no fine-tuning there"):
        make(store, api, tuned(store), tuned(store, seed=1))


def test_a_server_that_would_train_otherwise_is_stopped(store: Store, api: Api) -> None:
    api.epochs = 4
    (error,) = make(store, api, tuned(store, epochs=2))
    assert error is not None and "would train 4 epochs, expected 2" in error
    assert api.jobs[0]["status"] == "cancelled"


def test_epochs_are_whole(store: Store, api: Api) -> None:
    with pytest.raises(InputError, match=r"finetune.epochs: found 1.5"):
        make(store, api, tuned(store, epochs=1.5))
    assert not api.requests


def test_a_job_at_another_server_is_not_started_again_here(store: Store, api: Api) -> None:
    one = tuned(store)
    note = {"api": "http://there/v1", "file": "file-9", "job": "ftjob-9", "data": {}}
    store.write_document(document_name(one.id), json.dumps(note).encode())
    (error,) = make(store, api, one)
    assert error is not None and "under way at http://there/v1 (job ftjob-9)" in error and not api.jobs
    note["api"] = api.url
    store.write_document(document_name(one.id), json.dumps(note).encode())
    (error,) = make(store, api, one)
    assert error is not None and "404: No job ftjob-9" in error and document_name(one.id) in error and not api.jobs
