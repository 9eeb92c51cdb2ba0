"""The notebook of examples/ has no outputs in git, and runs from its first cell to its last."""

from __future__ import annotations

import ast
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples/quickstart.ipynb"
pytestmark = pytest.mark.skipif(find_spec("nbclient") is None, reason="nbclient is not installed")


def notebook() -> Any:
    import nbformat

    found = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    nbformat.validate(found)
    return found


def test_it_is_stored_without_outputs_and_every_cell_is_python() -> None:
    for cell in notebook().cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
            ast.parse(cell.source)


@pytest.mark.slow
def test_it_runs_the_quickstart_and_shows_plan_numbers_figure_and_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nbclient import NotebookClient

    monkeypatch.setenv("KVRAY_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("KVRAY_SCALE", "small")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    made = notebook()
    client = NotebookClient(made, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}})
    client.execute()
    shown = [
        "".join(part for output in cell.outputs for part in output.get("data", {}).values())
        for cell in made.cells
        if cell.cell_type == "code"
    ]
    _, plan, result, accuracy, figure, compare, lost, report = shown
    assert "to run" in plan and "quickstart-small" in plan
    assert "12 made" in result and "kv-template" in result
    assert "accuracy" in accuracy and "position" in accuracy
    assert len(figure) > 10_000  # a PNG in base64
    assert "verdict" in compare and "p_holm" in compare
    assert "question_id" in lost
    assert "<iframe srcdoc=" in report and (tmp_path / "store/reports/quickstart-small/report.html").is_file()
