"""Coroutines run to their end in a script and inside a notebook's event loop, and Ctrl-C cancels them in both."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvray.models.openai import run_async


def in_a_script(function: Callable[[], object]) -> object:
    return function()


def in_a_notebook(function: Callable[[], object]) -> object:
    async def cell() -> object:
        return function()

    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(cell())
    finally:
        loop.close()


@pytest.mark.parametrize("place", [in_a_script, in_a_notebook])
def test_a_coroutine_runs_to_its_end_and_its_error_is_raised(place: Callable[..., object]) -> None:
    async def answer(right: bool) -> int:
        await asyncio.sleep(0.01)
        if not right:
            raise ValueError("wrong")
        return 42

    assert place(lambda: run_async(answer(True))) == 42
    with pytest.raises(ValueError, match="wrong"):
        place(lambda: run_async(answer(False)))


CANCELLED = """
import asyncio, os, signal, sys
sys.path.insert(0, {folder!r})
from test_run_async import {place}
from kvray.models.openai import run_async

async def long():
    asyncio.get_running_loop().call_later(0.1, os.kill, os.getpid(), signal.SIGINT)
    try:
        await asyncio.sleep(60)
    finally:
        print("cleaned up")

try:
    {place}(lambda: run_async(long()))
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("place", [in_a_script, in_a_notebook])
def test_ctrl_c_cancels_it(place: Callable[..., object]) -> None:
    # In an interpreter of its own: what other tests load (vLLM with uvloop) takes signals in its own way.
    code = CANCELLED.format(folder=str(Path(__file__).parent), place=place.__name__)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=40, check=False)
    assert (done.returncode, done.stdout.split("\n")[:2]) == (0, ["cleaned up", "interrupted"]), done.stderr
