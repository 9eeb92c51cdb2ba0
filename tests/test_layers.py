"""Imports point one way, Ray stays in its files, and the command line starts without anything heavy."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import kvray

ROOT = Path(kvray.__file__).parent
LAYERS = [
    {"cli"},
    {"driver"},
    {"generate", "finetune", "evaluate"},
    {"planning", "report"},
    {"sweep", "results"},
    {"tasks"},
    {"models"},
    {"store", "audit"},
    {"console"},
    {"errors"},
]
"""The rooms of kvray, from the top down. A room imports rooms of lower layers alone, none of its own layer."""
RAY_FILES = {
    "driver/connection.py",
    "driver/generation.py",
    "driver/seats/cluster.py",
    "driver/seats/dispatcher.py",
    "driver/seats/sources.py",
    "driver/seats/stalls.py",
    "generate/job.py",
    "finetune/job.py",
    "cli/doctor/check.py",
}
FRAMEWORKS = {"ray", "torch", "transformers", "peft", "vllm", "polars", "matplotlib", "scipy"}
HEAVY = (*sorted(FRAMEWORKS), "pyarrow", "numpy")
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")
LEVELS = {room: level for level, layer in enumerate(reversed(LAYERS)) for room in layer}


def room_of(file: str) -> str:
    """Return the room a file belongs to: ``finetune/job.py`` -> ``finetune``, ``console.py`` -> ``console``."""
    return file.split("/", maxsplit=1)[0].removesuffix(".py")


def imports(file: str) -> list[tuple[int, str]]:
    """Return (line, dotted module) of every import in a file, those inside functions included."""
    found = []
    package = ["kvray", *file.split("/")[:-1]]
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
    return found


@pytest.mark.parametrize("file", FILES)
def test_imports_point_down_the_layers(file: str) -> None:
    room = room_of(file)
    assert room in LEVELS, f"kvray/{file}: give the room {room} a place in LAYERS of tests/test_layers.py"
    for line, module in imports(file):
        names = module.split(".")
        if names[0] != "kvray" or len(names) == 1 or names[1] in (room, "__version__"):
            continue
        below = LEVELS.get(names[1], len(LAYERS)) < LEVELS[room]
        assert below, f"kvray/{file}:{line}: {room} imports kvray.{names[1]}, which is not in a lower layer"


def test_there_is_a_room_for_everything_and_nothing_more() -> None:
    names = {path.name for path in ROOT.iterdir() if path.name != "__pycache__"}
    assert names - {"__init__.py", "py.typed"} == {room if (ROOT / room).is_dir() else f"{room}.py" for room in LEVELS}
    assert len(names) <= 17


def test_no_folder_holds_more_than_a_dozen_modules() -> None:
    for folder in (path for path in ROOT.rglob("*") if path.is_dir() and path.name != "__pycache__"):
        modules = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("__"))
        assert len(modules) <= 12, f"{folder.relative_to(ROOT)} has {len(modules)} modules: {', '.join(modules)}"


@pytest.mark.parametrize("file", [file for file in FILES if file not in RAY_FILES])
def test_ray_stays_in_the_files_that_dispatch(file: str) -> None:
    lines = [line for line, module in imports(file) if module.split(".")[0] == "ray"]
    assert not lines, f"kvray/{file}:{lines[0]} imports ray; only {sorted(RAY_FILES)} do, the rest is testable without"


@pytest.mark.parametrize(
    "file", [file for file in FILES if room_of(file) in {"tasks", "sweep", "planning", "errors", "console"}]
)
def test_tasks_sweeps_and_plans_import_no_framework(file: str) -> None:
    assert not [module for _, module in imports(file) if module.split(".")[0] in FRAMEWORKS]


def test_the_command_line_starts_without_anything_heavy() -> None:
    code = f"import sys, kvray.cli; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60, env={**os.environ}
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [], (
        f"import kvray.cli imports {run.stdout}; import it inside the command that needs it"
    )
