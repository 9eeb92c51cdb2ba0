"""kvray compare and kvray.compare: two sweeps by name or file, in one store or two; what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import Result
from made_sweeps import commit_sweep
from typer.testing import CliRunner

import kvray
from kvray.cli import app
from kvray.store.store import Store

SWEEP = """\
name: second
base_model: kvray-tiny
datasets: {kv: {task: simple_kv, rows: 4, dictionaries: 3}}
evaluate: {ask: {task: mdqa, documents: 2, positions: [1, 2], questions: 3}}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    store = Store(str(folder / "store"))
    commit_sweep(store, "first", mixtures=["ours"], questions=20)
    commit_sweep(store, "second", mixtures=["ours"], seeds=(2, 3), questions=20)
    shutil.copytree(folder / "store", folder / "copy")
    return folder


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, words)])


def test_two_sweeps_of_a_store_give_a_table_and_a_page(made: Path) -> None:
    result = run("first", "second", "--store", made / "store")
    assert result.exit_code == 0, result.output
    assert "the same artefact" in result.stdout and "within noise" in result.stdout
    page = Path(result.stdout.splitlines()[-1].removeprefix("page: "))
    assert page == made / "store" / "reports" / "first+second" / "report.html" and page.is_file()


def test_json_is_one_object_with_the_paths(made: Path, tmp_path: Path) -> None:
    result = run("first", "second", "--store", made / "store", "--json", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert {row["a"] for row in found["pairs"]} == {"base", "ours"}
    assert found["page"]["html"] == str(tmp_path / "out" / "report.html")
    assert all(Path(path).is_file() for path in (found["page"]["markdown"], found["page"]["pairs"]))


def test_a_name_in_two_stores_needs_to_be_typed_once(made: Path, tmp_path: Path) -> None:
    result = run("first", "--store", made / "store", "--store-b", made / "copy", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "first (store)" in result.stdout and "first (copy)" in result.stdout


def test_a_sweep_may_be_given_by_its_file(made: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(SWEEP)
    result = run("first", file, "--store", made / "store", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "second: 6 of 6 cells evaluated" in result.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["first"], "expected two"),
        (["first", "first"], "twice"),
        (["first", "third"], "it has first, second"),
        (["first", "second", "--pair", "ours=hers"], "'hers'; expected a model of the second sweep"),
        (["first", "second", "--store-b", "ftp://x"], "ftp"),
    ],
)
def test_bad_input_is_one_message_and_exit_2(made: Path, words: list[str], said: str) -> None:
    before = sorted((made / "store").rglob("*"))
    result = run(*words, "--store", made / "store")
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr and "Traceback" not in result.stderr
    assert sorted((made / "store").rglob("*")) == before


def test_in_python_it_is_a_table_and_a_page(made: Path, tmp_path: Path) -> None:
    both = kvray.compare("first", "second", store=made / "store", pair={"ours": "ours"})
    assert both.table.filter(family="overall").height == 4
    assert both.settings == [] and both.not_compared == {}
    assert repr(both).startswith("first: 6 of 6 cells evaluated")
    shown = both._repr_html_()
    assert shown.count("<tr>") == 5 and "the same artefact" in shown
    report = both.report(tmp_path / "out")
    assert Path(report).is_file() and "first and second" in report.page
    assert both.document()["b"]["sweep"] == "second"
