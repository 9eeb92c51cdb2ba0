"""The short form of benchmarks/chaos.py, and that it finds what it looks for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvray.store.patience import VARIABLE

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
COLUMNS = ["lost", "doubled", "stale", "unreadable", "failed", "twice", "ended badly"]

# A store that writes straight to a file's final name, as most programs do.
CARELESS = """
import json, os, random, sys
from dataclasses import asdict
from pathlib import Path
from unittest import mock
from benchmarks.deaths.alone import Alone
from benchmarks.deaths.counts import Counts
from kvray.store.places import local

def put(self, path, data):
    local._make_directory(os.path.dirname(path))
    descriptor = local.os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    local.os.write(descriptor, data.cast("B"))
    os.close(descriptor)

def put_new(self, path, data):
    if os.path.lexists(path):
        return False
    put(self, path, data)
    return True

with mock.patch.multiple(local.LocalFiles, put=put, put_new=put_new):
    runs = Alone(Path(sys.argv[1]), None, random.Random(3))
    halves = [each for each in runs.boundaries("disk") if each[1] == "middle"]
    total = Counts()
    ended_badly = 0
    for at, moment in halves[::4]:
        case = runs.boundary("disk", at, moment)
        total += case.counts
        ended_badly += bool(case.error)
print(json.dumps({**asdict(total), "ended badly": ended_badly}))
"""


def python(*words: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "disabled",
        "TOKENIZERS_PARALLELISM": "false",
    }
    environment.pop(VARIABLE, None)  # the patience of tests is shorter than the cuts of the connection
    done = [sys.executable, *words]
    return subprocess.run(done, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False)


def test_forty_deaths_cost_nothing() -> None:
    done = python("benchmarks/chaos.py", "--kills", "44", "--seed", "7", "--no-ray")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stdout + done.stderr
    sums = next(line for line in lines if line[:1] == ["all"])
    sweeps, deaths, *wrong = map(int, sums[1:])
    assert sweeps >= 36 and deaths >= 30  # what ends before its time to die does not die
    assert wrong == [0] * len(COLUMNS)
    assert {line[0] for line in lines} >= {"boundary", "any", "stepped", "two"}


def test_a_careless_store_is_found_out(tmp_path: Path) -> None:
    done = python("-c", CARELESS, str(tmp_path))
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert sum(counts.values()) > 0
