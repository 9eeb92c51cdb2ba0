"""The Python interface to two sweeps side by side: :func:`compare`, and the page on them."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kvray.console import html_table
from kvray.driver import run as driver
from kvray.driver.api import Place, Report
from kvray.sweep.load import load

if TYPE_CHECKING:
    import polars as pl

    from kvray.results.across.compare import Comparison


def compare(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str] | None = None,
    store: Place = None,
    store_b: Place = None,
    *,
    pair: Mapping[str, str] | Sequence[str] = (),
    scale: str | None = None,
    allow_code: bool = False,
) -> SweepComparison:
    """Compare sweep ``b`` with sweep ``a``: each model with its partner, on the examples that both sweeps asked.

    For example::

        both = kvray.compare("first", "second", store="store")
        both.table  # a row per comparison, as polars
        both.report()  # the path of its page; a notebook shows it

    ``a`` and ``b`` are names of sweeps that were run, or their files, of which ``scale`` may be taken and
    ``allow_code`` may run Python beside them. ``store`` None takes ``$KVRAY_STORE``, else ``./store``; ``store_b`` None
    takes that of ``a``, and ``b`` may be left out where the two stores have a sweep of the same name. Models are paired
    by name; ``pair={"ours": "ours-long"}``, or ``["ours=ours-long"]``, pairs models of ``a`` and ``b`` by hand.

    Raises:
        InputError: a store has no such sweep, both are the very same one, a pair is none, or nothing can be compared.
    """
    from kvray.results.across.compare import compare as compare_sweeps

    first, second = (_name(each, scale, allow_code) for each in (a, a if b is None else b))
    here = driver.open_store(store)
    there = here if store_b is None else driver.open_store(store_b)
    by_hand = list(pair.items()) if isinstance(pair, Mapping) else list(pair)
    return SweepComparison(compare_sweeps((here, first), (there, second), by_hand))


def _name(sweep: str | os.PathLike[str], scale: str | None, allow_code: bool) -> str:
    text = os.fspath(sweep)
    return load(text, scale=scale, allow_code=allow_code).name if text.endswith((".yaml", ".yml")) else text


class SweepComparison:
    """Two sweeps side by side, as of when they were read. Displays as the tables of ``kvray compare``."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        """All that was found, with the plans of both sweeps."""

    @property
    def table(self) -> pl.DataFrame:
        """A row per comparison; :class:`kvray.results.across.compare.Comparison` has the columns."""
        return self.comparison.table

    @property
    def settings(self) -> list[tuple[str, str, str]]:
        """What differs between the recipes: dotted path, value of ``a``, value of ``b``, as JSON."""
        return [(each.name, each.first, each.second) for each in self.comparison.settings]

    @property
    def not_compared(self) -> dict[str, str]:
        """Evaluations, models and cells without a partner, and why."""
        return {each.what: each.why for each in self.comparison.apart}

    def document(self) -> dict[str, Any]:
        """Return everything in plain values, as ``kvray compare --json`` prints it."""
        from kvray.report.across.terminal import document

        return document(self.comparison)

    def report(self, out: str | os.PathLike[str] | None = None) -> Report:
        """Write the page, its figure and pairs.parquet to a directory or URI; None: reports/A+B in the store of A."""
        from kvray.report.across.build import write

        paths = write(self.comparison, out)
        return Report(paths.html, paths.directory, paths.page)

    def __repr__(self) -> str:
        from kvray.report.across.terminal import lines

        return "\n".join(lines(self.comparison))

    def _repr_html_(self) -> str:
        from kvray.report.across.terminal import rows, under

        header, table = rows(self.comparison)
        notes = (f"<p>{html.escape(line)}</p>" for line in under(self.comparison))
        return html_table(header, table, " and ".join(self.comparison.names)) + "".join(notes)
