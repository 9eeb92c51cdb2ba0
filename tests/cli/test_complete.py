"""Shell completion, asked as a shell asks: by the variable of the environment that typer's scripts set."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def completed(line: str, folder: Path, **environment: str) -> list[str]:
    """Return what bash would offer at the end of a line that begins with ``kvray``."""
    words = line.split(" ")
    code = "import sys; sys.argv = ['kvray']; from kvray.cli import main; main()"
    env = {"_KVRAY_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder, env={**os.environ, "PYTHONPATH": path, **env, **environment},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.split()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with sweeps, some below it, and a store that has one."""
    (tmp_path / "sweeps/paper").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    for file in ("mine.yaml", "sweeps/quick.yaml", "sweeps/paper/one.yml", ".hidden/no.yaml", "notes.txt"):
        (tmp_path / file).write_text("name: x\n")
    shutil.copy(ROOT / "sweeps/quickstart.yaml", tmp_path / "sweeps/quickstart.yaml")
    (tmp_path / "store/sweeps").mkdir(parents=True)
    (tmp_path / "store/sweeps/stored.json").write_text("{}")
    return tmp_path


def test_sweep_files_are_offered_with_those_in_folders_below(folder: Path) -> None:
    everything = ["mine.yaml", "sweeps/quick.yaml", "sweeps/quickstart.yaml", "sweeps/paper/one.yml"]
    assert completed("kvray run ", folder) == everything
    assert completed("kvray plan sw", folder) == everything[1:]
    assert completed("kvray plan ./sweeps/quicks", folder) == ["./sweeps/quickstart.yaml"]
    assert completed("kvray plan sweeps/paper/", folder) == ["sweeps/paper/one.yml"]
    assert completed("kvray run nothing", folder) == []


def test_what_was_run_is_offered_by_its_name(folder: Path) -> None:
    assert completed("kvray report st", folder) == ["stored"]
    assert completed("kvray status --store nowhere st", folder) == []
    assert completed("kvray report st", folder, KVRAY_STORE="s3://bucket/kvray") == []


def test_tasks_and_mixtures_are_offered(folder: Path) -> None:
    assert completed("kvray sample multi", folder) == ["multi_subkey_kv", "multidoc_qa"]
    assert completed("kvray init new.yaml --task nee", folder) == ["needle"]
    assert completed("kvray blend sweeps/quickstart.yaml ", folder) == ["kv-template", "multidoc_qa", "in2", "needle"]
    assert completed("kvray blend mine.yaml ", folder) == []  # a sweep with mistakes


def test_commands_and_options_are_offered(folder: Path) -> None:
    assert {"init", "schema", "run"} <= set(completed("kvray ", folder))
    assert completed("kvray plan mine.yaml --sc", folder) == ["--scale"]
