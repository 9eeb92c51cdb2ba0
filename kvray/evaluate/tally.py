"""The progress of several assignments on one line."""

import time
from collections.abc import Sequence

from kvray.console import Advance


class Tally:
    """Sums what the workers report.

    An assignment counts with its planned rows, an estimate for lm_eval benchmarks, until its worker has counted them.
    """

    def __init__(
        self, advance: Advance, planned: Sequence[float], unit: str = "rows", waiting: str = "an engine starts"
    ) -> None:
        """Take the planned rows per assignment; ``waiting`` is shown until the first answer."""
        self.waiting = waiting
        self._advance = advance
        self._unit = unit
        self._totals = list(planned)
        self._done: dict[int, int] = {}
        self._kept = 0
        self._started = time.monotonic()

    def report(self, number: int, done: int, total: int, note: str = "") -> None:
        """Take what a worker reports: ``done`` of ``total`` rows of an assignment."""
        if number not in self._done:
            self._kept += done  # of an earlier run
        self._done[number], self._totals[number] = done, total
        answered = sum(self._done.values()) - self._kept
        rate = f"{max(answered, 0) / max(time.monotonic() - self._started, 1e-9):.1f} {self._unit}/s"
        self.show(", ".join(filter(None, [rate if answered else self.waiting, note])))

    def show(self, note: str) -> None:
        """Show a note beside what is done."""
        self._advance(sum(self._done.values()), note, round(sum(self._totals)))
