"""Sends what a sweep has to its trackers, beside the run: a tracker that fails or hangs never holds it up."""

from __future__ import annotations

import importlib.util
import queue
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from kvray.console import say
from kvray.errors import InputError, KvrayError, Problem, first_line, install_command, without_logins, without_secrets
from kvray.store.store import Store

if TYPE_CHECKING:  # it brings polars and matplotlib, which a plan does without
    from kvray.report.trackers.content import Curve, Scores

WAIT_S = 300.0
"""For which the end of a run waits for what is still to be sent."""
_INTERRUPTED_S = 5.0  # the same for one that is interrupted or has failed


class Tracker(Protocol):
    """What takes curves and scores. What it has already, it does not take twice; any exception is its failure."""

    @property
    def place(self) -> str:
        """Where to look, without secrets: a command, a URI or a name."""

    def finetune(self, curve: Curve) -> None:
        """Take a finetune that is committed."""

    def scores(self, scores: Scores) -> None:
        """Take the sweep as it stands, in place of how it stood before."""


def _tensorboard(store: Store, sweep: str) -> Tracker:
    from kvray.report.trackers.event_files import EventFiles

    return EventFiles(store, sweep)


def _mlflow(store: Store, sweep: str) -> Tracker:
    from kvray.report.trackers.mlflow_runs import MlflowRuns

    return MlflowRuns(store, sweep)


def _wandb(store: Store, sweep: str) -> Tracker:
    from kvray.report.trackers.wandb_runs import WandbRuns

    return WandbRuns(store, sweep)


TRACKERS: Mapping[str, Callable[[Store, str], Tracker]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
}
"""By the name of their package, which is that of kvray's extra, too."""


def missing(names: Collection[str]) -> list[Problem]:
    """Return a problem for each tracker whose package is not installed."""
    return [
        Problem(
            ("runtime", "trackers"),
            f"found {name}, whose package is not installed; type {install_command(name)}, or leave it out",
        )
        for name in names
        if importlib.util.find_spec(name) is None
    ]


def opened(store: Store, sweep: str, names: Sequence[str]) -> dict[str, Tracker]:
    """Return trackers by name; InputError for unknown ones, absent packages, and settings that cannot work."""
    if unknown := [name for name in names if name not in TRACKERS]:
        raise InputError(f"--trackers: found {unknown[0]!r}; expected one of {', '.join(TRACKERS)}")
    if problems := missing(names):
        raise InputError(problems)
    return {name: TRACKERS[name](store, sweep) for name in dict.fromkeys(names)}


def everything(store: Store, sweep: str, names: Sequence[str]) -> dict[str, str]:
    """Send all finetunes, scores and figures of a sweep; return the place of each tracker by its name.

    Raises InputError as :func:`opened` does, or if there is no such sweep, and KvrayError if a tracker failed.
    """
    from kvray.report.trackers import content

    trackers = opened(store, sweep, names)
    curves, scores = content.curves(store, sweep), content.scores(store, sweep)
    for name, tracker in trackers.items():
        try:
            _give(tracker, curves, scores)
        except Exception as error:  # of a library, its server, or the disk
            raise KvrayError(f"{name}: {_why(error)}") from error
    return {name: tracker.place for name, tracker in trackers.items()}


class Sending:
    """Trackers of a run: a context, at whose end everything is sent that has not been."""

    def __init__(self, store: Store, sweep: str, names: Sequence[str]) -> None:
        """Open the trackers; InputError as :func:`opened` says. Nothing is sent yet."""
        self._store, self._sweep = store, sweep
        self._trackers = opened(store, sweep, names)
        self._committed: queue.Queue[str | None] = queue.Queue()
        self._whole = False
        self._thread = threading.Thread(target=self._live, name="kvray-trackers", daemon=True)

    def __enter__(self) -> Sending:
        if self._trackers:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if not self._trackers:
            return
        self._whole = kind is None
        self._committed.put(None)
        self._thread.join(WAIT_S if self._whole else _INTERRUPTED_S)
        if self._thread.is_alive():
            waited = f" within {WAIT_S / 60:.0f} minutes of the end" if self._whole else ""
            self._warn(list(self._trackers), f"did not take everything{waited}")

    def committed(self, artefact_id: str) -> None:
        """Tell that an artefact is committed: of a finetune the curve is sent."""
        if self._trackers and artefact_id.startswith("finetunes/"):
            self._committed.put(artefact_id)

    def _live(self) -> None:
        while (one := self._committed.get()) is not None:
            self._send(one)
        if self._whole:
            self._send(None)
            for name, tracker in self._trackers.items():
                say(f"kvray: {name}: {tracker.place}")

    def _send(self, one: str | None) -> None:
        """Send one finetune, or all and the scores; a tracker that fails is left out from then on."""
        from kvray.report.trackers import content

        try:
            curves = content.curves(self._store, self._sweep, None if one is None else [one])
            scores = content.scores(self._store, self._sweep) if one is None else None
        except Exception as error:  # the store does not answer, a disk is full
            self._warn(list(self._trackers), f"nothing to send: {_why(error)}")
            self._trackers = {}
            return
        for name, tracker in list(self._trackers.items()):
            try:
                _give(tracker, curves, scores)
            except Exception as error:  # of a library, its server, or the disk: the sweep is worth more
                del self._trackers[name]
                self._warn([name], f"{_why(error)}; the run goes on without it")

    def _warn(self, names: Sequence[str], why: str) -> None:
        later = " ".join(f"--trackers {name}" for name in names)
        say(f"kvray: warning: {', '.join(names)}: {why}; to send it later: kvray report {self._sweep} {later}")


def _give(tracker: Tracker, curves: Sequence[Curve], scores: Scores | None) -> None:
    for curve in curves:
        tracker.finetune(curve)
    if scores is not None:
        tracker.scores(scores)


def _why(error: BaseException) -> str:
    return without_logins(without_secrets(first_line(error)))
