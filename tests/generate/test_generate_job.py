"""generate on a real Ray: committed datasets, the same bytes whatever the workers, a rerun does the rest alone."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import pytest

from kvray.driver.export.files import make
from kvray.errors import InputError
from kvray.generate import job
from kvray.generate.job import ROWS_PER_SHARD, build, generate, stream
from kvray.models.reference import resolve
from kvray.planning.artefacts import Artefact
from kvray.store.fingerprint import fingerprint
from kvray.store.schemas import EXAMPLE_SCHEMA
from kvray.store.store import Store, artefact_id
from kvray.tasks.base import Task
from kvray.tasks.kv.simple import SimpleKV
from kvray.tasks.kv.subkeys import MultiSubkeyKV

BASE = resolve("kvray-tiny")
ROWS = 3 * ROWS_PER_SHARD + 100
SIMPLE = SimpleKV(rows=ROWS, dictionaries=3)
SUBKEYS = MultiSubkeyKV(rows=40, dictionaries=3)


def planned(task: Task, rows: int) -> Artefact:
    recipe: dict[str, Any] = {"task": task.recipe()}
    digest = fingerprint(recipe)
    return Artefact(
        artefact_id("dataset", task.task, digest), "dataset", task.task, digest, (), rows, 0, {}, recipe, task
    )


@pytest.mark.slow
@pytest.mark.usefixtures("ray_two_cpus")
def test_datasets_are_committed_and_a_rerun_makes_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    hopeless = planned(SimpleKV(rows=5, dictionaries=3, max_tokens=110), 5)
    artefacts = [planned(SIMPLE, ROWS), hopeless, planned(SUBKEYS, 40)]
    with monkeypatch.context() as patched:
        patched.setattr(job, "ALONE_S", 0.0)  # all of it by Ray Data; the rerun below is short enough for one process
        outcomes = generate(artefacts, store, BASE)
    assert [outcome.artefact_id for outcome in outcomes] == [artefact.id for artefact in artefacts]
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]
    assert "raise max_tokens" in str(outcomes[1].error)
    assert list(store.states([a.id for a in artefacts], verify=True).values()) == ["committed", "missing", "committed"]
    table = store.read_table(artefacts[0].id)
    assert table.schema.equals(EXAMPLE_SCHEMA)
    assert table.equals(build(SIMPLE, BASE, range(ROWS)))
    manifest = store.manifest(artefacts[0].id)
    assert manifest is not None
    assert manifest.rows == ROWS
    assert manifest.measurements["prompt_tokens"] == sum(table["prompt_tokens"].to_pylist())

    # As a kill leaves it: no manifest, one shard missing, one torn, one of them whole and old.
    folder = tmp_path / artefacts[0].id
    files = {entry.name: entry for entry in manifest.files}
    kept = folder / "data/shard-00001.parquet"
    (folder / "manifest.json").unlink()
    (folder / "data/shard-00000.parquet").unlink()
    (folder / "data/shard-00002.parquet").write_bytes(kept.read_bytes()[:1000])
    before = kept.stat().st_mtime_ns
    assert generate(artefacts[:1], store, BASE)[0].error is None
    again = store.manifest(artefacts[0].id)
    assert again is not None
    assert {entry.name: entry for entry in again.files} == files
    assert kept.stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.usefixtures("ray_two_cpus")
def test_what_takes_longer_than_a_moment_goes_on_in_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(unit: int) -> dict[str, Any]:
        time.sleep(0.2)
        return {"number": unit, "process": os.getpid()}

    monkeypatch.setattr(job, "ALONE_S", 0.3)
    rows = list(job._rows(5, work, retries=0))
    assert sorted((row["unit"], row["number"]) for row in rows) == [(number, number) for number in range(5)]
    assert [row["unit"] for row in rows if row["process"] == os.getpid()] == [0, 1]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_two_cpus")
def test_a_worker_that_always_dies_fails_its_datasets_after_bounded_retries(tmp_path: Path) -> None:
    def die(unit: int) -> dict[str, Any]:
        import os

        os._exit(1)

    with pytest.raises(Exception, match=r"died|crashed|WorkerCrashed"):
        list(stream(1, die, retries=0))


def test_one_file_has_the_same_bytes_every_time_and_leaves_nothing_else(tmp_path: Path) -> None:
    task = SimpleKV(rows=ROWS_PER_SHARD + 5, dictionaries=2)
    for format in ("parquet", "jsonl", "openai"):
        first = make(task, BASE, tmp_path / "deep" / f"a.{format}", format)  # type: ignore[arg-type]
        second = make(task, BASE, tmp_path / "deep" / f"b.{format}", format, 1)  # type: ignore[arg-type]
        assert first.sha256 == second.sha256 == hashlib.sha256(Path(first.path).read_bytes()).hexdigest()
        assert first.rows == task.rows
    assert sorted(path.suffix for path in (tmp_path / "deep").iterdir()) == sorted(
        [".parquet", ".jsonl", ".openai"] * 2
    )


def test_a_failure_leaves_the_old_file_as_it_was(tmp_path: Path) -> None:
    out = tmp_path / "data.jsonl"
    out.write_text("old")
    with pytest.raises(InputError, match="raise max_tokens"):
        make(SimpleKV(rows=5, dictionaries=3, max_tokens=110), BASE, out, "jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]
    assert out.read_text() == "old"
    with pytest.raises(InputError, match="is a directory"):
        make(SIMPLE, BASE, tmp_path, "jsonl")
