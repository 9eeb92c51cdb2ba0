"""Errors of an object store that pass are waited out, all others are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvray.errors import DamagedArtefactError, RecipeMismatchError, StoreError
from kvray.store import patience
from kvray.store.patience import patiently
from kvray.store.store import Store


class Failing:
    """Raises an error so many times, then returns what it is given."""

    def __init__(self, times: int, error: type[StoreError] = StoreError) -> None:
        self.left, self.error, self.calls = times, error, 0

    def __call__(self, value: int) -> int:
        self.calls += 1
        if self.calls <= self.left:
            raise self.error("SLOW_DOWN")
        return value


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(patience, "WAITS_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(Store, "remote", True)
    return Store(tmp_path)


@pytest.mark.parametrize("times", [0, 1, 3])
def test_an_error_that_passes_is_waited_out(remote: Store, times: int) -> None:
    call = Failing(times)
    assert patiently(remote, call, 7) == 7 and call.calls == times + 1


def test_one_that_stays_is_raised(remote: Store) -> None:
    call = Failing(4)
    with pytest.raises(StoreError, match="SLOW_DOWN"):
        patiently(remote, call, 7)
    assert call.calls == 4


@pytest.mark.parametrize("error", [DamagedArtefactError, RecipeMismatchError])
def test_what_is_wrong_with_an_artefact_does_not_pass(remote: Store, error: type[StoreError]) -> None:
    call = Failing(1, error)
    with pytest.raises(error):
        patiently(remote, call, 7)
    assert call.calls == 1


def test_a_local_disk_is_not_waited_for(tmp_path: Path) -> None:
    assert not Store(tmp_path).remote
    call = Failing(1)
    with pytest.raises(StoreError):
        patiently(Store(tmp_path), call, 7)
    assert call.calls == 1
