"""A store that is full, read-only or no directory: one line in every command, without a trace before it."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from click.testing import Result
from small_disk import disk, fill, read_only
from typer.testing import CliRunner

from kvray.cli import app
from kvray.driver import run as running
from kvray.errors import DiskFullError, ResourceError
from kvray.evaluate.engines import vllm
from kvray.store import patience
from kvray.store.places.files import free_bytes
from kvray.store.places.scratch import scratch_directory
from kvray.store.store import Store

__all__ = ["disk"]
SWEEP = """\
name: small
base_model: kvray-tiny
datasets: {kv: {task: simple_kv, rows: 4, dictionaries: 3}}
finetune: {learning_rate: 2.0e-2}
evaluate: {ask: {task: mdqa, documents: 2, positions: [1, 2], questions: 3}}
"""


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAY_ADDRESS", "no Ray is to be asked")
    file = tmp_path / "small.yaml"
    file.write_text(SWEEP)
    return file


def kvray(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("below", ["", "/below/store"])
@pytest.mark.parametrize("command", ["run", "plan", "status", "report", "blend", "why"])
def test_a_store_that_is_a_file_or_below_one_is_one_line_in_every_command(
    command: str, below: str, sweep: Path, tmp_path: Path
) -> None:
    store = tmp_path / "file"
    store.write_text("")
    arguments: dict[str, tuple[object, ...]] = {
        "blend": (sweep, "kv", "--out", tmp_path / "kv.jsonl"),
        "why": ("mdqa-base", "--sweep", sweep),
    }
    result = kvray(command, *arguments.get(command, (sweep,)), "--store", f"{store}{below}")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"store: {store} is a file; expected a directory\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "small.yaml"]


def test_a_run_into_a_read_only_store_is_refused_in_one_line_and_looking_at_it_is_not(sweep: Path, disk: Path) -> None:
    read_only(disk)
    result = kvray("run", sweep, "--store", disk)
    assert (result.exit_code, result.stdout) == (2, "")
    said = f"store: {disk} cannot be written: Read-only file system; make room or give another one (--store)\n"
    assert result.stderr == said
    for command in ("plan", "status"):
        assert kvray(command, sweep, "--store", disk).exit_code == 0


def test_a_run_into_a_full_store_is_refused_in_one_line(sweep: Path, disk: Path) -> None:
    fill(disk, 0)
    result = kvray("run", sweep, "--store", disk / "store")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "cannot be written: No space left on device, 0 B free; make room" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("ray_two_cpus")
def test_a_store_that_becomes_full_ends_the_run_with_one_sentence_and_what_to_type(
    sweep: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS")
    said: list[str] = []

    def say(message: str) -> None:
        said.append(message)
        if message == "kvray: to make: 2 in generate, 1 in finetune, 2 in evaluate":
            fill(disk, 0)

    monkeypatch.setattr(running, "say", say)
    result = kvray("run", sweep, "--store", disk / "store")
    assert result.exit_code == 1
    *_, last = result.stderr.splitlines()
    # The driver itself met it (its lease), or the first artefact did.
    assert last.startswith("kvray: ") and str(disk) in last
    assert "No space left on device, 0 B free; make room there, then type the same command" in last
    assert "Traceback" not in result.stderr + "".join(capfd.readouterr())
    assert not any("evaluate:" in message for message in said)  # no further stage was tried
    (disk / "filler").unlink()
    assert json.loads(kvray("status", sweep, "--store", disk / "store", "--json").stdout)["committed"] == 0


def test_a_full_disk_is_waited_for(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(patience.VARIABLE, "60")
    store = Store(disk / "store")
    store.check(write=True)
    fill(disk, 0)
    threading.Timer(1.0, (disk / "filler").unlink).start()
    began = time.monotonic()
    entry = store.write("datasets/a-0", "a.bin", bytes(300_000))
    assert 1 <= time.monotonic() - began < 30
    assert store.entry("datasets/a-0", "a.bin") == entry


def test_a_file_larger_than_what_is_free_does_not_fill_the_disk(disk: Path) -> None:
    store, free = Store(disk / "store"), free_bytes(str(disk)) or 0
    with store.hurry(), pytest.raises(DiskFullError) as failure:
        store.write("datasets/a-0", "a.bin", bytes(2 * free))
    assert (free_bytes(str(disk)) or 0) > 0.9 * free
    path = store.path("datasets/a-0", "a.bin")
    assert str(failure.value) == (
        f"{path}: cannot write 2,097,152 bytes: No space left on device, 1.0 MB free; make room there, then type the "
        "same command"
    )


def test_a_full_scratch_directory_is_named_whoever_filled_it(disk: Path) -> None:
    with (
        pytest.raises(DiskFullError, match=rf"{disk}/kvray-evaluate-.*: cannot write: No space left .*runtime.scratch"),
        scratch_directory(str(disk), "evaluate") as place,
    ):
        Path(place, "weights").write_bytes(bytes(2**21))
    with pytest.raises(ValueError, match="a bug"), scratch_directory(str(disk), "evaluate"):
        raise ValueError("a bug")
    assert list(disk.iterdir()) == []


def test_a_machine_without_a_compiler_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ResourceError, match=r"g\+\+: not found on this node.*apt install g\+\+"):
        vllm.check_platform(gpu=False)
