"""Coroutines run to their end in a script and inside a notebook's event loop, and Ctrl-C cancels them in both."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable

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


@pytest.mark.parametrize("place", [in_a_script, in_a_notebook])
def test_ctrl_c_cancels_it(place: Callable[..., object]) -> None:
    ended = []

    async def long() -> None:
        main = threading.main_thread().ident
        assert main
        asyncio.get_running_loop().call_later(0.1, signal.pthread_kill, main, signal.SIGINT)
        try:
            await asyncio.sleep(30)
        finally:
            ended.append("cleaned up")

    with pytest.raises(KeyboardInterrupt):
        place(lambda: run_async(long()))
    assert ended == ["cleaned up"]
