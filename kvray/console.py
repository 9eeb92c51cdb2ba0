"""What a terminal or a notebook shows: progress of long work (a bar, a line drawn again, or plain lines) and tables."""

from __future__ import annotations

import html
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from math import floor, log10
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress

PLAIN_INTERVAL_S = 5.0  # between two plain lines of one piece of work; the first and the last are always printed
NOTEBOOK_INTERVAL_S = 0.5  # the same in a notebook, which redraws one line
GAP = "  "  # between two columns of a table
WIDE = 80  # a terminal of at least so many columns shows a bar and the elapsed time, a narrower one the numbers alone


class Advance(Protocol):
    """Shows how much of the work is done, in the unit of ``total``, with an optional note (a loss, a rate)."""

    def __call__(self, done: float, note: str = "", total: float | None = None) -> None:
        """Show that ``done`` of the total is complete; ``total`` replaces an earlier estimate."""


def say(message: str) -> None:
    """Print one line of progress to standard error, where it never mixes with results."""
    print(message, file=sys.stderr, flush=True)


@contextmanager
def track(label: str, total: float, unit: str = "rows") -> Iterator[Advance]:
    """Yield a callable ``advance(done, note="")`` that shows the progress of ``label``.

    ``done`` is the amount so far, not an increment, so a retried step may report it again; it may be a fraction.
    """
    if moves():
        with _bar() as bar:
            task = bar.add_task(label, total=total, unit=unit, whole=0, note="")

            def move(done: float, note: str = "", total: float | None = None) -> None:
                bar.update(task, total=total, completed=done, whole=floor(done), note=note)

            yield move
        return
    show, interval = (_notebook_line(), NOTEBOOK_INTERVAL_S) if in_notebook() else (say, PLAIN_INTERVAL_S)
    started = time.monotonic()
    last = started - interval
    known = total

    def advance(done: float, note: str = "", total: float | None = None) -> None:
        nonlocal last, known
        known = known if total is None else total
        now = time.monotonic()
        if done < known and now - last < interval:
            return
        last = now
        show(f"kvray: {label}: {floor(done)}/{known:.0f} {unit} {now - started:.0f}s {note}".rstrip())

    yield advance


@dataclass(frozen=True)
class Line:
    """How much of one kind of work is done, in a unit, with a note (a rate, what is under way)."""

    label: str
    done: float
    total: float
    unit: str = "rows"
    note: str = ""

    def __str__(self) -> str:
        return f"{self.label} {count(floor(self.done))}/{count(self.total)} {self.unit} {self.note}".rstrip()


Show = Callable[[Sequence[Line], str], None]


@contextmanager
def board() -> Iterator[Show]:
    """Yield ``show(lines, last)``, which shows several kinds of work at once, and ``last``, a line on all of them.

    A terminal has a bar for each, drawn again; elsewhere one line has them all, every :data:`PLAIN_INTERVAL_S`.
    """
    if moves():
        from rich.console import Group
        from rich.live import Live
        from rich.text import Text

        bars, text = _bar(), Text(no_wrap=True, overflow="ellipsis")
        tasks: dict[str, Any] = {}
        with Live(Group(bars, text), console=bars.console, refresh_per_second=4):

            def draw(lines: Sequence[Line], last: str) -> None:
                for line in lines:
                    if line.label not in tasks:
                        tasks[line.label] = bars.add_task(line.label, total=None, unit=line.unit, whole=0, note="")
                    whole = floor(line.done)
                    bars.update(tasks[line.label], total=line.total, completed=line.done, whole=whole, note=line.note)
                text.plain = last

            yield draw
        return
    show, interval = (_notebook_line(), NOTEBOOK_INTERVAL_S) if in_notebook() else (say, PLAIN_INTERVAL_S)
    started = time.monotonic()
    shown = started - interval

    def tell(lines: Sequence[Line], last: str) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown >= interval and lines:
            shown = now
            show(f"kvray: {'; '.join([*map(str, lines), *([last] if last else [])])}; {now - started:.0f}s")

    yield tell


def moves() -> bool:
    """Return whether standard error is a terminal that can redraw a line; TERM=dumb says that it cannot."""
    return sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def in_notebook() -> bool:
    """Return whether a notebook's kernel runs this process: no terminal, but one that can redraw a line."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and "IPKernelApp" in shell.config


def _notebook_line() -> Callable[[str], None]:
    handle = import_module("IPython.display").display({"text/plain": ""}, raw=True, display_id=True)
    return lambda text: handle.update({"text/plain": text}, raw=True)


def _bar() -> Progress:
    """Return a progress display that keeps to one line, whatever the width of the terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.table import Column

    def text(form: str, ratio: int | None = None) -> ProgressColumn:
        return TextColumn(form, markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=ratio))

    console = Console(stderr=True)
    wide = console.width >= WIDE
    columns = [
        text("{task.description}"),
        *([BarColumn(bar_width=24)] if wide else []),
        text("{task.fields[whole]}/{task.total:.0f} {task.fields[unit]}"),
        text("{task.fields[note]}", ratio=1),
        *([TimeElapsedColumn()] if wide else []),
        TimeRemainingColumn(compact=not wide),
    ]
    return Progress(*columns, console=console, expand=True)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return an aligned text table without a final newline: numbers to the right, None as ``-``.

    Raises ValueError if a row has another number of cells than the header.
    """
    body = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    for row in body:
        if len(row) != len(header):
            raise ValueError(f"a row has {len(row)} cells, the header {len(header)}: {row}")
    widths = [max(len(row[column]) for row in [list(header), *body]) for column in range(len(header))]
    right = [bool(body) and all(_numeric(row[column]) for row in body) for column in range(len(header))]
    lines = [list(header), ["-" * width for width in widths], *body]
    return "\n".join(
        GAP.join(
            cell.rjust(width) if at_right else cell.ljust(width)
            for cell, width, at_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def html_table(header: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """Return an HTML table for a notebook; None shows as ``-``, as in :func:`table`."""

    def line(cells: Sequence[object], tag: str) -> str:
        shown = (html.escape("-" if cell is None else str(cell)) for cell in cells)
        return f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in shown)}</tr>"

    head = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    body = "".join(line(row, "td") for row in rows)
    return f"<table>{head}<thead>{line(header, 'th')}</thead><tbody>{body}</tbody></table>"


def count(number: float) -> str:
    """Return a number rounded, with its thousands separated: ``1,234,567``."""
    return f"{number:,.0f}"


def size(number: float) -> str:
    """Return bytes in decimal units: ``812 B``, ``1.2 GB``, ``14 GB``."""
    power = min(4, int(log10(max(1.0, number)) / 3))
    shown = number / 1000**power
    return f"{shown:{'.1f' if power and shown < 10 else ',.0f'}} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def duration(seconds: float) -> str:
    """Return a duration: ``40 s``, ``6 min``, ``2 h 05 min``."""
    if seconds < 1:
        return "<1 s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _numeric(cell: str) -> bool:
    return cell == "-" or cell.replace(",", "").replace(".", "", 1).lstrip("-").isdigit()
