"""Patience with a place that does not answer, or has no room, for now: calls are made again with growing waits.

The waits grow as in AWS's "full jitter" (Brooker, Exponential Backoff and Jitter, 2015): each is uniform between 0 and
a bound that doubles. The budget is one of time without success, of all threads together, so that a place that refuses
a third of all requests is never given up, and one that is away is given up once: after that every call is tried a
single time, until one succeeds.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from kvray.console import duration, say
from kvray.errors import InputError, first_line, passes

VARIABLE = "KVRAY_PATIENCE_S"
"""Environment variable: seconds without success after which a store is given up."""
STORE_S = 600.0
"""Of an object store by default. Interruptions of S3 and GCS last minutes."""
DISK_S = 300.0
"""Of a local disk or mount: for somebody to make room, for a server to restart."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
"""Bounds of the first wait, and of the longest."""
SAID_AFTER_S = 10.0
"""Without success until it is said: most errors pass within a second."""

_Result = TypeVar("_Result")


def asked_for() -> float | None:
    """Return the seconds in :data:`VARIABLE`, None if it is not set; InputError if they are no number from 0 on."""
    text = os.environ.get(VARIABLE, "").strip()
    try:
        seconds = float(text or 0)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise InputError(f"{VARIABLE}: found {text!r}; expected seconds, such as {STORE_S:g}")
    return seconds if text else None


class Patience:
    """Patience with ``place``, shared by the threads of a process; ``budget_s`` bounds the time without a success."""

    def __init__(self, place: str, budget_s: float) -> None:
        self._place = place
        self._budget_s = budget_s
        self._changed = threading.Condition()
        self._failing_since: float | None = None
        self._failed_at = 0.0
        self._said = False
        self._retrying = Retrying(
            retry=retry_if_exception(passes),
            wait=wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
            stop=self._over,
            sleep=self._sleep,
            reraise=True,
        )

    def __call__(self, call: Callable[[], _Result]) -> _Result:
        """Return what ``call`` returns, made again while its error may pass and the budget lasts; else raise that."""
        result = self._retrying(call)
        if self._failing_since is not None:
            self._succeeded()
        return result

    @contextmanager
    def at_most(self, seconds: float) -> Iterator[None]:
        """Lower the budget, of calls that already wait too, until the context ends."""
        before = self._budget_s
        with self._changed:
            self._budget_s = min(before, seconds)
            self._changed.notify_all()
        try:
            yield
        finally:
            self._budget_s = before

    def _over(self, state: RetryCallState) -> bool:
        """Take a failed attempt; return whether its call is given up."""
        error = state.outcome.exception() if state.outcome else None
        now = time.monotonic()
        with self._changed:
            # What failed long ago, and has not been asked since, tells nothing of now.
            if self._failing_since is None or now - self._failed_at > 2 * LONGEST_WAIT_S:
                self._failing_since = now
            self._failed_at = now
            # A call that alone fails, beside others that succeed, is given up once it has waited as long.
            over = max(now - self._failing_since, state.idle_for) >= self._budget_s
            tell = not self._said and not over and now - self._failing_since >= SAID_AFTER_S
            self._said |= tell
        if tell:
            why = first_line(error) if error else ""
            say(
                f"kvray: {self._place} does not answer as it should ({why}); tried again for {duration(self._budget_s)}"
            )
        return over

    def _succeeded(self) -> None:
        with self._changed:
            began, self._failing_since = self._failing_since, None
            said, self._said = self._said, False
        if said and began is not None:
            say(f"kvray: {self._place} answers again, after {duration(time.monotonic() - began)}")

    def _sleep(self, seconds: float) -> None:
        """Wait, unless the budget is lowered meanwhile."""
        with self._changed:
            left = self._budget_s
            self._changed.wait_for(lambda: self._budget_s < left, timeout=seconds)
