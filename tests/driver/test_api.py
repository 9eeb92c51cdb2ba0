"""The front door in Python: plans, results and reports as values, as text and as a notebook shows them."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from html.parser import HTMLParser
from pathlib import Path

import pytest

import kvray
from kvray.driver import run as driver
from kvray.errors import InputError
from kvray.planning.cost.estimate import estimate
from kvray.store.store import Store

ROOT = Path(__file__).parents[2]
FIXTURE = ROOT / "tests" / "fixtures" / "store-2026-11"


def small(**changes: object) -> kvray.Sweep:
    given: dict[str, object] = {
        "name": "small",
        "base_model": "kvray-tiny",
        "datasets": {"kv": kvray.tasks.SimpleKV(rows=24, dictionaries=4)},
        "evaluate": {"mdqa": kvray.tasks.Mdqa(documents=3, positions=[1, 3], questions=8)},
    }
    return kvray.Sweep(**given | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> kvray.SweepResult:
    """The result of a sweep that was run before, so that nothing is left to do."""
    folder = tmp_path_factory.mktemp("finished")
    with tarfile.open(FIXTURE / "store.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    (store,) = folder.iterdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return kvray.run(FIXTURE / "sweep.yaml", store=store)


class Cells(HTMLParser):
    """The rows of the tables of a page, and the text around them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tag, self.around = "", ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tag = tag
        self.rows += [[]] if tag == "tr" else []

    def handle_data(self, data: str) -> None:
        if self.tag in ("td", "th"):
            self.rows[-1].append(data)
        else:
            self.around += data + "\n"


def test_importing_kvray_imports_nothing_of_it_and_nothing_heavy() -> None:
    code = "import sys; before = set(sys.modules); import kvray; dir(kvray); print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = {name for name in done.stdout.split() if name.split(".")[0] not in sys.stdlib_module_names}
    assert loaded == {"kvray"}


def test_the_front_door_has_what_it_names() -> None:
    for name in kvray.__all__:
        assert getattr(kvray, name) is not None and name in dir(kvray)
    assert kvray.tasks.SimpleKV(rows=3).task == "simple_kv"
    with pytest.raises(AttributeError, match="no attribute 'Sweeep'"):
        kvray.Sweeep  # noqa: B018


def test_a_plan_is_the_one_of_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    small().to_yaml(file)
    planned, _ = driver.prepare(str(file), offline=True)
    expected = estimate(planned, Store(tmp_path / "store"))
    for source in (small(), file, str(file)):
        plan = kvray.plan(source, tmp_path / "store")
        assert str(plan) == repr(plan) == expected.text()
        assert plan.document() == expected.document
        assert [artefact.id for artefact in plan.artefacts] == plan.to_run == [a.id for a in planned.artefacts]
    assert not (tmp_path / "store").exists(), "a plan writes nothing"


def test_a_plan_shows_as_tables_in_a_notebook(tmp_path: Path) -> None:
    plan = kvray.plan(small(name="a-b"), tmp_path)
    cells = Cells(plan._repr_html_())
    assert ["kv", "train", "to run", "24"] in [row[:4] for row in cells.rows]
    assert ["mdqa", "kv", "lora", "0", "to run", "16"] in [row[:6] for row in cells.rows]
    assert "sweep a-b" in cells.around and "Cells (predictions): 2" in cells.around
    assert "5 to run, 0 cached, about " in cells.around and "8 questions find a difference" in cells.around


def test_mistakes_that_only_a_plan_finds_name_the_place_in_the_sweep(tmp_path: Path) -> None:
    sweep = small(evaluate={"mdqa": {"task": "mdqa", "source": str(tmp_path / "none.jsonl"), "questions": 3}})
    for call in (kvray.plan, kvray.run):
        with pytest.raises(InputError, match=r"^evaluate\.mdqa\.source: .*none\.jsonl"):
            call(sweep, tmp_path / "store")
    with pytest.raises(InputError, match=r"^base_model: "):
        kvray.plan(small(base_model=tmp_path / "model"), tmp_path / "store")


def test_a_finished_sweep_gives_its_results_without_doing_anything(finished: kvray.SweepResult) -> None:
    assert (finished.made, finished.failed) == ([], {}) and finished.cached > 20
    name = finished.sweep.name
    results = kvray.open(finished.store)
    by = ["model", "position"]
    assert finished.accuracy(by=by).equals(results.accuracy(by, sweep=name))
    assert finished.compare("base", "kv").equals(results.compare("base", "kv", sweep=name))
    assert finished.compare("base", "kv")["evaluation"].n_unique() == len(finished.sweep.evaluate)
    assert finished.predictions().collect().height > 0
    assert finished.examples("mdqa", "kv", limit=2).equals(results.examples("mdqa", "kv", limit=2, sweep=name))


def test_a_result_shows_as_a_table_in_a_terminal_and_in_a_notebook(finished: kvray.SweepResult) -> None:
    lines = str(finished).splitlines()
    assert lines[0].startswith("stored: ") and lines[-1].startswith("nothing to do: all ")
    assert {"base", "kv", "blend"} <= {line.split(" ")[0] for line in lines}
    cells = Cells(finished._repr_html_())
    assert cells.rows[0] == list(finished.sweep.evaluate)  # the first cell is empty
    assert [row[0] for row in cells.rows[-3:]] == ["base", "kv", "blend"]
    assert all(" %" in cell for row in cells.rows[-3:] for cell in row[1:])
    assert "nothing to do: all " in cells.around


def test_a_report_is_the_path_of_its_page_and_shows_it(finished: kvray.SweepResult, tmp_path: Path) -> None:
    for out in (None, tmp_path / "report"):
        report = finished.report(out)
        page = Path(report).read_text()
        assert str(report) == report.path and report.path.startswith(report.directory) and report.page == page
        assert 'srcdoc="&lt;!doctype html' in report._repr_html_().lower()


def test_a_failed_artefact_is_named_with_its_reason_and_how_to_go_on(
    finished: kvray.SweepResult, capsys: pytest.CaptureFixture[str]
) -> None:
    result = kvray.SweepResult(
        finished.sweep, finished.store, made=["a/b"], cached=3, failed={"finetunes/x-1": "CUDA ran\nout of memory"}
    )
    cells = Cells(result._repr_html_())
    for shown in (str(result), cells.around):
        assert "1 of 5 artefacts of stored failed, 1 made, 3 were there" in shown
        assert "running again tries them again" in shown
    assert "CUDA ran out of memory" in str(result)
    assert cells.rows[-1] == ["finetunes/x-1", "CUDA ran out of memory"]


def test_a_ray_that_the_process_has_joined_is_used(ray_two_cpus: None, tmp_path: Path) -> None:
    import ray

    only_data = small(evaluate={}, finetune={"epochs": 1, "max_length": 8})
    with pytest.raises(InputError, match="max_length"):
        kvray.run(only_data, tmp_path)
    result = kvray.run(small(evaluate={}), tmp_path)
    assert ray.is_initialized() and len(result.made) == 2 and not result.failed
