"""Patience with the Hugging Face hub, and with other servers that sources come from.

The hub's client repeats a request by itself for some seconds; interruptions and limits of the rate last longer.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

from kvray.store.patience import STORE_S, Patience, asked_for

LOOK_S = 10.0
"""For which a question is asked again: a plan can do without the answer."""

_Result = TypeVar("_Result")


def look(call: Callable[[], _Result]) -> _Result:
    """Return what a question returns, asked again for :data:`LOOK_S` while its error may pass; else raise that."""
    return _patience(LOOK_S, asked_for())(call)


def download(call: Callable[[], _Result]) -> _Result:
    """Return what a download returns, begun again, as long as one from a store, while its error may pass."""
    return _patience(STORE_S, asked_for())(call)


@lru_cache
def _patience(most: float, asked: float | None) -> Patience:
    return Patience("the network", most if asked is None else min(most, asked))
