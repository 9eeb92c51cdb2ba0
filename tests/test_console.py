"""Progress in every kind of terminal: a bar that moves and keeps to its line, plain lines where nothing can move."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from types import ModuleType, SimpleNamespace
from typing import cast

import pytest
import terminals

from kvray import console

WORK = """
import time
from kvray.console import say, track
with track("evaluate", 100) as advance:
    for done in range(0, 101, 10):
        advance(done + (0.7 if done < 100 else 0), "33% loss 1.859, [base] 66% loss 1.432, " * 3)
        if done == 50:
            say("kvray: a line in between")
        time.sleep(0.12)
print("the end")
"""
COMMAND = [sys.executable, "-c", WORK]


def shown(columns: int = 100, **changes: str | None) -> terminals.Seen:
    env: Mapping[str, str | None] = {**os.environ, "TERM": "xterm-256color", "NO_COLOR": None, **changes}
    return terminals.run(COMMAND, columns=columns, environment={k: v for k, v in env.items() if v is not None})


@pytest.mark.parametrize("columns", [160, 80, 60, 40, 24])
def test_a_bar_keeps_to_one_line_whatever_the_width(columns: int) -> None:
    seen = shown(columns)
    assert seen.status == 0
    assert seen.screen[0].startswith("kvray: a line in between"[:columns])
    (bar,) = [line for line in seen.screen if line.startswith("evaluate")]
    assert "100/100" in bar and len(bar) <= columns
    assert seen.screen[-1] == "the end"
    drawn = {number for number in range(0, 101, 10) for frame in seen.frames if f" {number}/100 rows" in frame}
    assert len(drawn) > 4, "the bar moved"
    assert "\x1b[?25h" in seen.raw.rpartition("\x1b[?25l")[2], "the cursor is shown again"


def test_no_color_takes_the_colours_and_leaves_the_bar() -> None:
    seen = shown(NO_COLOR="1")
    assert "\x1b[3" not in seen.raw and "━" in seen.raw and "100/100 rows" in seen.screen[-2]
    assert "\x1b[3" in shown().raw


@pytest.mark.parametrize("term", ["dumb", None])
def test_a_terminal_that_cannot_move_gets_plain_lines(term: str | None) -> None:
    seen = shown(200, TERM=term) if term else shown(200, TERM="")
    assert "\x1b" not in seen.raw
    assert [line.partition("s ")[0] for line in seen.screen[:3:2]] == [
        "kvray: evaluate: 0/100 row",
        "kvray: evaluate: 100/100 row",
    ]


def test_what_is_piped_gets_plain_lines() -> None:
    done = subprocess.run(COMMAND, capture_output=True, text=True, check=True, env={**os.environ, "FORCE_COLOR": "1"})
    assert "\x1b" not in done.stderr and done.stdout == "the end\n"
    assert done.stderr.startswith("kvray: evaluate: 0/100 rows 0s 33% loss 1.859")


def test_a_notebook_draws_one_line_again(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    drawn: list[str] = []

    def display(data: dict[str, str], raw: bool, display_id: bool) -> SimpleNamespace:
        assert raw and display_id
        return SimpleNamespace(update=lambda data, raw: drawn.append(data["text/plain"]))

    shell = SimpleNamespace(config={"IPKernelApp": {}})
    ipython = {"get_ipython": lambda: shell}
    monkeypatch.setitem(sys.modules, "IPython", cast(ModuleType, SimpleNamespace(**ipython)))
    monkeypatch.setitem(sys.modules, "IPython.display", cast(ModuleType, SimpleNamespace(display=display)))
    with console.track("evaluate", 100) as advance:
        for done in (0, 1, 100):
            advance(done, "a note")
    assert drawn == ["kvray: evaluate: 0/100 rows 0s a note", "kvray: evaluate: 100/100 rows 0s a note"]
    assert capsys.readouterr() == ("", "")
    shell.config.clear()
    assert not console.in_notebook()
