"""Whole sweeps through the command line: real Ray, real finetuning, real vLLM, and a driver that is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest
import terminals

import kvray.results
from kvray.store.schemas import PREDICTIONS_SCHEMA

pytestmark = pytest.mark.slow
COLUMNS = (
    "sweep evaluation task base_model mixture finetune seed adapter dataset example_id question_id position units "
    "length depth subtask condition prompt_tokens cached_tokens output_tokens answer references score outcome "
    "finish_reason"
).split()
SWEEP = """
name: small
base_model: kvray-tiny
datasets:
  kv: {task: simple_kv, rows: 48, dictionaries: 4}
  more: {task: simple_kv, rows: 56, dictionaries: 4, seed: 1}
mixtures:
  kv: {kv: 1}
finetune: {method: lora, epochs: 1, learning_rate: 1e-3, batch_size: 8, lora_rank: 8, lora_alpha: 16}
evaluate:
  mdqa: {task: mdqa, documents: 3, positions: [1, 3], questions: 8}
  recall: {task: recall, questions: 10}
runtime: {num_cpus: 2, object_store_memory: 200_000_000, checkpoint_every_steps: 1}
"""


def kvray_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "kvray.cli", *arguments]


def environment(store: Path | str) -> dict[str, str]:
    return {**os.environ, "KVRAY_STORE": str(store), "RAY_AUTH_MODE": "disabled", "PYTHONUNBUFFERED": "1"}


def call(store: Path | str, *arguments: str, timeout: float = 400) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        kvray_command(*arguments), env=environment(store), capture_output=True, text=True, timeout=timeout, check=False
    )


def killed(store: Path, sweep: Path, when: Callable[[], bool]) -> None:
    """Start a run and SIGKILL its driver as soon as ``when`` holds."""
    log = store.parent / "killed.log"
    with log.open("w") as stream:
        driver = subprocess.Popen(
            kvray_command("run", str(sweep)), env=environment(store), stdout=stream, stderr=stream
        )
        deadline = time.monotonic() + 300
        while not when():
            assert driver.poll() is None, f"the run ended before it could be killed:\n{log.read_text()}"
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    # Ray's processes see that their driver is gone and leave; the next run must not need that, but the machine does.
    time.sleep(2)


def contents(store: Path) -> tuple[dict, pl.DataFrame]:
    """Return the status and the predictions without what no two runs have in common."""
    status = json.loads(call(store, "status", "small", "--json").stdout)
    del status["spent_hours"]
    rows = kvray.results.open(store).predictions(sweep="small").collect()
    kept = rows.select(
        "evaluation", "mixture", "finetune", "seed", "example_id", "question_id", "position", "references"
    )
    return status, kept.sort("evaluation", "mixture", "example_id", nulls_last=True)


def interrupted(store: Path, sweep: Path, when: Callable[[], bool]) -> terminals.Seen:
    """Run in a terminal and press Ctrl-C as soon as ``when`` holds."""
    return terminals.run(
        kvray_command("run", str(sweep)), environment=environment(store), interrupt=lambda output: when()
    )


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, terminals.Seen]:
    """A run in a terminal, a narrow one, as whoever watches it sees it."""
    folder = tmp_path_factory.mktemp("sweep")
    sweep = folder / "small.yaml"
    sweep.write_text(SWEEP)
    store = folder / "store"
    seen = terminals.run(kvray_command("run", str(sweep)), columns=60, environment=environment(store))
    assert seen.status == 0, seen.raw
    return sweep, store, seen


@pytest.fixture(scope="module")
def undisturbed(watched: tuple[Path, Path, terminals.Seen]) -> tuple[Path, Path]:
    return watched[:2]


def test_in_a_narrow_terminal_the_bars_move_and_the_report_is_named(
    watched: tuple[Path, Path, terminals.Seen],
) -> None:
    _, store, seen = watched
    for stage, amount in {"generate": "rows", "finetune": "finetunes", "evaluate": "rows"}.items():
        drawn = [frame for frame in seen.frames if re.match(rf"{stage} +\d+/\d+ {amount}", frame)]
        assert len(drawn) > 1, f"the bar of {stage} moved"
        assert max(map(len, drawn)) <= 60
        assert len([line for line in seen.screen if line.startswith(f"{stage} ")]) == 1, "a bar has a line of its own"
    assert f"report: {store}/reports/small/report.html" in "".join(seen.screen)
    assert "Traceback" not in seen.raw


def test_a_sweep_ends_in_predictions_and_a_report(undisturbed: tuple[Path, Path]) -> None:
    _, store = undisturbed
    rows = kvray.results.open(store).predictions(sweep="small").collect()
    assert PREDICTIONS_SCHEMA.names[: len(COLUMNS)] == COLUMNS == rows.columns[: len(COLUMNS)]
    assert rows.height == 2 * (16 + 10)
    assert rows.select(pl.struct("mixture", "example_id").is_unique().all()).item()
    base = rows.filter(pl.col("adapter").is_null())
    assert base.height == 26 and base["seed"].null_count() == base["mixture"].null_count() == 26
    assert rows["score"].is_between(0, 1).all() and rows["finish_reason"].is_in(["stop", "length"]).all()
    assert set(rows.filter(pl.col("evaluation") == "mdqa")["position"]) == {1, 3}
    report = store / "reports" / "small"
    html = (report / "report.html").read_text()
    assert "<svg" in html and "http://" not in html.replace("http://www.w3.org", "")
    assert pl.read_parquet(report / "scores.parquet").height > 0
    assert list((report / "figures").glob("*.png")) and (report / "report.md").read_text().startswith("#")


def test_running_again_does_nothing_and_quickly(undisturbed: tuple[Path, Path]) -> None:
    sweep, store = undisturbed
    before = {path: path.stat().st_mtime_ns for path in store.rglob("manifest.json")}
    again = call(store, "run", str(sweep))
    assert again.returncode == 0 and "nothing to do" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in store.rglob("manifest.json")} == before


def test_an_added_mixture_and_a_damaged_artefact_run_and_nothing_else(undisturbed: tuple[Path, Path]) -> None:
    sweep, store = undisturbed
    before = {path: path.stat().st_mtime_ns for path in store.rglob("manifest.json")}
    victim = next(store.glob("predictions/recall-base-*/data/*.parquet"))
    victim.write_bytes(victim.read_bytes()[:-10])
    plan = json.loads(call(store, "plan", str(sweep), "--json").stdout)
    again = [(each["id"], each["why"]) for each in plan["artefacts"] if each["state"] != "cached"]
    assert [artefact for artefact, _ in again] == [f"predictions/{victim.parents[1].name}"] and "damaged" in again[0][1]
    grown = sweep.with_name("grown.yaml")
    grown.write_text(
        SWEEP.replace("  kv: {kv: 1}", "  kv: {kv: 1}\n  more: {more: 1}").replace("name: small", "name: grown")
    )
    done = call(store, "run", str(grown))
    assert done.returncode == 0 and "is damaged and will be made again" in done.stderr, done.stderr
    after = {path: path.stat().st_mtime_ns for path in store.rglob("manifest.json")}
    assert [path for path in before if after[path] != before[path]] == [victim.parents[1] / "manifest.json"]
    # One dataset, one finetune, two predictions.
    assert sorted(path.parts[-3] for path in after if path not in before) == [
        "datasets", "finetunes", "predictions", "predictions",
    ]  # fmt: skip
    rows = kvray.results.open(store).predictions(sweep="grown").collect()
    assert set(rows["mixture"]) == {None, "kv", "more"} and set(rows["sweep"]) == {"grown"}
    assert json.loads(call(store, "status", "small", "--json").stdout)["committed"] == 8


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary directory for the commands of a test; its path is short, as sockets are in it."""
    with tempfile.TemporaryDirectory(prefix="k-", ignore_cleanup_errors=True) as place:
        monkeypatch.setenv("TMPDIR", place)
        yield Path(place)


def test_killed_and_interrupted_in_each_stage_a_sweep_ends_in_the_same_artefacts(
    undisturbed: tuple[Path, Path], tmp_path: Path, scratch: Path
) -> None:
    sweep, reference = undisturbed
    store = tmp_path / "store"

    def more(pattern: str) -> Callable[[], bool]:
        before = set(store.glob(pattern))
        return lambda: not before.issuperset(store.glob(pattern))

    def ctrl_c(when: Callable[[], bool]) -> None:
        seen = interrupted(store, sweep, when)
        assert seen.status == 130, seen.raw
        told = [line for line in seen.raw.splitlines() if line.startswith("kvray: interrupted")]
        kept = rf"{store}: \d of 8 artefacts, and of what was under way the shards, checkpoints and answers so far\."
        go_on = rf"To go on: \S+ -m kvray\.cli run {re.escape(str(sweep))}"
        assert len(told) == 1 and re.fullmatch(f"kvray: interrupted; kept in {kept} {go_on}", told[0]), seen.raw
        assert seen.frames[-1] == told[0] and "Traceback" not in seen.raw
        assert not (store / "failures").exists() or not list((store / "failures").iterdir())
        time.sleep(1)

    def undo(kind: str) -> None:
        """Take back what the run before made of a stage: on a quick machine all, so that there is something to kill."""
        for manifest in store.glob(f"{kind}/*/manifest.json"):
            manifest.unlink()
        for chunk in store.glob(f"{kind}/*/data/chunk-*.parquet"):
            chunk.unlink()

    checkpoint = ".work/finetunes/*/step-*.safetensors"
    killed(store, sweep, more("datasets/*/data/shard-*.parquet"))
    undo("datasets")
    ctrl_c(more("datasets/*/manifest.json"))
    undo("finetunes")
    ctrl_c(more(checkpoint))
    undo("finetunes")
    another, answered = more(checkpoint), more("predictions/*/data/*.parquet")
    killed(store, sweep, lambda: another() or answered())  # a few steps take no time
    undo("finetunes")
    killed(store, sweep, more("finetunes/*/manifest.json"))
    undo("predictions")
    ctrl_c(more("predictions/*/data/*.parquet"))
    done = call(store, "run", str(sweep))
    assert done.returncode == 0, done.stderr
    status, rows = contents(store)
    expected_status, expected_rows = contents(reference)
    assert status == expected_status
    assert rows.equals(expected_rows), "no row lost, none doubled"
    assert not list(store.glob("**/.tmp-*")), "nothing half-written is left"
    assert not list(scratch.glob("kvray-*")), "nor what the killed had on their own disk"


def test_a_whole_sweep_in_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    for name, value in {"AWS_ACCESS_KEY_ID": "AKIATEST", "AWS_SECRET_ACCESS_KEY": "hidden/Key"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        bucket = boto3.resource("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1").Bucket("sweeps")
        bucket.create()
        store = f"s3://sweeps/kvray?endpoint_override=http://{host}:{port}&scheme=http"
        sweep = tmp_path / "small.yaml"
        sweep.write_text(SWEEP)
        done = call(store, "run", str(sweep))
        assert done.returncode == 0, done.stderr + done.stdout
        again = call(store, "run", str(sweep))
        assert again.returncode == 0 and "nothing to do" in again.stdout
        assert "report: s3://sweeps/kvray/reports/small/report.html" in again.stdout
        rows = kvray.results.open(store).predictions(sweep="small").collect()
        assert rows.height == 2 * (16 + 10)
        keys = {entry.key for entry in bucket.objects.all()}
        assert "kvray/reports/small/report.html" in keys
        assert not [key for key in keys if ".tmp-" in key]
        held = b"".join(entry.get()["Body"].read() for entry in bucket.objects.all() if entry.key.endswith(".json"))
        assert b"hidden/Key" not in held + done.stderr.encode() + done.stdout.encode()
    finally:
        server.stop()
