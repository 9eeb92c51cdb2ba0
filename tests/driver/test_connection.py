"""Joining Ray: the one that was asked for, or one of our own, whatever else runs or ran on this machine."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvray.driver.connection import asked_for
from kvray.sweep.model import Runtime

CONNECT = """
import sys
from kvray.sweep.model import Runtime
from kvray.driver.connection import connect
with connect(Runtime(num_cpus=3, object_store_memory=100_000_000)):
    import ray
    print(ray.cluster_resources()["CPU"], ray.get_runtime_context().gcs_address)
"""
SMALL = """
name: small
base_model: kvray-tiny
evaluate: {recall: {task: recall, source: tiny, questions: 4}}
runtime: {engine: "fake_engine:FakeEngine", num_cpus: 2, object_store_memory: 100000000}
"""
DOCTOR = [sys.executable, "-m", "kvray.cli", "doctor"]


def environment(temporary: Path, **more: str) -> dict[str, str]:
    """Return an environment in which Ray's address file is ours alone."""
    kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return {**kept, "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": str(temporary), **more}


def call(temporary: Path, command: list[str], **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment(temporary, **more), capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Ray's temporary folder. Its sockets' paths must be short, so it is not one of pytest's."""
    folder = Path(tempfile.mkdtemp(prefix="kv"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_the_file_comes_before_the_environment_and_local_is_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "one:1")
    assert asked_for(Runtime()) == "one:1" and asked_for(Runtime(address="two:2")) == "two:2"
    assert asked_for(Runtime(address="local")) is None
    for none in ("local", ""):
        monkeypatch.setenv("RAY_ADDRESS", none)
        assert asked_for(Runtime()) is None


def assert_told_in_time(temporary: Path, address: str, expected: str) -> None:
    for more in ([*DOCTOR, "--address", address], {}), (DOCTOR, {"RAY_ADDRESS": address}):
        started = time.monotonic()
        done = call(temporary, [*more[0], "--store", str(temporary / "store")], **more[1])
        assert time.monotonic() - started < 20
        assert done.returncode == 1 and done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert re.fullmatch(expected, line), line
        assert not [path for path in (temporary / "store").rglob("*") if path.is_file()]


def test_a_ray_that_is_not_there_is_one_message_at_once(temporary: Path) -> None:
    with socket.socket() as free:
        free.bind(("0.0.0.0", 0))
        port = free.getsockname()[1]
    pattern = rf"kvray: Ray at 127.0.0.1:{port} \(.+\) does not answer \(.*refused\); unset RAY_ADDRESS and .*"
    assert_told_in_time(temporary, f"127.0.0.1:{port}", pattern)


def test_a_ray_that_accepts_and_is_silent_is_one_message_within_20_s(temporary: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("0.0.0.0", 0))
        silent.listen(8)
        port = silent.getsockname()[1]
        assert_told_in_time(temporary, f"127.0.0.1:{port}", r"kvray: Ray at .* does not answer: .* nothing for 10 s;.*")


def test_what_is_no_address_says_what_one_looks_like(temporary: Path) -> None:
    assert_told_in_time(temporary, "nonsense", r"kvray: Ray at nonsense: found no address; expected HOST:PORT, .*")


@pytest.mark.slow
def test_the_address_of_a_dead_ray_is_no_hindrance(temporary: Path) -> None:
    (temporary / "ray").mkdir()
    (temporary / "ray" / "ray_current_cluster").write_text("203.0.113.7:6379")
    done = call(temporary, [sys.executable, "-c", CONNECT])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3.0 ") and "starting a local Ray" in done.stderr


@contextlib.contextmanager
def running(temporary: Path, **more: str) -> Iterator[str]:
    """Run ``ray start --head`` of one CPU, as in another shell, and give its address; ``more`` environment is its."""
    with socket.socket() as free, socket.socket() as for_clients:
        free.bind(("0.0.0.0", 0))
        for_clients.bind(("0.0.0.0", 0))
        port, client_port = free.getsockname()[1], for_clients.getsockname()[1]
    start = f"ray start --head --block --port={port} --ray-client-server-port={client_port} --num-cpus=1"
    quiet = ["--include-dashboard=false", "--disable-usage-stats", "--min-worker-port=0", "--max-worker-port=0"]
    program = [str(Path(sys.executable).parent / "ray"), *start.split()[1:], "--object-store-memory=100000000", *quiet]
    with (temporary / "head.log").open("w") as log:
        head = subprocess.Popen(
            program, env=environment(temporary, **more), stdout=log, stderr=log, start_new_session=True
        )
        try:
            deadline = time.monotonic() + 60
            while not (temporary / "ray" / "ray_current_cluster").exists():
                assert head.poll() is None and time.monotonic() < deadline, Path(log.name).read_text()
                time.sleep(0.2)
            yield f"127.0.0.1:{port}"
        finally:
            head.send_signal(signal.SIGINT)
            head.wait(timeout=30)


@pytest.mark.slow
def test_beside_a_running_ray_comes_one_of_our_own_and_with_its_address_it_is_joined(temporary: Path) -> None:
    (temporary / "small.yaml").write_text(SMALL)
    command = [sys.executable, "-m", "kvray.cli", "run", str(temporary / "small.yaml"), "--store"]
    engine = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1] / "evaluate"), *sys.path])}
    with running(temporary, **engine) as address:
        own = call(temporary, [*command, str(temporary / "own")], **engine)
        assert own.returncode == 0, own.stderr
        assert "starting a local Ray, beside the one that runs at" in own.stderr and "Traceback" not in own.stderr
        joined = call(temporary, [*command, str(temporary / "joined")], RAY_ADDRESS=address, **engine)
        assert joined.returncode == 0, joined.stderr
        assert f"joining the Ray at {address} (without effect there: runtime.num_cpus, runtime." in joined.stderr
    made = [
        sorted(path.parent.name for path in (temporary / name).rglob("manifest.json")) for name in ("own", "joined")
    ]
    assert made[0] == made[1] != []
