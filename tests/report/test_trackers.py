"""What trackers are sent is read back by their own readers, comes once however often it is sent, and harms no run."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from loss_logs import commit as commit_finetunes
from loss_logs import log
from made_sweeps import commit_sweep
from typer.testing import CliRunner

from kvray.cli import app
from kvray.errors import InputError
from kvray.report.trackers import content, send
from kvray.report.trackers.send import Sending, everything
from kvray.store.store import Store

PNG = b"\x89PNG\r\n\x1a\n"
LOSSES = [2.5, 1.5, 0.5, 0.25]
WHOLE = {"mdqa20", "recall"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with a sweep of two mixtures, "first", evaluated and reported, and one of two loss logs, "curves"."""
    store = Store(tmp_path_factory.mktemp("made"))
    commit_sweep(store, mixtures=("ours", "mdqa"), seeds=(0,), questions=20)
    steps = log(LOSSES, LOSSES, LOSSES)
    commit_finetunes(store, [("ours", "lora", 0, steps), ("ours", "lora", 1, steps), ("api", "api", 0, None)], "curves")
    content.scores(store, "first")
    return store


def scores_of(store: Store) -> Mapping[str, float]:
    frame = pl.read_parquet(Path(store.path("reports/first", "scores.parquet")))
    whole = frame.filter(pl.col("position").is_null() & pl.col("subtask").is_null() & pl.col("condition").is_null())
    return {f"{row['evaluation']}/{row['mixture'] or 'base'}": row["accuracy"] for row in whole.to_dicts()}


# What there is to send.


def test_a_curve_has_every_step_with_the_time_at_which_it_was_measured(made: Store) -> None:
    first, second, api = content.curves(made, "curves")
    assert first.steps == [1, 2, 3, 4] and first.series["loss"] == LOSSES
    assert (first.config["mixture"], first.config["seed"], second.config["seed"]) == ("ours", 0, 1)
    assert str(first.config["artefact"]).startswith("finetunes/ours-s0-")
    assert not api.steps, "an API tells no losses"
    assert [curve.name for curve in (first, second, api)] == ["ours-lora-s0", "ours-lora-s1", "api-api-s0"]
    assert len({curve.key for curve in (first, second, api)}) == 3
    assert content.curves(made, "curves")[0].key == first.key, "the same whenever it is sent"
    assert [curve.name for curve in content.curves(made, "curves", [str(second.config["artefact"])])] == [second.name]


def test_scores_are_those_of_the_report_with_figures_and_every_id(made: Store) -> None:
    scores = content.scores(made, "first")
    assert {row["evaluation"] for row in scores.rows} == WHOLE
    assert {row["model"] for row in scores.rows} == {"base", "ours", "mdqa"}
    assert scores.figures and all(png.startswith(PNG) for png in scores.figures.values())
    planned = made.plan_document("first")["artefacts"]
    assert scores.config["artefacts"] == [each["id"] for each in planned]
    values = scores.values()
    assert values["low/recall/ours"] <= values["accuracy/recall/ours"] <= values["high/recall/ours"]
    assert content.scores(made, "first").digest == scores.digest


# TensorBoard.


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "runs"))
    yield tmp_path / "runs"


def read_back(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    accumulator.Reload()
    return accumulator


def scalars(accumulator: Any, tag: str) -> list[tuple[int, float]]:
    from tensorboard.util.tensor_util import make_ndarray

    return [(each.step, float(make_ndarray(each.tensor_proto))) for each in accumulator.Tensors(tag)]


def test_event_files_are_read_back_by_tensorboard(made: Store, events: Path) -> None:
    assert everything(made, "curves", ["tensorboard"])["tensorboard"] == f"tensorboard --logdir {events}"
    curve = content.curves(made, "curves")[0]
    found = read_back(events / "curves" / curve.name)
    assert scalars(found, "loss") == list(zip(curve.steps, LOSSES, strict=True))
    assert found.Tensors("loss")[-1].wall_time == pytest.approx(curve.times[-1])
    everything(made, "first", ["tensorboard"])
    for name, accuracy in scores_of(made).items():
        evaluation, model = name.split("/")
        found = read_back(events / "first" / "scores" / model)
        assert scalars(found, f"accuracy/{evaluation}") == [(0, pytest.approx(accuracy))]
    report = read_back(events / "first" / "report")
    figures = content.scores(made, "first").figures
    for name, png in figures.items():
        (image,) = report.Tensors(f"figures/{name}")
        assert image.tensor_proto.string_val[2] == png
    assert b"| mdqa20 | ours |" in report.Tensors("scores")[0].tensor_proto.string_val[0]


def test_what_is_sent_again_to_tensorboard_leaves_its_files_alone(made: Store, events: Path) -> None:
    def files() -> dict[str, int]:
        return {str(file): file.stat().st_mtime_ns for file in events.rglob("events*")}

    for sweep in ("first", "curves"):
        everything(made, sweep, ["tensorboard"])
    before = files()
    foreign = events / "first" / "report" / "events.out.tfevents.1.mine"
    foreign.write_bytes(b"")
    gone = events / "first" / "scores" / "gone" / f"events.out.tfevents.1.kvray-{'0' * 12}"
    gone.parent.mkdir()
    gone.write_bytes(b"")
    for sweep in ("first", "curves"):
        everything(made, sweep, ["tensorboard"])
    assert not gone.exists(), "a model that the sweep has no more"
    assert {name: at for name, at in files().items() if name != str(foreign)} == before and foreign.exists()


def test_without_a_folder_of_its_own_event_files_lie_in_the_store(made: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    place = everything(made, "curves", ["tensorboard"])["tensorboard"]
    assert place == f"tensorboard --logdir {made.root}/tensorboard"
    assert len(list(Path(made.root, "tensorboard", "curves").rglob("events*"))) == 4


# MLflow.


@pytest.mark.parametrize("scheme", ["file", "sqlite"])
def test_mlflow_has_a_run_per_finetune_below_that_of_the_sweep_each_once(
    scheme: str, made: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    uri = f"file://{tmp_path}/mlruns" if scheme == "file" else f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)  # where a database's artefacts go
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "needles")
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    for _ in range(2):
        everything(made, "curves", ["mlflow"])
        experiment = client.get_experiment_by_name("needles")
        assert experiment is not None
        runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
        assert len(client.search_runs([experiment.experiment_id])) == len(runs) == 4
        curve = content.curves(made, "curves")[0]
        run = runs[curve.name]
        history = client.get_metric_history(run.info.run_id, "loss")
        assert [(each.step, each.value) for each in history] == list(zip(curve.steps, LOSSES, strict=True))
        assert run.data.params["mixture"] == "ours" and run.data.params["artefact"] == curve.config["artefact"]
        assert run.data.tags["mlflow.parentRunId"] == runs["curves"].info.run_id
        assert {each.info.status for each in runs.values()} == {"FINISHED"}
    # One that was sent in part is sent anew.
    client.delete_tag(run.info.run_id, "kvray.digest")
    everything(made, "curves", ["mlflow"])
    assert len(client.search_runs([experiment.experiment_id])) == 4
    for _ in range(2):
        everything(made, "first", ["mlflow"])
        (sweep,) = client.search_runs([experiment.experiment_id], "attributes.run_name = 'first'")
        for name, accuracy in scores_of(made).items():
            (point,) = client.get_metric_history(sweep.info.run_id, f"accuracy/{name}")
            assert point.value == pytest.approx(accuracy)
        files = {each.path for each in client.list_artifacts(sweep.info.run_id)}
        assert files == {"figures", "sweep.yaml", "config.json", "scores.json"}
        drawn = {Path(each.path).stem for each in client.list_artifacts(sweep.info.run_id, "figures")}
        assert drawn == set(content.scores(made, "first").figures)


def test_a_place_that_mlflow_cannot_open_is_told_before_anything_is_sent(
    made: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"nowhere://me:secret@{tmp_path}")
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI") as raised:
        send.opened(made, "curves", ["mlflow"])
    assert "secret" not in str(raised.value)


def test_a_database_without_the_packages_that_open_it_is_told_with_what_to_type(
    made: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr("kvray.errors.installed", lambda package: package not in ("sqlalchemy", "alembic"))
    with pytest.raises(InputError, match=r"sqlalchemy and alembic, which are not installed: type pip install .*mlflow"):
        send.opened(made, "curves", ["mlflow"])


# Weights & Biases.


def whole(file: Path) -> list[Any]:
    """Return the records of a .wandb file once its last one, which wandb's own process writes, is there."""
    deadline = time.monotonic() + 30
    while not (found := list(records(file))) or found[-1].WhichOneof("record_type") != "exit":
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found


def records(file: Path) -> Iterator[Any]:
    """Yield the records of a .wandb file: LevelDB's log format after a header of 7 bytes, of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if at + 7 + length > len(data):
            return
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            record = Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def test_an_offline_run_of_wandb_holds_curves_scores_and_figures_each_once(
    made: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_PROJECT", "needles")
    curve, scores = content.curves(made, "curves")[0], content.scores(made, "first")
    tracker = send.opened(made, "first", ["wandb"])["wandb"]
    for _ in range(2):
        tracker.finetune(curve)
        tracker.scores(scores)
        folders = {folder.name.rpartition("-")[2]: folder for folder in (tmp_path / "wandb").glob("offline-run-*")}
        assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2
        assert set(folders) == {curve.key, scores.key}
    found = whole(folders[curve.key] / f"run-{curve.key}.wandb")
    (run,) = [each.run for each in found if each.WhichOneof("record_type") == "run"][:1]
    assert (run.project, run.run_group, run.job_type, run.run_id) == ("needles", "first", "finetune", curve.key)
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["mixture"] == "ours" and config["artefact"] == curve.config["artefact"]
    history = [each.history for each in found if each.WhichOneof("record_type") == "history"]
    points = [{item.key or item.nested_key[0]: json.loads(item.value_json) for item in each.item} for each in history]
    assert [(each["_step"], each["loss"]) for each in points] == list(zip(curve.steps, LOSSES, strict=True))
    files = folders[scores.key] / "files"
    assert (files / "sweep.yaml").exists()
    images = {file.stem.rpartition("_")[0].rpartition("_")[0]: file for file in (files / "media").rglob("*.png")}
    assert set(images) == set(scores.figures)
    summary = {}
    for each in whole(folders[scores.key] / f"run-{scores.key}.wandb"):
        if each.WhichOneof("record_type") == "summary":
            update = each.summary.update
            summary |= {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in update}
    for name, accuracy in scores_of(made).items():
        assert summary[f"accuracy/{name}"] == pytest.approx(accuracy)


def test_wandb_without_a_key_is_told_before_anything_starts(
    made: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    code = (
        "import sys; from kvray.report.trackers.send import opened; from kvray.store.store import Store\n"
        "from kvray.errors import InputError\n"
        "try: opened(Store(sys.argv[1]), 'first', ['wandb'])\n"
        "except InputError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, made.uri],
        env=kept | {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none"), "WANDB_CONFIG_DIR": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert "wandb has no API key; type wandb login, or set WANDB_API_KEY, or WANDB_MODE=offline" in done.stdout, done


# A run.


class Broken:
    """A tracker whose server is away; it is slow, too."""

    place = "nowhere"

    def __init__(self, store: Store, sweep: str) -> None:
        self.asked = 0

    def finetune(self, curve: content.Curve) -> None:
        self.asked += 1
        time.sleep(0.1)
        raise ConnectionError("the server is away")

    def scores(self, scores: content.Scores) -> None:
        raise AssertionError("it was left out")


class Kept(Broken):
    """A tracker that keeps what it is sent."""

    def __init__(self, store: Store, sweep: str) -> None:
        self.took: list[str] = []

    def finetune(self, curve: content.Curve) -> None:
        self.took.append(curve.name)

    def scores(self, scores: content.Scores) -> None:
        self.took.append("scores")


def test_a_tracker_that_fails_is_one_warning_and_others_get_everything(
    made: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(send, "TRACKERS", {"json": Broken, "csv": Kept})  # names of packages that are there
    with Sending(made, "curves", ["json", "csv"]) as sending:
        kept = sending._trackers["csv"]
        for one in (each["id"] for each in made.plan_document("curves")["artefacts"]):
            sending.committed(one)
        sending.committed("datasets/ours-0123")
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "kvray: warning: json: the server is away; the run goes on without it; to send it later: kvray report curves "
        "--trackers json",
        "kvray: csv: nowhere",
    ]
    names = [curve.name for curve in content.curves(made, "curves")]
    assert isinstance(kept, Kept) and kept.took == [*names, *names, "scores"]


def test_an_interrupted_run_waits_for_no_tracker(made: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(send, "TRACKERS", {"csv": Kept})
    monkeypatch.setattr(send, "_INTERRUPTED_S", 0.5)
    sending = Sending(made, "curves", ["csv"])
    kept = sending._trackers["csv"]
    with pytest.raises(KeyboardInterrupt), sending:
        raise KeyboardInterrupt
    assert isinstance(kept, Kept) and "scores" not in kept.took


def test_a_missing_package_and_an_unknown_tracker_are_told_with_what_to_type(
    made: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(send.importlib.util, "find_spec", lambda name: None if name == "wandb" else name)
    with pytest.raises(InputError, match=r"runtime\.trackers: found wandb, .*pip install '\.\[wandb\]'"):
        Sending(made, "curves", ["wandb"])
    result = CliRunner().invoke(app, ["report", "first", "--store", made.uri, "--trackers", "wandb"])
    assert result.exit_code == 2 and "[wandb]" in result.output
    result = CliRunner().invoke(app, ["report", "first", "--store", made.uri, "--trackers", "neptune"])
    assert result.exit_code == 2 and "found 'neptune'; expected one of tensorboard, mlflow, wandb" in result.output


def test_a_plan_warns_of_a_missing_package_as_it_may_be_run_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(send.importlib.util, "find_spec", lambda name: None)
    file = tmp_path / "sweep.yaml"
    file.write_text("name: s\nbase_model: kvray-tiny\nevaluate:\n  recall: {task: recall, questions: 5}\n")
    words = ["plan", str(file), "--store", str(tmp_path), "--set", "runtime.trackers=[wandb]"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "warning: runtime.trackers: found wandb, whose package is not installed" in result.stderr


def test_the_report_command_sends_a_finished_sweep(made: Store, events: Path) -> None:
    result = CliRunner().invoke(app, ["report", "first", "--store", made.uri, "--trackers", "tensorboard"])
    assert result.exit_code == 0, result.output
    assert f"tensorboard: tensorboard --logdir {events}" in result.stdout
    assert list((events / "first" / "report").glob("events*"))
