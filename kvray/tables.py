"""Plain text tables for the terminal: columns aligned with spaces, so that grep and awk read them too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

GAP = "  "
"""Between two columns."""


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return an aligned text table without a last line end; columns of numbers stand to the right.

    Args:
        header: a name per column.
        rows: as many cells each; None shows as ``-``.

    Raises:
        ValueError: a row has another number of cells than the header.
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


def count(number: float) -> str:
    """Return a whole number with thousands apart: ``1,234,567``."""
    return f"{number:,.0f}"


def duration(seconds: float) -> str:
    """Return a time as people say it: ``40 s``, ``6 min``, ``2 h 05 min``."""
    if seconds < 1:
        return "<1 s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _numeric(cell: str) -> bool:
    return cell == "-" or cell.replace(",", "").replace(".", "", 1).lstrip("-").isdigit()
