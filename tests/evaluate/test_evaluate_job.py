"""The stage as a whole, on a real Ray and real engines."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import evaluate_store as made
import psutil
import pytest

from kvray import results
from kvray.errors import ResourceError
from kvray.evaluate import chunks
from kvray.evaluate.job import evaluate
from kvray.models.reference import BaseModelRef
from kvray.store.store import Store
from kvray.sweep.model import Runtime

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_two_cpus")]
ROWS = 300
LONG = (5, 280)


def ids(table) -> list[str]:
    return sorted(table["example_id"].to_pylist())


def kill_one_engine(store: Store, artefact_id: str, killed: list[int]) -> None:
    """Wait for the first chunk, then SIGKILL this test's Ray worker that runs the trial."""
    first = Path(store.path(artefact_id, chunks.chunk_name(0)))
    deadline = time.monotonic() + 120
    engines: list[psutil.Process] = []
    while time.monotonic() < deadline and not first.exists():
        # Found before there is a chunk: the others follow it within a second.
        engines = engines or [child for child in psutil.Process().children(recursive=True) if runs_a_trial(child)]
        time.sleep(0.01)
    for engine in engines:
        killed.append(engine.pid)
        engine.kill()


def runs_a_trial(process: psutil.Process) -> bool:
    try:
        command = "".join(process.cmdline()[:1])
    except psutil.Error:
        return False
    return command.startswith("ray::") and ".train" in command


def test_cells_stand_or_fail_alone_and_every_row_is_there_once(
    base: BaseModelRef, adapters: dict[str, Path], tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    examples = made.example_table(ROWS, LONG)
    data = made.dataset(store, examples)
    finetunes = {kind: made.finetune(store, kind, adapters[kind]) for kind in ("real", "other", "zero", "cut")}
    finetunes["full"] = made.finetune(store, "full", made.make_full(base, tmp_path / "full"))
    # One byte of a committed adapter is turned.
    finetunes["bad"] = made.finetune(store, "bad", adapters["other"])
    weights = Path(store.path(finetunes["bad"], "adapter_model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    cells = {kind: made.predictions(store, data, name) for kind, name in finetunes.items()}
    cells["base"] = made.predictions(store, data, None)

    outcomes = {
        outcome.artefact_id: outcome.error for outcome in evaluate(list(cells.values()), store, base, Runtime())
    }

    errors = {kind: outcomes[cell.id] for kind, cell in cells.items()}
    assert {kind for kind, error in errors.items() if error is None} == {"base", "real", "other", "full"}
    assert "changes nothing" in errors["zero"]
    assert "cannot load it" in errors["cut"]
    assert "sha256" in errors["bad"]
    for kind in ("base", "real", "other", "full"):
        cell = cells[kind]
        assert store.problems(cell.id, verify=True) == []
        table = store.read_table(cell.id)
        assert ids(table) == ids(examples)
        rows = {row["example_id"]: row for row in table.to_pylist()}
        for number in LONG:
            row = rows[f"e{number:05d}"]
            assert row["finish_reason"] == "too_long" and row["answer"] is None and row["score"] is None
            assert row["prompt_tokens"] > made.MODEL_LENGTH - 100
        run = [row for row in rows.values() if row["finish_reason"] != "too_long"]
        assert len(run) == ROWS - len(LONG)
        assert all(row["score"] in (0.0, 1.0) and row["output_tokens"] > 0 for row in run)
        manifest = store.manifest(cell.id)
        assert manifest is not None and manifest.measurements["too_long"] == 2 and manifest.measurements["engines"]
        assert {row["adapter"] for row in run} == {None if kind == "base" else finetunes[kind].rpartition("/")[2]}
    for kind in ("zero", "cut", "bad"):
        assert store.manifest(cells[kind].id) is None
        assert store.read_document(f"failures/{cells[kind].id}.json")

    def answers(kind: str) -> list[str]:
        return store.read_table(cells[kind].id)["answer"].to_pylist()

    assert answers("base") != answers("real") != answers("other")
    assert answers("full") != answers("base")
    assert results.open(store).predictions().collect().is_empty()  # no sweep names them


def test_an_engine_that_is_killed_is_started_again_and_loses_and_doubles_nothing(
    base: BaseModelRef, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    examples = made.example_table(6 * chunks.CHUNK_ROWS)
    cell = made.predictions(store, made.dataset(store, examples), None)
    killed: list[int] = []
    watcher = threading.Thread(target=kill_one_engine, args=(store, cell.id, killed))
    watcher.start()
    (outcome,) = evaluate([cell], store, base, Runtime(retries=1))
    watcher.join()
    assert killed and outcome.error is None
    assert ids(store.read_table(cell.id)) == ids(examples)
    assert store.problems(cell.id, verify=True) == []


def test_two_engines_share_a_cell_and_one_without_weights_fails_after_its_retries(
    base: BaseModelRef, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    examples = made.example_table(2 * chunks.CHUNK_ROWS)
    data = made.dataset(store, examples)
    cell = made.predictions(store, data, None)
    # Whole by its manifest, but no vLLM can load it: the engine itself dies.
    broken = made.make_full(base, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"no weights")
    dead = made.predictions(store, data, made.finetune(store, "broken", broken))
    good, bad = evaluate([cell, dead], store, base, Runtime(engines=2, retries=0))
    assert good.error is None and ids(store.read_table(cell.id)) == ids(examples)
    assert bad.error is not None and "retries included" in bad.error and len(bad.error.splitlines()) == 1


def test_a_resource_that_cannot_be_had_is_an_error_at_once(base: BaseModelRef, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    cell = made.predictions(store, made.dataset(store, made.example_table(4)), None)
    started = time.monotonic()
    with pytest.raises(ResourceError, match="GPU: one engine needs 1"):
        evaluate([cell], store, base, Runtime(gpus_per_engine=1))
    assert time.monotonic() - started < 10
