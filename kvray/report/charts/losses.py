"""Loss by share of training done, drawn: all mixtures in one panel or two, or a panel each where there are many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from kvray.report.charts.labels import End, at_ends, two_lines
from kvray.report.charts.style import DASHES, PAPER, WIDTH, Palette, panels, style, thinned
from kvray.results.losses import Part

TOGETHER = 6
"""Mixtures drawn in one panel; more get a panel each."""
SHOWN = 12
"""Panels of a figure at most; further mixtures are in the table alone."""
_SAID: dict[Part, str] = {
    "all": "all answer tokens",
    "integers": "integers: tokens that hold a digit",
    "words": "words around them: the other tokens",
}
_WIDE = 30.0
"""Ratio of the largest loss to the smallest from which the axis is logarithmic."""
_LEAST = 1e-3
"""Nats; lower losses are drawn there on a logarithmic axis."""
_NAME = 18
"""Letters of a name up to which two panels stand side by side."""
_MARKED = 5


def together(curves: pl.DataFrame, parts: Sequence[Part], palette: Palette, head: tuple[str, str]) -> Any:
    """Draw loss by share of training done, a panel per part on one scale, a line per model.

    Args:
        curves: rows of :func:`kvray.results.losses.curves`; models that lack one of the parts are left out.
        parts: what the panels show.
        palette: colours of the models.
        head: title and subtitle.

    Returns:
        A matplotlib Figure.
    """
    rows = curves.filter(pl.col("part").is_in(list(parts)))
    have = rows.group_by("model").agg(pl.col("part").n_unique()).filter(pl.col("part") == len(parts))
    models = sorted(have["model"].to_list(), key=palette.place)
    rows = rows.filter(pl.col("model").is_in(models))
    with style():
        # Side by side, or one over the other where long names would leave no room for the lines.
        stacked = len(parts) > 1 and max(map(len, models)) > _NAME
        shape = (len(parts), 1) if stacked else (1, len(parts))
        figure, made = panels((WIDTH, 3.6 if not stacked else 3.0 * len(parts)), shape, head)
        for panel, part in zip(made, parts, strict=True):
            _scale(panel, rows)
            ends = []
            for model in models:
                line = rows.filter((pl.col("model") == model) & (pl.col("part") == part))
                at = _line(panel, line, palette, model)
                ends.append(End(at, model, palette.colour(model), palette.colour(model), 9.5, bold=True))
            at_ends(panel, ends, 2.3 if stacked else 2.9)
            if len(parts) > 1:
                panel.set_title(_SAID[part], loc="left", fontsize=10)
        for panel in made if stacked else made[:1]:
            panel.set_ylabel("loss, nats per token")
        for panel in made[-1:] if stacked else made:
            panel.set_xlabel("training done")
    return figure


def apart(curves: pl.DataFrame, palette: Palette, head: tuple[str, str]) -> Any:
    """Draw loss by share of training done, a panel per model: integers and words where it has both, else all tokens.

    Args:
        curves: rows of :func:`kvray.results.losses.curves`.
        palette: colours of the models; the first :data:`SHOWN` of them are drawn.
        head: title and subtitle.

    Returns:
        A matplotlib Figure.
    """
    models = sorted(curves["model"].unique().to_list(), key=palette.place)[:SHOWN]
    rows = curves.filter(pl.col("model").is_in(models))
    has = {model: set(rows.filter(pl.col("model") == model)["part"]) for model in models}
    shown: dict[str, tuple[Part, ...]] = {
        model: ("integers", "words") if {"integers", "words"} <= has[model] else ("all",) for model in models
    }
    rows = rows.filter(
        pl.any_horizontal((pl.col("model") == m) & pl.col("part").is_in(list(parts)) for m, parts in shown.items())
    )
    columns = 3
    lines = -(-len(models) // columns)
    with style():
        figure, made = panels((3.2 * columns + 0.5, 2.3 * lines + 0.4), (lines, columns), head)
        for place, (panel, model) in enumerate(zip(made, models, strict=False)):
            _scale(panel, rows)
            ends = []
            for part in shown[model]:
                line = rows.filter((pl.col("model") == model) & (pl.col("part") == part))
                at = _line(panel, line, palette, model, dashed=part == "words")
                ends.append(End(at, part, palette.colour(model), palette.colour(model), 8))
            at_ends(panel, ends, 1.8)
            panel.set_title(
                two_lines(model, 30), loc="left", fontsize=10, color=palette.colour(model), fontweight="bold"
            )
            if place % columns == 0:
                panel.set_ylabel("loss, nats")
            if place + columns >= len(models):
                panel.set_xlabel("training done")
        for panel in made[len(models) :]:
            panel.set_visible(False)
    return figure


def _line(panel: Any, rows: pl.DataFrame, palette: Palette, model: str, dashed: bool = False) -> tuple[float, float]:
    """Draw a model's line, with the range of its seeds as a band; return its end as drawn."""
    least = panel.get_ylim()[0]
    x = rows["share"].to_list()
    y, low, high = (rows[name].clip(lower_bound=least).to_list() for name in ("loss", "low", "high"))
    colour = palette.colour(model)
    if rows["seeds"].max() != 1:
        panel.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0, zorder=1)
    panel.plot(
        x,
        y,
        color=colour,
        linestyle=DASHES if dashed else "-",
        linewidth=1.9,
        marker=palette.marker(model),
        markevery=[int(at) for at in thinned(range(len(x)), _MARKED)],
        markersize=5.5,
        markeredgecolor=PAPER,
        markeredgewidth=0.7,
        zorder=3,
        clip_on=False,
    )
    return x[-1], y[-1]


def _scale(panel: Any, rows: pl.DataFrame) -> None:
    """Set the axes for all rows: losses from zero, or on a logarithmic axis where they are far apart."""
    from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

    smallest, largest = float(rows["low"].min()), float(rows["high"].max())  # type: ignore[arg-type]
    panel.set_xlim(0, 1)
    panel.tick_params(axis="x", pad=6)  # "0" and "0%" keep apart in the corner
    panel.xaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    panel.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if largest <= max(_WIDE * smallest, 2 * _LEAST):
        panel.set_ylim(0, 1.06 * largest if largest > 0 else 1.0)
        return
    least = max(_LEAST, 0.8 * smallest)
    panel.set_yscale("log")
    panel.set_ylim(least, 1.25 * largest)
    steps = [base * 10.0**power for power in range(-3, 4) for base in (1, 3)]
    ticks = [step for step in steps if least * 0.999 <= step <= 1.25 * largest]
    panel.yaxis.set_major_locator(FixedLocator(ticks))
    panel.yaxis.set_minor_locator(NullLocator())
    said = [f"{tick:g}" for tick in ticks]
    if smallest < least:
        said[0] = f"\u2264 {said[0]}"
    panel.set_yticks(ticks, said)
