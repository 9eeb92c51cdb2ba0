"""A store that an earlier kvray wrote is whole, cached and readable to this one.

``fixtures/store-2026-11`` was made by the commit that its sweep.yaml names, before the modules were moved into rooms.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

import kvray.results
from kvray.cli import app

ROOT = Path(__file__).parents[1]
FIXTURE = ROOT / "tests" / "fixtures" / "store-2026-11"
CORRECT = {
    ("mdqa", "base"): 6, ("mdqa", "kv"): 6, ("letters", "base"): 0, ("cloze", "base"): 3, ("recall", "kv"): 3,
}  # fmt: skip
"""Right answers of some cells, as the report of that time counted them."""


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    folder = tmp_path
    with tarfile.open(FIXTURE / "store.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "store"


def typed(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.stderr + result.stdout


def test_a_sweep_of_before_has_nothing_to_do(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    told = typed("run", str(FIXTURE / "sweep.yaml"), "--store", str(stored), "--verify")
    assert "nothing to do" in told
    # All but the evaluation `ruler`, whose law has changed: its dataset, and what three models said to it.
    assert json.loads(typed("status", "stored", "--store", str(stored), "--json"))["committed"] == 48
    assert (stored / "reports" / "stored" / "report.html").stat().st_size > 100_000


def test_every_artefact_of_before_is_committed_and_unharmed(stored: Path) -> None:
    status = json.loads(typed("status", "stored", "--store", str(stored), "--verify", "--json"))
    assert (status["planned"], status["committed"]) == (52, 52)


def test_answers_of_before_are_shown_with_their_prompts_and_datasets(stored: Path) -> None:
    results = kvray.results.open(str(stored))
    rows = results.examples("mdqa", "kv")
    assert rows.height and rows["prompt"].null_count() == 0 and rows["gold"].list.len().min() == 1
    assert rows["dataset"].str.starts_with("datasets/mdqa").all()
    assert all(piece in prompt for piece, prompt in rows.explode("gold").select("gold", "prompt").iter_rows())
    assert "== mdqa · base · position" in typed("show", "stored", "--evaluation", "mdqa", "--store", str(stored))
    benchmark = typed("show", "stored", "--evaluation", "letters", "--limit", "1", "--store", str(stored))
    assert "lm-evaluation-harness brings it" in benchmark
    assert {path.parent.name for path in stored.glob("predictions/*/chunk-*.parquet")} == {
        one.rpartition("/")[2] for one in results.predictions("stored").collect()["artefact"]
    }, "the files lie where they were written"


def test_predictions_of_before_read_as_they_did(stored: Path) -> None:
    rows = kvray.results.open(str(stored)).predictions(sweep="stored").collect()
    right = (
        rows.with_columns(pl.col("mixture").fill_null("base"))
        .group_by("evaluation", "mixture")
        .agg(pl.col("score").sum())
    )
    counted = {(evaluation, mixture): score for evaluation, mixture, score in right.iter_rows()}
    assert {cell: counted[cell] for cell in CORRECT} == CORRECT
    assert rows.height == 180
