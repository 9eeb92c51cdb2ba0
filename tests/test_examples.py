"""The scripts of examples/ run as their first lines say, one after the other in one store."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import kvray

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def script(name: str, *arguments: object, store: Path | None = None) -> str:
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    environment |= {"KVRAY_STORE": str(store)} if store else {}
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.py")), ids=lambda file: file.name)
def test_an_example_says_what_it_shows(file: Path) -> None:
    text = ast.get_docstring(ast.parse(file.read_text()))
    assert text is not None and (file.name == "shouting.py" or f"python examples/{file.name}" in text)


def test_two_stores_are_set_side_by_side(tmp_path: Path) -> None:
    with tarfile.open(ROOT / "tests" / "fixtures" / "store-2026-11" / "store.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    shown = script("two_stores.py", tmp_path / "store", tmp_path / "store")
    rows = [line.split("┆") for line in shown.splitlines() if "┆ " in line][3:]
    models = {(row[0].strip("│ "), row[1].strip()) for row in rows}
    results = kvray.open(tmp_path / "store").accuracy(by=["evaluation", "model"])
    assert models == set(results.select("evaluation", "model").iter_rows())
    assert {row[-1].strip("│ ") for row in rows} == {"0.0"}


@pytest.mark.slow
def test_a_sweep_then_an_own_task_in_fresh_interpreters(tmp_path: Path) -> None:
    store = tmp_path / "store"
    shown = script("sweep.py", store=store)
    report = store / "reports" / "example" / "report.html"
    assert f"The report: {report}" in shown and report.stat().st_size > 10_000
    sweep = kvray.Sweep.from_yaml(shown.partition("kvray run FILE:\n\n")[2])
    assert sweep.name == "example"
    again = kvray.run(sweep, store)
    assert (again.made, again.failed, again.cached) == ([], {}, 5), "the file is the very sweep"
    assert again.accuracy(by=["model", "position"]).height == 2 * 3
    assert again.compare("base", "kv")["n"].to_list() == [60]
    shown = script("own_task.py", store=store)
    assert "own-task: 6 of 6 cells evaluated" in shown
    made = kvray.open(store).document("own-task")["artefacts"]
    first = {artefact["id"] for artefact in kvray.open(store).document("example")["artefacts"]}
    assert first < {artefact["id"] for artefact in made} and len(made) == 4 + 2 + 6
    rows = kvray.open(store).predictions("own-task").collect()
    assert set(rows.filter(evaluation="shout")["score"]) <= {0.0, 0.5, 1.0}
