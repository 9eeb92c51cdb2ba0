"""A report shows the sweep as it is: written again when that changed, not otherwise; a read-only store's elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import answered_sweep
import pytest

import kvray
from kvray.cli import app
from kvray.driver import run as running
from kvray.report import build
from kvray.store import output
from kvray.store.places.files import Folder
from kvray.store.store import Store

SWEEP = """\
name: small
base_model: kvray-tiny
datasets:
  kv: {task: simple_kv, rows: 4, dictionaries: 3}
  more: {task: simple_kv, rows: 4, dictionaries: 3, seed: 1}
mixtures:
  one: {kv: 1}
  two: {more: 1}
evaluate:
  ask: {task: mdqa, documents: 2, positions: [1, 2], questions: 3}
  recall: {task: recall, questions: 10}
"""


@pytest.fixture
def store(tmp_path: Path, make_sweep) -> Store:
    made = Store(str(tmp_path / "store"))
    make_sweep(made, questions=8, mixtures=["ours", "mdqa"], seeds=(0,))
    return made


def times(where: Path) -> dict[str, int]:
    return {str(path.relative_to(where)): path.stat().st_mtime_ns for path in where.rglob("*") if path.is_file()}


def test_a_report_is_current_until_the_plan_what_is_committed_or_kvray_changes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not build.current(store, "first")
    build.write(store, "first")
    assert build.current(store, "first")
    plan = store.read_document("sweeps/first.json") or b""
    store.write_document("sweeps/first.json", plan.replace(b'"mixture": "ours"', b'"mixture": "renamed"'))
    assert not build.current(store, "first")
    store.write_document("sweeps/first.json", plan)
    assert build.current(store, "first")
    with monkeypatch.context() as later:
        later.setattr(kvray, "__version__", "99")
        assert not build.current(store, "first")
    cell = store.manifests("predictions")[0]
    store.write_document(f"failures/{cell.id}.json", b'{"error": "died"}')
    assert build.current(store, "first"), "the failure is of before it was made"
    store.discard(cell.id)
    assert not build.current(store, "first")
    build.write(store, "first")
    assert build.current(store, "first")
    store.write_document(f"failures/{cell.id}.json", b'{"error": "died again"}')
    assert not build.current(store, "first")
    build.write(store, "first")
    store.delete_document("reports/first/report.html")
    assert not build.current(store, "first")


def test_a_report_that_was_not_written_whole_is_not_current(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    build.write(store, "first")
    write = Folder.put

    def full(self: Folder, name: str, data: bytes) -> None:
        if name.endswith("report.html"):
            raise OSError("killed")
        write(self, name, data)

    monkeypatch.setattr(Folder, "put", full)
    with pytest.raises(OSError, match="killed"):
        build.write(store, "first")
    assert not build.current(store, "first")


@pytest.mark.parametrize("own", [False, True])
def test_figures_that_no_longer_belong_are_removed_and_nothing_else(store: Store, tmp_path: Path, own: bool) -> None:
    out = tmp_path / "out" if own else None
    place = Path(build.write(store, "first", out).directory)
    (place / "notes.txt").write_text("mine")
    (place / "figures" / "mine.txt").write_text("mine") if own else None
    before = {path.name for path in (place / "figures").iterdir()}
    document = json.loads(store.read_document("sweeps/first.json") or b"")
    document["artefacts"] = [a for a in document["artefacts"] if a["labels"].get("evaluation") != "recall"]
    store.write_document("sweeps/first.json", json.dumps(document).encode())
    paths = build.write(store, "first", out)
    after = {path.name for path in (place / "figures").iterdir()}
    assert {Path(path).name for path in paths.figures} == after - {"mine.txt"}
    assert {name for name in before - after} == {
        f"{stem}.{kind}" for stem in ("knowledge-change", "gain-against-loss-mdqa20-recall") for kind in ("png", "svg")
    }
    assert (place / "notes.txt").read_text() == "mine"
    assert not own or (place / "figures" / "mine.txt").exists()


def test_a_note_cannot_make_a_report_remove_what_is_not_a_figure(tmp_path: Path) -> None:
    there = output.folder(tmp_path)
    (tmp_path / "kept").write_text("x")
    names = ["kept", "figures/../kept", "../kept", "figures/a/b", 3, "figures/old.png"]
    (tmp_path / build.NOTE).write_text(json.dumps({"files": names}))
    assert build.earlier_figures(there) == ["figures/old.png"]
    for text in ("{", "[]", '{"files": 3}'):
        (tmp_path / build.NOTE).write_text(text)
        assert build.earlier_figures(there) == []


def kvray_(*arguments: str) -> tuple[int, str]:
    from typer.testing import CliRunner

    done = CliRunner().invoke(app, list(arguments))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


@pytest.fixture
def done(tmp_path: Path, make_cell, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store in which all of SWEEP is made, and the file beside it."""
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SWEEP)
    planned, _ = running.prepare("small.yaml")
    store = Store("store")
    for artefact in planned.artefacts:
        labels = artefact.labels
        if artefact.kind == "dataset":
            table = answered_sweep.examples("recall")
        else:
            table = make_cell(
                labels.get("evaluation", "recall"), labels.get("mixture"), labels.get("seed"), questions=6
            )
        entry = store.write(artefact.id, "part-0.parquet", table)
        store.commit(**artefact.identity(), files=[entry], measurements={"seconds": 1.0})
    return tmp_path / "store"


def test_nothing_to_do_shows_the_sweep_as_it_is_now(done: Path) -> None:
    html, markdown = (done / "reports/small" / name for name in ("report.html", "report.md"))
    code, said = kvray_("run", "small.yaml", "--store", str(done))
    assert code == 0 and "nothing to do" in said and "**one**" in markdown.read_text()
    written = times(done / "reports")
    code, said = kvray_("run", "small.yaml", "--store", str(done))
    assert code == 0 and said.rstrip().endswith(f"report: {html}") and "that this one has not" not in said
    assert times(done / "reports") == written, "nothing changed, so nothing is written"

    Path("small.yaml").write_text(SWEEP.replace("  one: ", "  renamed: "))
    code, said = kvray_("run", "small.yaml", "--store", str(done))
    assert code == 0 and "nothing to do" in said and "that this one has not" not in said
    assert "**renamed**" in markdown.read_text() and "**one**" not in markdown.read_text()

    Path("small.yaml").write_text(SWEEP.replace("  recall: {task: recall, questions: 10}\n", ""))
    code, said = kvray_("plan", "small.yaml", "--store", str(done))
    assert code == 0 and "its evaluations recall are not in this one" in said
    code, said = kvray_("run", "small.yaml", "--store", str(done))
    assert code == 0 and "nothing to do" in said and "its evaluations recall are not in this one" in said
    assert not list((done / "reports/small/figures").glob("*recall*"))


def test_a_report_as_json_says_what_the_tables_say(done: Path) -> None:
    kvray_("run", "small.yaml", "--store", str(done), "--no-report")
    planned, _ = running.prepare("small.yaml")
    lost = next(a for a in planned.artefacts if a.kind == "predictions" and a.labels["mixture"] == "two")
    Store(str(done)).discard(lost.id)
    code, said = kvray_("report", "small", "--store", str(done), "--json", "--out", "out")
    told = json.loads(said)
    assert code == 0 and (told["sweep"], told["base_model"], told["planned"], told["evaluated"]) == (
        *("small", "kvray-tiny"),
        *(6, 5),
    )
    assert told["missing"] == [{"id": lost.id, "kind": "predictions", "state": "missing", "why": "not run yet"}]
    assert Path(told["report"]["html"]).is_file() and told["report"]["directory"] == "out"
    rows = {(row["evaluation"], row["model"]): row for row in told["scores"]}
    assert set(rows) == {("ask", "base"), ("ask", "one"), ("recall", "base"), ("recall", "one"), ("recall", "two")}
    base, one = rows["recall", "base"], rows["recall", "one"]
    assert base["mixture"] is None and base["verdict"] is None and one["mixture"] == "one"
    assert one["difference"] == pytest.approx(one["accuracy"] - base["accuracy"])


@pytest.fixture
def read_only(done: Path) -> Iterator[list[str]]:
    """Make the store read-only; yield what to put before a command that is to find it so.

    A superuser writes where permissions forbid it: there the store is mounted read-only, or the command goes without
    that right where mounting is forbidden.
    """
    steps = (["mount", "--bind", done, done], ["mount", "-o", "remount,bind,ro", done])
    if os.geteuid() == 0 and not any(
        subprocess.run(step, check=False, capture_output=True).returncode for step in steps
    ):
        yield []
        subprocess.run(["umount", done], check=True)
        return
    subprocess.run(["umount", done], check=False, capture_output=True)
    without = ["setpriv", "--bounding-set", "-dac_override"] if os.geteuid() == 0 else []
    folders = [done, *(path for path in done.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    if subprocess.run([*without, "touch", done / "probe"], check=False, capture_output=True).returncode == 0:
        pytest.skip("this user writes everywhere")
    yield without
    for path in folders:
        path.chmod(0o755)


def test_a_store_that_cannot_be_written_is_reported_elsewhere(done: Path, request: pytest.FixtureRequest) -> None:
    kvray_("run", "small.yaml", "--store", str(done), "--no-report")
    before = request.getfixturevalue("read_only")
    command = [*before, sys.executable, "-m", "kvray.cli", "report", "small", "--store", str(done)]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and refused.stdout == ""
    (line,) = refused.stderr.splitlines()
    assert line.startswith("kvray: ") and line.endswith(f"kvray report small --store {done} --out DIRECTORY")
    elsewhere = subprocess.run([*command, "--out", "out"], capture_output=True, text=True, check=False)
    assert elsewhere.returncode == 0 and elsewhere.stderr == ""
    assert elsewhere.stdout.rstrip().endswith("report: out/report.html") and Path("out/report.html").is_file()
