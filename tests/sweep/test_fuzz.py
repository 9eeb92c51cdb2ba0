"""Mutated sweeps end in a plan or in messages with their places, within seconds; benchmarks/fuzz_yaml.py has more."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kvray.tasks import load_all

ROOT = Path(__file__).parents[2]
CASES, PLANNED = 200, 8
SEED = 4
REAL = (6, 23, 40)


@pytest.fixture(scope="module")
def fuzz() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("fuzz_yaml", ROOT / "benchmarks" / "fuzz_yaml.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_every_mutated_sweep_is_planned_or_refused(
    fuzz: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    load_all()
    texts = fuzz.originals()
    found: list[Any] = []
    with fuzz.no_network():
        for number in range(CASES):
            given = fuzz.case(SEED, number, texts)
            # A plan counts the rows of its data, which takes half a second; most mistakes are found before.
            more = sum(each.kind == "planned" for each in found) < PLANNED
            found.append(fuzz.answer(given, tmp_path, plan=more and given.scale == "small"))
    failed = [f"case {number}: {each.text}" for number, each in enumerate(found) if each.kind == "failed"]
    assert not failed, "\n\n".join(failed)
    # Both ends are reached, so that neither a plan nor a message goes untried.
    kinds = Counter(each.kind for each in found)
    assert kinds["planned"] == PLANNED and kinds["read"] and kinds["refused"] > CASES / 2, kinds


def test_the_fuzzer_sees_a_trace_a_message_without_a_place_and_a_slow_answer(
    fuzz: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = fuzz.Case(b"name: a\nbase_model: kvray-tiny\nevaluate: {ask: {task: recall, questions: 5}}\n", None)
    assert fuzz.answer(given, tmp_path).kind == "planned"
    for error in (
        RecursionError("deep"),
        fuzz.InputError("no place"),
        fuzz.InputError([f"{tmp_path}/case.yaml:1: x"] * 2),
    ):

        def broken(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(fuzz, "prepare", broken)
            assert fuzz.answer(given, tmp_path).kind == "failed"
    monkeypatch.setattr(fuzz, "READ_S", -1.0)  # a coarse CPU clock reads 0.0 s for a short file
    assert fuzz.answer(given, tmp_path).kind == "failed"


@pytest.mark.parametrize("number", REAL)
def test_the_command_answers_a_mutated_sweep_without_a_trace(fuzz: ModuleType, tmp_path: Path, number: int) -> None:
    load_all()
    given = fuzz.case(SEED, number, fuzz.originals())
    file = tmp_path / "case.yaml"
    file.write_bytes(given.text)
    typed = [*(("--scale", given.scale) if given.scale else ()), *(f"--set={each}" for each in given.settings)]
    done = subprocess.run(
        [sys.executable, "-m", "kvray.cli", "plan", str(file), "--store", str(tmp_path / "store"), *typed],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode in (0, 2), done.stderr
    assert "Traceback" not in done.stderr
    if done.returncode:
        assert all(re.match(fuzz.PLACED, line) for line in done.stderr.splitlines()), done.stderr
    assert not (tmp_path / "store").exists()
