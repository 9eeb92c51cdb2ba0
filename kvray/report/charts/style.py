"""Style of all figures (matplotlib without pyplot): colours and markers, which a model keeps, the head, rendering.

Colours here follow the page's theme (:mod:`kvray.report.page`); fills of heatmaps and bars, and text on them, do not.
"""

import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import resources
from typing import Any

from kvray.results.frames import BASE

INK, MUTED, GRID, PAPER = "#1f2328", "#59636e", "#d8dee4", "#fffffe"
"""Colours of text, secondary text, grid and background."""
GREY = "#818b98"  # colour of the base model
COLOURS = tuple("#0072B2 #D55E00 #009E73 #CC79A7 #E69F00 #56B4E9 #8C6D31 #5D3A9B #882255 #44AA99".split())
"""Colours of finetuned models (Okabe and Ito's, safe for colour-blind readers); the eleventh has the first again."""
WIDTH = 8.6  # inches of a figure that fills the page
DASHES = (0, (4, 2.5))
ZERO: dict[str, Any] = {"color": GREY, "linewidth": 1.1, "linestyle": (0, (4, 3)), "zorder": 1}
"""Keywords of a line at no change."""
DOT: dict[str, Any] = {"markersize": 8, "markeredgecolor": PAPER, "markeredgewidth": 0.8, "zorder": 3}
"""Keywords of a point with error bars."""
SEED: dict[str, Any] = {"markersize": 3.2, "markeredgewidth": 0, "alpha": 0.75, "linestyle": "none", "zorder": 2.5}
"""Keywords of the small point of one seed's finetune."""
ON_LINE: dict[str, Any] = {"markeredgecolor": PAPER, "markeredgewidth": 0.7, "clip_on": False}
"""Keywords of a line with markers, shown in full at 0 and 100 %."""
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h", "p")
_DPI = 150
_ON_DARK, _ON_LIGHT = "#fdfdfd", "#14181d"  # not PAPER and INK: the page would swap them


class Palette:
    """Colour and marker of each model, by its place in the sweep; the base is a grey circle."""

    def __init__(self, models: Sequence[str]) -> None:
        self._place = {model: place for place, model in enumerate(models)}

    def colour(self, model: str) -> str:
        return GREY if model == BASE else COLOURS[self._place[model] % len(COLOURS)]

    def marker(self, model: str) -> str:
        return "o" if model == BASE else _MARKERS[self._place[model] % len(_MARKERS)]

    def ordered(self, models: Iterable[str]) -> list[str]:
        """Return different models in the order of the sweep, the base first."""
        return sorted(set(models), key=lambda model: -1 if model == BASE else self._place[model])


def render(figure: Any, kind: str) -> bytes:
    """Return a figure as a "png" (150 dpi) or "svg"; the same figure gives the same SVG."""
    stream = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {}
    with theme():
        figure.savefig(stream, format=kind, dpi=_DPI, facecolor=PAPER, metadata=metadata)
    # The layout takes a third of the time of the next rendering, which needs no other.
    figure.set_layout_engine("none")
    return stream.getvalue()


def render_for_page(figure: Any) -> str:
    """Return the SVG of a figure that was rendered before, its words as text; a page must bring the fonts.

    A text with a :func:`halo` stands in a group whose id begins with "halo", since paths alone take such effects.
    """
    from matplotlib import rc_context
    from matplotlib.text import Text

    haloed = [text for text in figure.findobj(Text) if text.get_path_effects()]
    for place, text in enumerate(haloed):
        text.set_path_effects([])
        text.set_gid(f"halo-{place}")
    stream = io.StringIO()
    with theme(), rc_context({"svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", facecolor=PAPER, metadata={"Date": None})
    for text in haloed:
        text.set_path_effects(halo())
        text.set_gid(None)
    return stream.getvalue()


def halo() -> list[Any]:
    """Return the path effects that set a text off from the lines behind it."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=2.5, foreground=PAPER)]


def theme() -> AbstractContextManager[None]:
    """Return the matplotlib context in which every figure is drawn and rendered."""
    from matplotlib import rc_context

    return rc_context(fname=str(resources.files("kvray.report.charts") / "kvray.mplstyle"))


def panels(
    size: tuple[float, float], shape: tuple[int, int], head: tuple[str, str], heights: Sequence[float] | None = None
) -> tuple[Any, list[Any]]:
    """Return a matplotlib Figure with ``head`` (title, subtitle), and its panels line by line.

    ``size`` is (width, height without the head) in inches, ``shape`` (lines, columns), and ``heights`` are relative.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    title = textwrap.wrap(head[0], int(10.2 * size[0])) or [""]
    subtitle = [line for part in head[1].split("\n") for line in textwrap.wrap(part, int(15.2 * size[0]))]
    below = 0.14 + 0.22 * len(title)
    top = below + 0.165 * len(subtitle) + 0.06
    height = size[1] + top
    figure = Figure(figsize=(size[0], height))
    # Constrained layout ignores the head.
    inside = (0.008, 0.01, 0.984, 0.99 - top / height)
    figure.set_layout_engine(ConstrainedLayoutEngine(rect=inside, hspace=0.06, wspace=0.05))
    FigureCanvasAgg(figure)
    figure.text(0.012, 1 - 0.10 / height, "\n".join(title), fontsize=13, fontweight="bold", va="top")
    subtitle_at = (0.012, 1 - below / height)
    figure.text(*subtitle_at, "\n".join(subtitle), fontsize=9.2, va="top", color=MUTED, linespacing=1.25)
    return figure, list(figure.subplots(*shape, squeeze=False, height_ratios=heights).flat)


def facets(
    number: int, size: tuple[float, float], head: tuple[str, str], below: str, columns: int = 3, margin: float = 0.4
) -> tuple[Any, list[Any]]:
    """Return a matplotlib Figure with a number of :func:`panels` and ``below`` as the name of their horizontal axes.

    ``size`` is the width and the height of a line, and ``margin`` is added to the height, in inches.
    """
    lines = -(-number // columns)
    figure, axes = panels((size[0], size[1] * lines + margin), (lines, columns), head)
    for place, panel in enumerate(axes):
        panel.set_visible(place < number)
        if place + columns >= number:
            panel.set_xlabel(below)
    return figure, axes[:number]


def on(fill: Any) -> str:
    """Return the colour of two for text on a fill that has more contrast (relative luminance, WCAG)."""
    from matplotlib.colors import to_rgb

    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(fill)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return _ON_LIGHT if luminance > 0.19 else _ON_DARK


def reach(row: Mapping[str, Any]) -> list[list[float]]:
    """Return the two lengths of an error bar, in points; at least 0, since rounding may put a mean off its interval."""
    low, high = row["difference"] - row["low"], row["high"] - row["difference"]
    return [[100 * max(0.0, low)], [100 * max(0.0, high)]]


def limits(rows: Sequence[Mapping[str, Any]], others: Sequence[float] = ()) -> tuple[float, float]:
    """Return limits, in points, that hold all intervals, ``others``, and five points to either side of zero."""
    low = min([-5.0, *(100 * float(row["low"]) for row in rows), *(100 * other for other in others)])
    high = max([5.0, *(100 * float(row["high"]) for row in rows), *(100 * other for other in others)])
    margin = 0.06 * (high - low)
    return low - margin, high + margin


def tokens(length: float) -> str:
    """Return a number of tokens as "250", "3,000", "4K" for 4,096."""
    return f"{length / 1024:.0f}K" if length >= 1024 and length % 1024 == 0 else f"{length:,.0f}"


def shares(steps: int, unit: str = "%") -> tuple[list[float], list[str]]:
    """Return ticks from 0 to 1 with their names in percent: "0%", "25%", ..."""
    ticks = [step / steps for step in range(steps + 1)]
    return ticks, [f"{100 * tick:.0f}{unit}" for tick in ticks]


def thinned(values: Sequence[float], most: int) -> list[float]:
    """Return at most ``most`` of the values, evenly chosen, with the first and the last."""
    if len(values) <= most:
        return list(values)
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]
