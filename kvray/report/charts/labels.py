"""Placement of names in a figure, so that none covers another or a point. Boxes are (left, bottom, right, top)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Box = tuple[float, float, float, float]
_BESIDE = 0.93  # share of a panel's width from which a line counts as ending at its right side


@dataclass(frozen=True)
class End:
    """The end of a line ``at`` a point in data coordinates, with the line's name.

    ``size`` is in points, ``leader`` the colour of the thin line to the name, which is broken beyond ``width`` letters.
    """

    at: tuple[float, float]
    name: str
    colour: str
    leader: str
    size: float
    bold: bool = False
    width: int = 26


def at_ends(panel: Any, ends: Sequence[End], inches: float) -> None:
    """Write names to the right of a panel, or at the ends of lines that end inside it, none over another.

    Limits and scales of the matplotlib Axes must be set before; ``inches`` is the approximate height of the panel.
    """
    from matplotlib.transforms import offset_copy

    across = panel.transScale + panel.transLimits
    right = offset_copy(panel.transAxes, fig=panel.figure, x=10, y=0, units="points")
    points = [across.transform(end.at).tolist() for end in ends]
    look = {"va": "center", "linespacing": 1.05, "textcoords": right, "annotation_clip": False}
    line = {"arrowstyle": "-", "linewidth": 0.6, "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 3}
    for outside in (True, False):
        here = [(end, point) for end, point in zip(ends, points, strict=True) if (point[0] >= _BESIDE) == outside]
        names = [two_lines(end.name, end.width) for end, _ in here]
        lines = [1 + name.count("\n") for name in names]
        heights = [end.size * 1.3 * n / (72 * inches) for (end, _), n in zip(here, lines, strict=True)]
        for (end, (x, _)), text, y in zip(here, names, spread([p[1] for _, p in here], heights), strict=True):
            own = {"color": end.colour, "fontsize": end.size, "fontweight": "bold" if end.bold else "normal"}
            place = (1 if outside else x, y)
            panel.annotate(text, end.at, place, arrowprops={**line, "color": end.leader}, **own, **look)


def name_panel(panel: Any, name: str, colour: str) -> None:
    """Write a model's name over a panel of its own."""
    panel.set_title(two_lines(name, 30), loc="left", fontsize=10, color=colour, fontweight="bold")


def places(
    names: Sequence[str], points: Sequence[tuple[float, float]], origin: tuple[float, float]
) -> list[tuple[float, float]]:
    """Return where each point's name starts, as shares of the panel, on the side with the least in the way."""
    boxes = [(origin[0] - 0.06, origin[1] - 0.05, origin[0] + 0.01, origin[1] + 0.02), (0.76, 0.93, 1.0, 1.0)]
    boxes += [(0.0, 0.0, 0.24, 0.06), *((x - 0.012, y - 0.02, x + 0.012, y + 0.02) for x, y in points)]
    chosen = []
    for name, (x, y) in zip(names, points, strict=True):
        width = 0.0115 * len(name)
        lefts, middles = (x + 0.012, x - 0.012 - width), (y + 0.036, y - 0.036)
        sides = [(left, middle - 0.021, left + width, middle + 0.021) for middle in middles for left in lefts]
        box = min(sides, key=lambda side: round(_hidden(side, boxes), 9))
        boxes.append(box)
        chosen.append((box[0], (box[1] + box[3]) / 2))
    return chosen


def _hidden(box: Box, others: Sequence[Box]) -> float:
    outside = sum(max(0.0, -low) for low in box[:2]) + sum(max(0.0, high - 1) for high in box[2:])
    return 10 * outside + sum(overlap(box, other) for other in others)


def overlap(a: Box, b: Box) -> float:
    """Return the area of two boxes' overlap, times 100."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1])) * 100


def spread(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Move the middles of labels as little as possible, keeping their order, until none overlaps another.

    Middles stay between 0 and 1; labels too many for that are spread evenly around 0.5.
    """
    from scipy.optimize import isotonic_regression

    if not wanted:
        return []
    order = np.argsort(wanted, kind="stable")
    high = np.asarray(heights)[order]
    # Where each label is if all touch, above the first: what is left over must not decrease.
    touching = np.concatenate([[0.0], np.cumsum(0.5 * (high[1:] + high[:-1]))])
    room = 1 - touching[-1]
    moved = isotonic_regression(np.asarray(wanted)[order] - touching).x
    placed = np.empty(len(wanted))
    placed[order] = np.clip(moved, min(0.0, room / 2), max(room, room / 2)) + touching
    return [float(middle) for middle in placed]


def two_lines(name: str, width: int) -> str:
    """Break a name longer than ``width`` once: after a comma, at a blank, or before a bracket."""
    if len(name) <= width:
        return name
    at = name.find(", ") + 1 or name.rfind(" ", 0, width + 1)
    at = at if at > 0 else name.find("[")
    return f"{name[:at].rstrip()}\n{name[at:].strip()}" if at > 0 else name
