"""What the page tells of a point, bar or cell of a figure when it is pointed at; pictures and Markdown leave it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvray.report.text import Linked, change, count, interval, judged, percent
from kvray.results.frames import BASE

_NAME = "kvray_tips"


@dataclass(frozen=True)
class Tip:
    """Words about a box (left, bottom, right, top) of a panel, in data coordinates; a point is a box without size."""

    panel: Any
    box: tuple[float, float, float, float]
    said: str


@dataclass(frozen=True)
class Spot:
    """A tip in its picture: the box's left, top, width and height in points (a point has no size)."""

    left: float
    top: float
    width: float
    height: float
    said: str

    @property
    def to(self) -> Mapping[str, Any]:
        """Filters of the answers behind it; empty if it leads nowhere."""
        return self.said.to if isinstance(self.said, Linked) else {}


def point(panel: Any, x: float, y: float, said: str) -> None:
    """Add words about a point; a :class:`~kvray.report.text.Linked` leads to its answers."""
    box(panel, x, y, x, y, said)


def box(panel: Any, left: float, bottom: float, right: float, top: float, said: str) -> None:
    """Add words about a bar or a cell."""
    vars(panel.figure).setdefault(_NAME, []).append(Tip(panel, (left, bottom, right, top), said))


def spots(figure: Any) -> list[Spot]:
    """Return where each tip lies in a figure that was rendered, in points from the left and the top."""
    found = []
    scale, height = 72 / figure.dpi, 72 * figure.get_figheight()
    for tip in vars(figure).get(_NAME, []):
        (x0, y0), (x1, y1) = tip.panel.transData.transform([tip.box[:2], tip.box[2:]]) * scale
        left, right, low, high = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
        found.append(Spot(float(left), float(height - high), float(right - left), float(high - low), tip.said))
    return found


def accuracy(row: Mapping[str, Any], place: str) -> str:
    """Return what a row of scores says: "ours, position 5: 57.1 %, 95 % interval 50.2 to 63.7, n 400"."""
    said = f"{row['model']}, {place}: {percent(row['accuracy'])}, 95 % interval {interval(row['low'], row['high'])}"
    if row.get("verdict") and row["difference"] is not None:
        points = change(row["difference"], row["difference_low"], row["difference_high"])
        said += f"; against the base {points} points, {judged(row)}"
    return Linked.of(f"{said}; n {count(row['n'])}", row)


def difference(row: Mapping[str, Any]) -> str:
    """Return what a comparison with the base says: "ours on recall: +2.0 (+1.0 to +3.0) points, better; n 48 pairs"."""
    said = f"{row['b']} on {row['evaluation']}: {change(row['difference'], row['low'], row['high'])} points, "
    said += f"{judged(row)}; n {count(row['n'])} pairs"
    to = {"evaluation": row["evaluation"], "model": row["b"]}
    return Linked(said, to) if row["a"] == BASE else said
