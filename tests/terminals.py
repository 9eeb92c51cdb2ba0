"""A command in a real pseudo-terminal, and what a person would see on its screen."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pexpect
import pyte

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Seen:
    """What a command showed.

    Attributes:
        status: its exit status; minus the signal that ended it.
        raw: all that it wrote, control codes included.
        screen: lines of the screen at its end, scrolled-off ones in front, as wide as the terminal at most.
        frames: the distinct lines that were ever drawn, control codes removed, in order.
        seconds_after_interrupt: from Ctrl-C to the end; None without one.
    """

    status: int
    raw: str
    screen: list[str]
    frames: list[str]
    seconds_after_interrupt: float | None = None


def run(
    command: Sequence[str],
    *,
    columns: int = 100,
    environment: Mapping[str, str] | None = None,
    interrupt: Callable[[str], bool] | None = None,
    timeout: float = 400,
) -> Seen:
    """Run a command in a terminal of its own; press Ctrl-C once, as soon as ``interrupt`` of the output holds."""
    env = {"TERM": "xterm-256color", **(os.environ if environment is None else environment)}
    for name in ("COLUMNS", "LINES"):  # test runners export them, and programs believe them more than the terminal
        env.pop(name, None)
    child = pexpect.spawn(command[0], list(command[1:]), dimensions=(40, columns), env=env, timeout=timeout)
    deadline, pressed, data = time.monotonic() + timeout, None, b""
    while True:
        assert time.monotonic() < deadline, f"no end within {timeout} s:\n{data.decode(errors='replace')[-2000:]}"
        try:
            data += child.read_nonblocking(65536, timeout=0.1)
        except pexpect.TIMEOUT:
            pass
        except pexpect.EOF:
            break
        if interrupt and pressed is None and interrupt(data.decode(errors="replace")):
            pressed = time.monotonic()
            child.sendintr()
    child.close()
    raw = data.decode()
    screen = pyte.HistoryScreen(columns, 40, history=5000, ratio=1.0)
    pyte.Stream(screen).feed(raw)
    above = ["".join(line[x].data for x in range(columns)) for line in screen.history.top]
    lines = [line.rstrip() for line in [*above, *screen.display]]
    frames = [line.rstrip() for line in re.split(r"[\r\n]+", _CONTROL.sub("", raw)) if line.strip()]
    status = child.exitstatus if child.signalstatus is None else -child.signalstatus
    assert status is not None
    return Seen(
        status,
        raw,
        [line for line in lines if line],
        list(dict.fromkeys(frames)),
        None if pressed is None else time.monotonic() - pressed,
    )
