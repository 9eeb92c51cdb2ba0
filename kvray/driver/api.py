"""The Python interface: :func:`plan` a sweep, :func:`run` it and look at its results, in a script or notebook."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvray.console import duration, html_table, say, table
from kvray.driver import run as driver
from kvray.driver.run import Result
from kvray.planning.artefacts import tell_replaced
from kvray.planning.cost import show
from kvray.planning.cost.estimate import Estimate, estimate
from kvray.store.store import Store
from kvray.sweep.model import Sweep

if TYPE_CHECKING:
    import polars as pl

    from kvray.planning.artefacts import Artefact
    from kvray.results.reader import Results

Source = Sweep | str | os.PathLike[str]  # a sweep, or the path of a sweep file
Place = Store | str | os.PathLike[str] | None  # a store, its path or URI; None takes $KVRAY_STORE, else ./store
_REPORT_HEIGHT = 700


def plan(
    sweep: Source, store: Place = None, *, offline: bool = True, verify: bool = False, allow_code: bool = False
) -> SweepPlan:
    """Return what a run would do: every artefact, cached or to run, with tokens, time and the reason.

    Writes nothing, and needs neither Ray nor a GPU: ``kvray.plan("sweeps/quickstart.yaml")``. ``store`` None takes
    ``$KVRAY_STORE``, else ``./store``. With ``offline``, a plan does without network sources that do not answer, and
    notes what it assumes instead. ``verify`` checks the sha256 of committed artefacts, not only presence, sizes and
    rows; ``allow_code`` loads the Python files beside a sweep file that its tasks name.

    Raises:
        InputError: with every problem of the sweep, its sources and its base model.
    """
    planned, _ = driver.prepare(sweep, offline=offline, allow_code=allow_code)
    place = driver.open_store(store)
    tell_replaced(planned, place)
    return SweepPlan(planned.sweep, place, estimate(planned, place, verify))


def run(
    sweep: SweepPlan | Source, store: Place = None, *, verify: bool = False, allow_code: bool = False
) -> SweepResult:
    """Make the artefacts of a sweep that the store lacks. An artefact that fails does not raise: see the result.

    The same call continues an interrupted run. A Ray that this process has joined is used; else ``runtime.address`` or
    ``$RAY_ADDRESS`` is joined; else a local one is started, and stopped at the end::

        result = kvray.run("sweeps/quickstart.yaml", store="store")
        result.accuracy(by=["model", "position"])

    The sources of a plan are read again, and ``store`` None takes its store, else ``$KVRAY_STORE``, else ``./store``.
    ``verify`` and ``allow_code`` are as in :func:`plan`.

    Raises:
        InputError: the sweep, its sources or its base model cannot be used, or the store cannot be written.
        StoreError: the store became unwritable during the run.
        ResourceError: the cluster lacks resources that the sweep asks for.
        RunInterrupted: Ctrl-C, or a notebook's stop button. Finished artefacts stay.
    """
    place = sweep.store if isinstance(sweep, SweepPlan) and store is None else driver.open_store(store)
    source = sweep.sweep if isinstance(sweep, SweepPlan) else sweep
    planned, base = driver.prepare(source, allow_code=allow_code)
    for warning in planned.warnings:
        say(f"kvray: warning: {warning}")
    done = driver.run(planned, base, place, verify)
    say(f"kvray: {done.outcome()}{'; result.failed says why' if done.failed else ''}")
    return SweepResult(**vars(done))


@dataclass(frozen=True, repr=False)
class SweepPlan:
    """What a run of a sweep would do, as of when it was planned. Displays as the tables of ``kvray plan``."""

    sweep: Sweep
    store: Store
    estimate: Estimate

    @property
    def artefacts(self) -> tuple[Artefact, ...]:
        """Every artefact, in the order of making."""
        return self.estimate.planned.artefacts

    @property
    def to_run(self) -> list[str]:
        """Ids of the artefacts that the store lacks."""
        return [each["id"] for each in self.document()["artefacts"] if each["state"] == "to run"]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Likely mistakes and likely failures that do not prevent a run."""
        return tuple(self.estimate.document["warnings"])

    def document(self) -> dict[str, Any]:
        """Return the plan in plain values, as ``kvray plan --json`` prints it."""
        return self.estimate.document

    def __repr__(self) -> str:
        return self.estimate.text()

    def _repr_html_(self) -> str:
        document = self.document()
        parts = [f"<b>sweep {html.escape(self.sweep.name)}</b>, base model {html.escape(document['base_model'])}"]
        parts += [f"not known here: {html.escape(note)}" for note in document["notes"]]
        parts += [html_table(header, rows, title.capitalize()) for title, header, rows in show.tables(self.estimate)]
        totals = document["totals"]
        seconds = totals["seconds"]
        time = "" if seconds is None or not totals["to_run"] else f", about {duration(seconds)}"
        parts += [html.escape(meaning) for meaning in show.marks(self.estimate)]
        parts.append(f"{totals['to_run']} to run, {totals['cached']} cached{time}")
        parts += [f"warning: {html.escape(warning)}" for warning in document["warnings"]]
        return "".join(part if part.startswith("<table") else f"<p>{part}</p>" for part in parts)


class SweepResult(Result):
    """What a run made, and the results of its sweep. Displays as a table: a row per model, a column per evaluation."""

    @property
    def results(self) -> Results:
        """The results of every sweep in the store."""
        from kvray.results.reader import Results

        return Results(self.store)

    def predictions(self) -> pl.LazyFrame:
        """Return a row per example and model; see :meth:`kvray.results.reader.Results.predictions`."""
        return self.results.predictions(self.sweep.name)

    def accuracy(self, by: Sequence[str] = ("evaluation", "model")) -> pl.DataFrame:
        """Return accuracies with 95 % intervals by any columns; see :meth:`kvray.results.reader.Results.accuracy`."""
        return self.results.accuracy(by, self.sweep.name)

    def compare(self, a: str | None = "*", b: str | None = "*", by: Sequence[str] = ()) -> pl.DataFrame:
        """Return paired differences b - a with intervals; see :meth:`kvray.results.reader.Results.compare`."""
        return self.results.compare(a, b, by, self.sweep.name)

    def examples(self, *chosen: Any, **also: Any) -> pl.DataFrame:
        """Return single answers with their prompts; see :meth:`kvray.results.reader.Results.examples`."""
        return self.results.examples(*chosen, **{**also, "sweep": self.sweep.name})

    def report(self, out: str | os.PathLike[str] | None = None) -> Report:
        """Write report.html, report.md, the figures and scores.parquet to a directory or URI (None: in the store)."""
        from kvray.report.build import write

        paths = write(self.store, self.sweep.name, out)
        return Report(paths.html, paths.directory, paths.page)

    def __repr__(self) -> str:
        from kvray.report.terminal import summary

        lines = [*summary(self.store, self.sweep.name), self.outcome()]
        return "\n".join([*lines, table(["artefact", "why"], self.failures())] if self.failed else lines)

    def _repr_html_(self) -> str:
        from kvray.report.terminal import NOTE, column
        from kvray.results.frames import BASE
        from kvray.results.snapshot import collect

        snapshot = collect(self.store, self.sweep.name)
        columns = [column(snapshot, evaluation)[1:] for evaluation in snapshot.profiles]
        rows = zip([BASE, *snapshot.models], *columns, strict=True)
        parts = [html_table(["", *snapshot.profiles], rows, self.sweep.name), f"<p>{NOTE}</p>"]
        parts.append(f"<p>{html.escape(self.outcome())}</p>")
        return "".join([*parts, html_table(["artefact", "why"], self.failures())] if self.failed else parts)


@dataclass(frozen=True)
class Report(os.PathLike[str]):
    """A written report, usable as the path of its page (``webbrowser.open(str(report))``); ``page`` is the HTML."""

    path: str
    directory: str
    page: str = field(repr=False)

    def __fspath__(self) -> str:
        return self.path

    def __str__(self) -> str:
        return self.path

    def _repr_html_(self) -> str:
        alone = 'sandbox="allow-scripts"'  # the page's scripts run, and reach nothing of the notebook
        frame = f'<iframe {alone} srcdoc="{html.escape(self.page)}" width="100%" height="{_REPORT_HEIGHT}"></iframe>'
        return f"<p>{html.escape(self.path)}</p>{frame}"
