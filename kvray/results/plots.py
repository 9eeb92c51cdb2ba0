"""The report's figures: accuracy by gold position, knowledge change, gain against loss. matplotlib without pyplot.

Colours are Okabe and Ito's, safe for colour-blind readers, and stay with their model through all figures; each model
has a marker of its own besides, so nothing is told by colour alone.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import polars as pl

from kvray.results import labels
from kvray.results.frames import BASE, OVERALL
from kvray.results.words import signed

INK, MUTED, GRID, PAPER = "#1f2328", "#59636e", "#d8dee4", "#fffffe"
"""Colours of text, secondary text, grid and ground; :mod:`kvray.results.page` swaps them in a dark theme."""
GREY = "#818b98"
"""The base model, in every figure."""
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#8C6D31",
    "#5D3A9B",
    "#882255",
    "#44AA99",
)
"""Of the models, in the order of the sweep; the eleventh starts again, with another marker."""
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h", "p")
_TOGETHER = 4
"""Models drawn in one panel; more get a panel each, beside the base, since their bands would hide each other."""
_DPI = 150


class Palette:
    """Colour and marker of each model, by its place in the sweep."""

    def __init__(self, models: Sequence[str]) -> None:
        self._place = {model: place for place, model in enumerate(models)}

    def colour(self, model: str) -> str:
        """Return the model's colour; grey for the base."""
        return GREY if model == BASE else COLOURS[self._place[model] % len(COLOURS)]

    def marker(self, model: str) -> str:
        """Return the model's marker."""
        return "o" if model == BASE else _MARKERS[self._place[model] % len(_MARKERS)]


def accuracy_by_position(scores: pl.DataFrame, evaluation: str, palette: Palette, subtitle: str) -> Any:
    """Draw accuracy against gold position, a line with its 95 % band per model, the base dashed and grey.

    Args:
        scores: rows of :func:`kvray.results.frames.scores`.
        evaluation: which evaluation.
        palette: colours of the models.
        subtitle: what n and the bands mean, in words.

    Returns:
        A matplotlib Figure.
    """
    rows = scores.filter((pl.col("evaluation") == evaluation) & pl.col("position").is_not_null())
    rows = rows.filter(pl.col("accuracy").is_not_null()).sort("position")
    finetuned = [m for m in rows["model"].unique(maintain_order=True) if m != BASE]
    finetuned.sort(key=lambda m: palette._place[m])
    groups = [finetuned] if len(finetuned) <= _TOGETHER else [[m] for m in finetuned]
    columns = min(3, len(groups))
    lines = -(-len(groups) // columns)
    size = (8.6, 5.0) if len(groups) == 1 else (3.5 * columns + 0.6, 2.7 * lines + 1.3)
    with _style():
        figure, panels = _figure(size, lines, columns)
        for panel, group in zip(panels, groups, strict=False):
            _position_panel(panel, rows, group, palette, alone=len(groups) == 1)
        for panel in panels[len(groups) :]:
            panel.set_visible(False)
        for place, panel in enumerate(panels):
            if place % columns == 0:
                panel.set_ylabel("accuracy")
            if place + columns >= len(groups):
                panel.set_xlabel("gold position (1 = first)")
        _head(figure, f"Accuracy by gold position: {evaluation}", subtitle)
    return figure


def knowledge_change(comparisons: pl.DataFrame, evaluations: Sequence[str], palette: Palette, subtitle: str) -> Any:
    """Draw the paired change to the base of each model in the closed-book evaluations, a panel each.

    Args:
        comparisons: rows of :func:`kvray.results.frames.family`.
        evaluations: the closed-book ones.
        palette: colours of the models.
        subtitle: what n and the bars mean, in words.

    Returns:
        A matplotlib Figure.
    """
    against = comparisons.filter((pl.col("family") == OVERALL) & pl.col("difference").is_not_null())
    tables = [against.filter(pl.col("evaluation") == e).sort("difference") for e in evaluations]
    height = sum(0.42 * table.height + 0.9 for table in tables) + 0.9
    with _style():
        figure, panels = _figure((8.6, height), len(tables), 1, [table.height + 1.0 for table in tables])
        for panel, table, evaluation in zip(panels, tables, evaluations, strict=True):
            _forest(panel, table, palette)
            if len(evaluations) > 1:
                panel.set_title(evaluation, loc="left", fontsize=10, color=INK)
        panels[-1].set_xlabel("change in accuracy against the base model, points")
        _head(figure, f"Change in knowledge: {', '.join(evaluations)}", subtitle)
    return figure


def gain_against_loss(
    comparisons: pl.DataFrame, retrieval: str, knowledge: str, palette: Palette, subtitle: str
) -> Any:
    """Draw each model at (change in retrieval, change in knowledge), with 95 % intervals both ways.

    Args:
        comparisons: rows of :func:`kvray.results.frames.family`.
        retrieval: evaluation on the horizontal axis.
        knowledge: evaluation on the vertical axis.
        palette: colours of the models.
        subtitle: what n and the bars mean, in words.

    Returns:
        A matplotlib Figure.
    """
    from matplotlib.patheffects import withStroke

    against = comparisons.filter((pl.col("family") == OVERALL) & pl.col("difference").is_not_null())
    across = {row["b"]: row for row in against.filter(pl.col("evaluation") == retrieval).iter_rows(named=True)}
    upward = {row["b"]: row for row in against.filter(pl.col("evaluation") == knowledge).iter_rows(named=True)}
    both = [model for model in across if model in upward]
    with _style():
        figure, (panel,) = _figure((8.6, 5.6), 1, 1)
        for line in (panel.axhline, panel.axvline):
            line(0, color=GREY, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
        for model in both:
            x, y = across[model], upward[model]
            panel.errorbar(
                100 * x["difference"],
                100 * y["difference"],
                xerr=_reach(x),
                yerr=_reach(y),
                fmt=palette.marker(model),
                color=palette.colour(model),
                markersize=8,
                markeredgecolor=PAPER,
                markeredgewidth=0.8,
                elinewidth=1.4,
                zorder=3,
            )
        width = _limits(panel.set_xlim, [across[m] for m in both])
        height = _limits(panel.set_ylim, [upward[m] for m in both])
        points = [
            (
                (100 * across[m]["difference"] - panel.get_xlim()[0]) / width,
                (100 * upward[m]["difference"] - panel.get_ylim()[0]) / height,
            )
            for m in both
        ]
        origin = (-panel.get_xlim()[0] / width, -panel.get_ylim()[0] / height)
        for model, (x_text, y_text) in zip(both, labels.places(both, points, origin), strict=True):
            panel.text(
                x_text,
                y_text,
                model,
                transform=panel.transAxes,
                color=palette.colour(model),
                fontsize=9.5,
                fontweight="bold",
                va="center",
                zorder=4,
                path_effects=[withStroke(linewidth=2.5, foreground=PAPER)],
            )
        panel.scatter([0], [0], color=GREY, s=34, zorder=2)
        panel.annotate("base", (0, 0), (-6, -12), textcoords="offset points", color=MUTED, fontsize=9, ha="right")
        corner = {"transform": panel.transAxes, "fontsize": 8.5, "color": MUTED, "style": "italic"}
        panel.text(0.985, 0.98, "retrieves more, knows more", ha="right", va="top", **corner)
        panel.text(0.015, 0.02, "retrieves less, knows less", ha="left", va="bottom", **corner)
        panel.set_xlabel(f"change in retrieval against the base, points ({retrieval})")
        panel.set_ylabel(f"change in knowledge against the base, points ({knowledge})")
        _head(figure, f"Retrieval gained, knowledge lost: {retrieval}, {knowledge}", subtitle)
    return figure


def render(figure: Any, kind: str) -> bytes:
    """Return a figure as the bytes of a "png" (150 dpi) or "svg"; the same figure gives the same SVG."""
    stream = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {}
    with _style():
        figure.savefig(stream, format=kind, dpi=_DPI, facecolor=PAPER, metadata=metadata)
    return stream.getvalue()


def _style() -> AbstractContextManager[None]:
    from matplotlib import rc_context

    style: AbstractContextManager[None] = rc_context(
        {
            "axes.edgecolor": GRID,
            "axes.facecolor": PAPER,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.labelcolor": INK,
            "axes.labelsize": 10,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.unicode_minus": True,
            "figure.facecolor": PAPER,
            "font.size": 10,
            "grid.color": GRID,
            "grid.linewidth": 0.7,
            "svg.fonttype": "path",
            "svg.hashsalt": "kvray",
            "text.color": INK,
            "xtick.color": MUTED,
            "xtick.labelsize": 9.5,
            "xtick.major.size": 0,
            "ytick.color": MUTED,
            "ytick.labelsize": 9.5,
            "ytick.major.size": 0,
        }
    )
    return style


def _figure(
    size: tuple[float, float], lines: int, columns: int, heights: Sequence[float] | None = None
) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # Room for title and subtitle, which constrained layout does not know of: 0.62 inch.
    inside = (0.008, 0.01, 0.984, 0.98 - 0.62 / size[1])
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(rect=inside, hspace=0.06, wspace=0.05))
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, squeeze=False, height_ratios=heights)
    return figure, list(panels.flat)


def _head(figure: Any, title: str, subtitle: str) -> None:
    height = figure.get_figheight()
    figure.text(0.012, 1 - 0.10 / height, title, fontsize=13, fontweight="bold", va="top", color=INK)
    figure.text(0.012, 1 - 0.36 / height, subtitle, fontsize=9.2, va="top", color=MUTED)


def _position_panel(panel: Any, rows: pl.DataFrame, models: Sequence[str], palette: Palette, alone: bool) -> None:
    from matplotlib.ticker import PercentFormatter

    ends = []
    for model in [BASE, *models]:
        line = rows.filter(pl.col("model") == model)
        if not line.height:
            continue
        x, y = line["position"].to_list(), line["accuracy"].to_list()
        base = model == BASE
        colour = palette.colour(model)
        panel.fill_between(
            x, line["low"].to_list(), line["high"].to_list(), color=colour, alpha=0.13, linewidth=0, zorder=1
        )
        panel.plot(
            x,
            y,
            color=colour,
            linestyle=(0, (4, 2.5)) if base else "-",
            linewidth=1.8 if base else 2.1,
            marker=palette.marker(model),
            markersize=4 if base else 6,
            markeredgecolor=PAPER,
            markeredgewidth=0.7,
            zorder=2 if base else 3,
        )
        ends.append((y[-1], model, colour))
    ticks = rows["position"].unique().sort().to_list()
    panel.set_xticks(ticks)
    margin = 0.03 * max(1, ticks[-1] - ticks[0])
    panel.set_xlim(ticks[0] - margin, ticks[-1] + margin)
    panel.set_ylim(0, 1)
    panel.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    panel.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if not alone:
        panel.set_title(models[0], loc="left", fontsize=10, color=palette.colour(models[0]), fontweight="bold")
        ends = [end for end in ends if end[1] == BASE]
    for at, (y_end, model, colour) in zip(labels.spread([end[0] for end in ends], 0.052), ends, strict=True):
        panel.annotate(
            model,
            (ticks[-1], y_end),
            (1.02, at),
            textcoords=panel.get_yaxis_transform(),
            color=MUTED if model == BASE else colour,
            fontsize=9.5 if alone else 8.5,
            va="center",
            fontweight="normal" if model == BASE else "bold",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 3},
        )


def _forest(panel: Any, table: pl.DataFrame, palette: Palette) -> None:
    panel.axvline(0, color=GREY, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
    for y, row in enumerate(table.iter_rows(named=True)):
        colour = palette.colour(row["b"])
        panel.errorbar(
            100 * row["difference"],
            y,
            xerr=_reach(row),
            fmt=palette.marker(row["b"]),
            color=colour,
            markersize=8,
            markeredgecolor=PAPER,
            markeredgewidth=0.8,
            elinewidth=2.0,
            zorder=3,
        )
        words = f"{signed(row['difference'])}  ({signed(row['low'])} to {signed(row['high'])})  {row['verdict']}"
        panel.annotate(
            words, (1.015, y), xycoords=panel.get_yaxis_transform(), va="center", fontsize=9, annotation_clip=False
        )
    panel.set_yticks(range(table.height), table["b"].to_list(), color=INK)
    panel.set_ylim(-0.6, table.height - 0.4)
    panel.grid(axis="y", visible=False)
    _limits(panel.set_xlim, list(table.iter_rows(named=True)))


def _reach(row: dict[str, Any]) -> list[list[float]]:
    """Return the two lengths of an error bar, in points. A percentile interval always holds its mean up to rounding."""
    low, high = row["difference"] - row["low"], row["high"] - row["difference"]
    return [[100 * max(0.0, low)], [100 * max(0.0, high)]]


def _limits(set_limits: Any, rows: Sequence[dict[str, Any]]) -> float:
    """Set limits that hold all intervals and zero, at least five points to either side; return their distance."""
    low = min([-5.0, *(100 * float(row["low"]) for row in rows)])
    high = max([5.0, *(100 * float(row["high"]) for row in rows)])
    margin = 0.06 * (high - low)
    set_limits(low - margin, high + margin)
    return high - low + 2 * margin
