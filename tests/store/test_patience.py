"""What may pass is waited out, for as long as the budget without a success lasts; all else is raised at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kvray.errors import DamagedArtefactError, InputError, StoreError, StoreUnavailableError
from kvray.store import patience
from kvray.store.patience import Patience, asked_for
from kvray.store.store import Store


class Failing:
    """Raises an error so many times, then returns a number."""

    def __init__(self, times: int, error: type[StoreError] = StoreUnavailableError) -> None:
        self.left, self.error, self.calls = times, error, 0

    def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self.left:
            raise self.error("SLOW_DOWN")
        return 7


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(patience, "say", lines.append)
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(patience, "LONGEST_WAIT_S", 0.05)
    return lines


@pytest.mark.parametrize("times", [0, 1, 6])
def test_an_error_that_passes_is_waited_out_without_a_word_if_it_is_short(said: list[str], times: int) -> None:
    call = Failing(times)
    assert Patience("s3://b", 60)(call) == 7 and call.calls == times + 1
    assert said == []


@pytest.mark.parametrize("error", [StoreError, DamagedArtefactError])
def test_one_that_does_not_pass_is_raised_at_once(said: list[str], error: type[StoreError]) -> None:
    call = Failing(1, error)
    with pytest.raises(error):
        Patience("s3://b", 60)(call)
    assert call.calls == 1


def test_what_is_away_is_given_up_once_and_a_success_begins_anew(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, away = Patience("s3://b", 0.4), Failing(10**9)
    began = time.monotonic()
    with pytest.raises(StoreUnavailableError, match="SLOW_DOWN"):
        place(away)
    assert 0.4 <= time.monotonic() - began < 30 and away.calls > 4
    monkeypatch.setattr(patience, "LONGEST_WAIT_S", 1000.0)  # else a busy machine lets it be forgotten
    again = Failing(1)
    with pytest.raises(StoreUnavailableError):  # nothing has succeeded since
        place(again)
    assert again.calls == 1
    assert place(again) == 7
    assert place(Failing(3)) == 7


def test_the_successes_of_other_threads_keep_a_place_from_being_given_up(said: list[str]) -> None:
    place, refused = Patience("s3://b", 0.3), Failing(10**9)
    over = threading.Event()

    def succeed() -> None:
        while not over.wait(0.01):
            place(Failing(0))

    thread = threading.Thread(target=succeed)
    thread.start()
    try:
        assert place(Failing(8)) == 7
        with pytest.raises(StoreUnavailableError):  # though not what alone is refused for ever
            place(refused)
    finally:
        over.set()
        thread.join()


def test_a_long_silence_is_said_once_and_so_is_its_end(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "SAID_AFTER_S", 0.05)
    place, until = Patience("s3://b", 60), time.monotonic() + 0.3

    def call() -> int:
        if time.monotonic() < until:
            raise StoreUnavailableError("s3://b/x: cannot read: SLOW_DOWN")
        return 7

    threads = [threading.Thread(target=place, args=(call,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == [
        "kvray: s3://b does not answer as it should (s3://b/x: cannot read: SLOW_DOWN); tried again for 60 s",
        "kvray: s3://b answers again, after <1 s",
    ]


def test_a_lowered_budget_ends_waits_that_have_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 1000.0)
    monkeypatch.setattr(patience, "LONGEST_WAIT_S", 1000.0)
    place, errors = Patience("s3://b", 10**6), []

    def wait() -> None:
        try:
            place(Failing(10**9))
        except StoreUnavailableError as error:
            errors.append(error)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    with place.at_most(0):
        for thread in threads:
            thread.join(timeout=10)
        assert len(errors) == 3


def test_ctrl_c_ends_a_wait_at_once_in_the_threads_of_many_reads_too(tmp_path: Path) -> None:
    program = f"""
import time
from kvray.errors import StoreUnavailableError
from kvray.store import patience
from kvray.store.store import Store
patience.FIRST_WAIT_S = patience.LONGEST_WAIT_S = 1000.0
store = Store({str(tmp_path)!r})
store._files.remote = True
def read(_):
    raise StoreUnavailableError("SLOW_DOWN")
print("ready", flush=True)
store.each(lambda item: store._files.patience(lambda: read(item)), range(40))
"""
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"KVRAY_PATIENCE_S": "100000", "PYTHONPATH": ":".join(sys.path)},
    )
    assert child.stdout and child.stdout.readline() == b"ready\n"
    time.sleep(0.5)
    began = time.monotonic()
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=20)
    assert time.monotonic() - began < 5
    assert errors.strip().endswith(b"KeyboardInterrupt")


def test_the_budget_comes_from_the_environment_and_travels_with_the_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(patience.VARIABLE, "12.5")
    store = Store(tmp_path)
    assert asked_for() == 12.5
    monkeypatch.delenv(patience.VARIABLE)
    kind, given, known = store.__reduce__()
    carried = kind(*given)
    carried.__dict__.update(known)
    assert (carried._patience_s, Store(tmp_path)._patience_s) == (12.5, None)
    for wrong in ("soon", "-1", "inf", "nan"):
        monkeypatch.setenv(patience.VARIABLE, wrong)
        with pytest.raises(InputError, match=rf"KVRAY_PATIENCE_S: found '{wrong}'; expected seconds"):
            Store(tmp_path)
