"""Placement of names in a figure, so that none covers another or a point. Boxes are (left, bottom, right, top)."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Box = tuple[float, float, float, float]
_BESIDE = 0.93
"""Share of a panel's width from which a line counts as ending at its right side."""


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
    points = [tuple(map(float, across.transform(end.at))) for end in ends]
    for outside in (True, False):
        here = [(end, point) for end, point in zip(ends, points, strict=True) if (point[0] >= _BESIDE) == outside]
        names = [two_lines(end.name, end.width) for end, _ in here]
        lines = [1 + name.count("\n") for name in names]
        heights = [end.size * 1.3 * n / (72 * inches) for (end, _), n in zip(here, lines, strict=True)]
        for (end, (x, _)), text, y in zip(here, names, spread([p[1] for _, p in here], heights, (0, 1)), strict=True):
            leader = {"arrowstyle": "-", "color": end.leader, "linewidth": 0.6}
            panel.annotate(
                text,
                end.at,
                (1 if outside else x, y),
                textcoords=right,
                color=end.colour,
                fontsize=end.size,
                fontweight="bold" if end.bold else "normal",
                va="center",
                linespacing=1.05,
                annotation_clip=False,
                arrowprops={**leader, "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 3},
            )


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
        width, best = 0.0115 * len(name), None
        for side, above in ((1, 1), (-1, 1), (1, -1), (-1, -1)):
            left, middle = (x + 0.012 if side > 0 else x - 0.012 - width), y + 0.036 * above
            box = (left, middle - 0.021, left + width, middle + 0.021)
            cost = sum(overlap(box, other) for other in boxes)
            cost += 10 * (max(0.0, -box[0]) + max(0.0, box[2] - 1) + max(0.0, -box[1]) + max(0.0, box[3] - 1))
            if best is None or cost < best[0] - 1e-9:
                best = (cost, box)
        assert best is not None
        boxes.append(best[1])
        chosen.append((best[1][0], (best[1][1] + best[1][3]) / 2))
    return chosen


def overlap(a: Box, b: Box) -> float:
    """Return the area of two boxes' overlap, times 100."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1])) * 100


def spread(wanted: Sequence[float], heights: Sequence[float], ends: tuple[float, float] | None = None) -> list[float]:
    """Move the middles of labels from where they are wanted, keeping their order, until none overlaps another.

    Middles stay between ``ends``; labels too many for that are spread evenly around their centre.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    apart = [0.5 * (heights[i] + heights[j]) for i, j in itertools.pairwise(order)]
    placed = [wanted[i] for i in order]
    for _ in range(200):
        moved = False
        for i, room in enumerate(apart, 1):
            missing = room - (placed[i] - placed[i - 1])
            if missing > 1e-9:
                placed[i - 1] -= missing / 2
                placed[i] += missing / 2
                moved = True
        if not moved:
            break
    if ends and placed:
        low, high = ends
        if sum(apart) > high - low:
            low = high = 0.5 * (low + high)
            low, high = low - sum(apart) / 2, high + sum(apart) / 2
        # Pushed up from below, then down from above: what fits stays in order and apart.
        for i in range(len(placed)):
            placed[i] = max(placed[i], low if i == 0 else placed[i - 1] + apart[i - 1])
        for i in reversed(range(len(placed))):
            placed[i] = min(placed[i], high if i == len(placed) - 1 else placed[i + 1] - apart[i])
    back = dict(zip(order, placed, strict=True))
    return [back[i] for i in range(len(wanted))]


def two_lines(name: str, width: int) -> str:
    """Break a name longer than ``width`` once: after a comma, at a blank, or before a bracket."""
    if len(name) <= width:
        return name
    at = name.find(", ") + 1 or name.rfind(" ", 0, width + 1)
    at = at if at > 0 else name.find("[")
    return f"{name[:at].rstrip()}\n{name[at:].strip()}" if at > 0 else name
