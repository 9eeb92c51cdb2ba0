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
STORE = {
    "store",
    "store_checks",
    "store_root",
    "manifest",
    "filesystem",
    "object_store",
    "parquet",
    "fingerprint",
    "output",
}
SPEC = {"problems", "document", "yaml_lines", "names", "config", "grid", "unused", "spec"}
PLAN = {"artefact", "epoch", "facts", "labels", "lengths", "limits", "mixture", "plan", "replaced"}
GROUND = {"errors", "progress", "base_model", "model_files", "chat_template", "columns"}
RAY = {"connection"}
STAGE = GROUND | STORE | SPEC | PLAN | RAY | {"tasks", "api"}
COST = {"rates", "prices", "totals", "cautions"}
STAGES = {"generate", "finetune", "evaluate"}
COMMANDS = {"samples", "blend", "estimate", "reasons", "checkup"}

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "progress": {"errors"},
    "base_model": {"errors", "model_files"},
    "model_files": {"errors"},
    "chat_template": {"errors"},
    "columns": set(),
    "tasks": {"errors", "base_model", "columns"},
    "fingerprint": {"errors"},
    **dict.fromkeys(STORE - {"fingerprint"}, {"errors"} | STORE),
    **dict.fromkeys(SPEC, {"errors", "tasks", "base_model"} | SPEC),
    **dict.fromkeys(
        PLAN, {"errors", "tasks", "base_model", "model_files", "chat_template", "fingerprint"} | SPEC | PLAN
    ),
    "api": {"errors"} | SPEC,
    "connection": {"errors", "progress"} | SPEC,
    "generate": STAGE,
    "finetune": STAGE,
    "evaluate": STAGE,
    "results": {"errors", "progress", "columns"} | STORE,
    "tiny": GROUND | {"tasks"},
    "run": STAGE | STAGES | {"results"},
    "tables": set(),
    "samples": STAGE | {"generate", "evaluate"},
    "blend": STAGE | {"generate", "finetune"},
    "speed": GROUND,
    "rates": STAGE | {"speed"},
    "prices": STAGE | {"rates"},
    "totals": STAGE | {"rates"},
    "cautions": STAGE | {"speed", "rates", "totals", "tables", "results"},
    "estimate": STAGE | {"results", "run", "tables"} | COST,
    "reasons": STAGE | {"run"},
    "checkup": STAGE | {"run", "tables"},
    "cli": STAGE | STAGES | COMMANDS | {"results", "tiny", "run", "tables"},
}
"""What each part (a module of kvray, or a folder of it) may import of kvray, beside itself."""
SHARED_SCHEMA = "kvray.results.schema"
"""The columns of the results: the one module that whoever writes or reads them imports, from wherever it is."""

RAY_FILES = {"connection.py", "generate/job.py", "finetune/job.py", "evaluate/job.py", "checkup.py"}
HEAVY = ("ray", "torch", "transformers", "peft", "vllm", "polars", "matplotlib", "scipy", "pyarrow", "numpy")
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


def part_of(file: str) -> str:
    """Return the part a file belongs to: ``finetune/job.py`` -> ``finetune``, ``plan.py`` -> ``plan``."""
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
def test_imports_point_one_way(file: str) -> None:
    part = part_of(file)
    if part == "__init__":
        allowed: set[str] = set()
    else:
        assert part in MAY_IMPORT, f"kvray/{file}: say in MAY_IMPORT of tests/test_imports.py what {part} may import"
        allowed = MAY_IMPORT[part] | {part}
    parts = {part_of(other) for other in FILES}
    for line, module in imports(file):
        names = module.split(".")
        shared = part == "evaluate" and module.startswith(f"{SHARED_SCHEMA}.")
        if names[0] == "kvray" and len(names) > 1 and names[1] in parts and not shared:
            assert names[1] in allowed, (
                f"kvray/{file}:{line} imports kvray.{names[1]}; {part} may import {sorted(allowed)}"
            )


@pytest.mark.parametrize("file", [file for file in FILES if file not in RAY_FILES])
def test_ray_stays_in_the_files_that_dispatch(file: str) -> None:
    lines = [line for line, module in imports(file) if module.split(".")[0] == "ray"]
    assert not lines, f"kvray/{file}:{lines[0]} imports ray; only {sorted(RAY_FILES)} do, the rest is testable without"


@pytest.mark.parametrize(
    "file", [file for file in FILES if part_of(file) in {"tasks", *SPEC, *PLAN, "errors", "progress"}]
)
def test_the_kernel_never_imports_a_framework(file: str) -> None:
    frameworks = {"ray", "torch", "transformers", "peft", "vllm", "polars", "matplotlib", "scipy"}
    assert not [module for _, module in imports(file) if module.split(".")[0] in frameworks]


def test_the_allowed_imports_have_no_cycle_between_stages() -> None:
    for part, others in MAY_IMPORT.items():
        together = next((group for group in (STORE, SPEC, PLAN) if part in group), set())
        for other in others - together - {part}:
            assert part not in MAY_IMPORT[other], f"{part} and {other} may import each other"


def test_the_command_line_starts_without_anything_heavy() -> None:
    code = f"import sys, kvray.cli; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60, env={**os.environ}
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [], (
        f"import kvray.cli imports {run.stdout}; import it inside the command that needs it"
    )
