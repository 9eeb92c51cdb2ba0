"""kvray status --watch: drawn again in a terminal, printed when something changed in a pipe, ended when all is over."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import terminals
from made_sweeps import commit_sweep
from typer.testing import CliRunner

from kvray.cli import app
from kvray.store import failures
from kvray.store.leases import Leases
from kvray.store.store import Store

LAST = "predictions/recall-ours-s1"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A sweep that lacks the answers of one finetune to one evaluation."""
    found = Store(str(tmp_path / "store"))
    commit_sweep(found, "first", mixtures=["ours"], questions=6, skip=[LAST])
    return found


def command(store: Store, *words: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "kvray.cli",
        "status",
        "first",
        "--store",
        store.uri,
        "--watch",
        "--every",
        "0.2",
        *words,
    ]


def missing(store: Store) -> str:
    (found,) = (a["id"] for a in store.plan_document("first")["artefacts"] if a["id"].startswith(LAST))
    return str(found)


def finish(store: Store, after_s: float) -> threading.Thread:
    """Commit what is missing a while from now."""

    def commit() -> None:
        time.sleep(after_s)
        commit_sweep(store, "first", mixtures=["ours"], questions=6)

    thread = threading.Thread(target=commit)
    thread.start()
    return thread


def test_a_terminal_is_drawn_again_until_all_is_committed(store: Store) -> None:
    finishing: list[threading.Thread] = []

    def once_shown(output: str) -> bool:
        if "10 of 11 artefacts committed" in output and not finishing:
            finishing.append(finish(store, 0.5))
        return False

    seen = terminals.run(command(store), columns=80, interrupt=once_shown, timeout=60)
    finishing[0].join()
    assert seen.status == 0
    assert seen.screen[0].startswith("first: 11 of 11 artefacts committed")
    assert sum("artefacts committed" in line for line in seen.screen) == 1, "one block, drawn again in its place"
    assert any("no run of it is alive" in frame for frame in seen.frames)
    assert max(map(len, seen.screen)) <= 80
    assert "\x1b[?25h" in seen.raw.rpartition("\x1b[?25l")[2], "the cursor is shown again"


def test_ctrl_c_ends_it_without_a_word(store: Store) -> None:
    seen = terminals.run(command(store), interrupt=lambda output: "artefacts committed" in output, timeout=60)
    assert seen.status == 0 and "Traceback" not in seen.raw and "kvray:" not in seen.raw
    assert seen.seconds_after_interrupt is not None and seen.seconds_after_interrupt < 5


def test_a_pipe_gets_a_block_when_something_changed_and_no_control_codes(store: Store) -> None:
    process = subprocess.Popen(
        command(store), stdout=subprocess.PIPE, text=True, env={**os.environ, "FORCE_COLOR": "1"}
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    finish(store, 1.5).join()  # several looks at the same state
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "\x1b" not in rest
    blocks = re.findall(r"first: (\d+) of 11 artefacts", first + rest)
    assert blocks[0] == "10" and blocks[-1] == "11"
    assert len(blocks) == len(set(blocks)), "nothing is printed where nothing changed"


def test_what_failed_ends_it_with_its_reason_and_exit_1(store: Store) -> None:
    failures.note(store, missing(store), "EngineDeadError: exit -9\nretried")
    done = CliRunner().invoke(app, command(store)[3:])
    assert done.exit_code == 1
    assert f"failed: {missing(store)}: EngineDeadError: exit -9 retried" in done.stdout


def test_what_a_live_run_tries_again_is_waited_for(store: Store) -> None:
    failures.note(store, missing(store), "it failed")
    with Leases(store, "first") as leases:
        assert leases.take({missing(store)}) == {missing(store)}
        process = subprocess.Popen(command(store), stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        shown = []
        while not any(line.startswith("running: ") for line in shown):
            shown.append(process.stdout.readline())
            assert shown[-1], "it waits for the run"
        assert any(line.startswith(f"run {leases.me.run} of first on ") for line in shown)
        time.sleep(0.5)
        assert process.poll() is None
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "it failed" in rest, "the run ended without it"


def test_what_needs_a_failed_artefact_is_blocked_and_not_waited_for(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    commit_sweep(store, "first", mixtures=["ours"], questions=6, skip=["finetunes/ours-s1", "ours-s1"])
    finetune = next(
        a["id"] for a in store.plan_document("first")["artefacts"] if a["id"].startswith("finetunes/ours-s1")
    )
    failures.note(store, finetune, "out of memory")
    done = CliRunner().invoke(app, command(store)[3:])
    assert done.exit_code == 1, done.output
    assert "blocked" in done.stdout and "first: 8 of 11" in done.stdout


def test_it_is_for_looking_at(store: Store) -> None:
    for option in ("--json", "--verify"):
        done = CliRunner().invoke(app, [*command(store)[3:], option])
        assert done.exit_code == 2 and done.stdout == "" and "expected neither --json nor --verify" in done.stderr
    assert (
        json.loads(CliRunner().invoke(app, ["status", "first", "--store", store.uri, "--json"]).stdout)["planned"] == 11
    )
