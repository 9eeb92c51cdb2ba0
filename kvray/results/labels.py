"""Where names go in a figure, so that none covers another or a point. Boxes are (left, bottom, right, top)."""

from __future__ import annotations

from collections.abc import Sequence

Box = tuple[float, float, float, float]


def places(
    names: Sequence[str], points: Sequence[tuple[float, float]], origin: tuple[float, float]
) -> list[tuple[float, float]]:
    """Return where each point's name starts, in shares of the panel: on the side with the least in the way."""
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
    """Return the area that two boxes share, times 100."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1])) * 100


def spread(wanted: Sequence[float], apart: float) -> list[float]:
    """Move values apart, keeping their order, until none are closer than ``apart``."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = [wanted[i] for i in order]
    for _ in range(100):
        moved = False
        for i in range(1, len(placed)):
            overlap = apart - (placed[i] - placed[i - 1])
            if overlap > 1e-9:
                placed[i - 1] -= overlap / 2
                placed[i] += overlap / 2
                moved = True
        if not moved:
            break
    back = dict(zip(order, placed, strict=True))
    return [back[i] for i in range(len(wanted))]
