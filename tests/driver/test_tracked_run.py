"""A run tells its trackers of each finetune as it is committed and of everything at its end; none of them harms it."""

from __future__ import annotations

from pathlib import Path

import pytest
from planned_toys import BASE, toy_plan
from test_run import Stages, stages

from kvray.driver import run as running
from kvray.errors import InputError
from kvray.report.trackers import send
from kvray.report.trackers.content import Curve, Scores
from kvray.store.store import Store

__all__ = ["stages"]


class Notes:
    """A tracker that notes what it is sent."""

    place = "here"
    took: list[str]

    def __init__(self, store: Store, sweep: str) -> None:
        assert sweep == "s"
        type(self).took = []

    def finetune(self, curve: Curve) -> None:
        self.took.append(str(curve.config["artefact"]))

    def scores(self, scores: Scores) -> None:
        self.took.append("scores")


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> type[Notes]:
    monkeypatch.setattr(send, "TRACKERS", {"tensorboard": Notes})
    monkeypatch.setattr(send.importlib.util, "find_spec", lambda name: name)
    return Notes


def test_each_finetune_is_told_when_it_is_committed_and_all_at_the_end(
    stages: Stages, notes: type[Notes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracked = {"num_cpus": 1, "trackers": "tensorboard"}
    store, planned = Store(tmp_path), toy_plan(runtime=tracked, evaluate={})
    assert planned.sweep.runtime.trackers == ("tensorboard",)
    result = running.run(planned, BASE, store)
    finetunes = [one.id for one in planned.artefacts if one.kind == "finetune"]
    assert result.exit_status == 0
    assert sorted(notes.took[: len(finetunes)]) == sorted(finetunes)
    assert notes.took[len(finetunes) :] == [*finetunes, "scores"]
    assert "kvray: tensorboard: here" in capsys.readouterr().err
    # A finished sweep is sent whole by the same command.
    assert running.run(planned, BASE, store).nothing_to_do
    assert notes.took == [*finetunes, "scores"]


def test_a_report_that_cannot_be_made_is_a_warning_and_no_failure(
    stages: Stages, notes: type[Notes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = toy_plan(runtime={"num_cpus": 1, "trackers": "tensorboard"})  # whose answers lack columns
    result = running.run(planned, BASE, Store(tmp_path))
    assert result.exit_status == 0 and not result.failed
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == 1 and warnings[0].endswith("to send it later: kvray report s --trackers tensorboard")


def test_nothing_is_sent_unless_the_sweep_asks_for_it(
    stages: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(send, "TRACKERS", {})
    assert running.run(toy_plan(), BASE, Store(tmp_path)).exit_status == 0


def test_an_absent_package_ends_a_run_before_anything_is_made_and_a_plan_says_so(
    stages: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(send.importlib.util, "find_spec", lambda name: None)
    store, planned = Store(tmp_path), toy_plan(runtime={"num_cpus": 1, "trackers": ["mlflow", "wandb"]})
    with pytest.raises(InputError) as raised:
        running.run(planned, BASE, store)
    assert [line.split(",")[0] for line in raised.value.problems] == [
        "runtime.trackers: found mlflow",
        "runtime.trackers: found wandb",
    ]
    assert not stages.made and store.documents("sweeps/") == []
