"""The progress line of several engines: never more done than there is."""

from __future__ import annotations

import pytest

from kvray.console import track
from kvray.evaluate.worker import Tally


def test_an_estimated_total_is_replaced_by_what_the_workers_count(capfd: pytest.CaptureFixture[str]) -> None:
    with track("evaluate", 112, "rows") as advance:
        # A benchmark thought to have 12 questions has 20.
        tally = Tally(advance, [100, 12])
        tally.report(0, 100, 100)
        tally.report(1, 0, 20)
        tally.report(1, 20, 20, "1 retries")
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("kvray: evaluate: 100/112 rows")
    assert lines[-1].startswith("kvray: evaluate: 120/120 rows") and "rows/s, 1 retries" in lines[-1]


def test_rows_of_an_earlier_run_count_as_done_and_not_in_the_rate() -> None:
    shown: list[tuple[float, str, float | None]] = []

    def advance(done: float, note: str = "", total: float | None = None) -> None:
        shown.append((done, note, total))

    tally = Tally(advance, [50, 50])
    tally.report(0, 40, 50)
    tally.report(1, 0, 0)  # none of its cells could be read
    assert shown == [(40, "an engine starts", 100), (40, "an engine starts", 50)]
    tally.report(0, 50, 50)
    assert shown[-1][0] == shown[-1][2] == 50 and shown[-1][1].endswith("rows/s")
