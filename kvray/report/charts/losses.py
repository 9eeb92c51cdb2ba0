"""Loss by share of the training: all mixtures in one or two panels, or a panel each where there are many."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from kvray.report.charts.labels import End, at_ends, name_panel
from kvray.report.charts.style import DASHES, ON_LINE, WIDTH, Palette, facets, panels, theme, thinned
from kvray.results.losses import PARTS, Part

TOGETHER = 6
"""Most mixtures drawn in one panel; more get a panel each."""
SHOWN = 12
"""Most panels of a figure; further mixtures are only in the table."""
_TITLES: dict[Part, str] = {
    "all": "all answer tokens",
    "integers": "integers: tokens that hold a digit",
    "words": "words around them: the other tokens",
}
_WIDE = 30.0
"""Ratio of the largest loss to the smallest from which the axis is logarithmic."""
_LEAST = 1e-3
"""Nats; a logarithmic axis ends there, and lower losses are drawn at its end."""
_NAME = 18
"""Most letters of a name for two panels side by side."""
_MARKED = 5
"""Markers on a line."""


def together(curves: pl.DataFrame, parts: Sequence[Part], palette: Palette, head: tuple[str, str]) -> Any:
    """Draw :func:`kvray.results.losses.curves`: a panel per part, a line per model that has all of these parts."""
    rows = curves.filter(pl.col("part").is_in(list(parts)))
    have = rows.group_by("model").agg(pl.col("part").n_unique()).filter(pl.col("part") == len(parts))
    models = sorted(have["model"].to_list(), key=palette.place)
    rows = rows.filter(pl.col("model").is_in(models))
    # Stacked where long names would leave no room for the lines.
    stacked = len(parts) > 1 and max(map(len, models)) > _NAME
    shape, height = ((len(parts), 1), 3.0 * len(parts)) if stacked else ((1, len(parts)), 3.6)
    with theme():
        figure, axes = panels((WIDTH, height), shape, head)
        for panel, part in zip(axes, parts, strict=True):
            _scale(panel, rows)
            ends = []
            for model in models:
                line = rows.filter((pl.col("model") == model) & (pl.col("part") == part))
                colour = palette.colour(model)
                ends.append(End(_line(panel, line, palette, model), model, colour, colour, 9.5, bold=True))
            at_ends(panel, ends, 2.3 if stacked else 2.9)
            if len(parts) > 1:
                panel.set_title(_TITLES[part], loc="left", fontsize=10)
        for panel in axes if stacked else axes[:1]:
            panel.set_ylabel("loss, nats per token")
        for panel in axes[-1:] if stacked else axes:
            panel.set_xlabel("training done")
    return figure


def apart(curves: pl.DataFrame, palette: Palette, head: tuple[str, str]) -> Any:
    """Draw a panel each for the first :data:`SHOWN` models: integers and words where it has both, else all tokens."""
    models = sorted(curves["model"].unique().to_list(), key=palette.place)[:SHOWN]
    has_all_parts = pl.col("part").n_unique().over("model") == len(PARTS)
    shown = pl.when(has_all_parts).then(pl.col("part") != "all").otherwise(pl.col("part") == "all")
    rows = curves.filter(pl.col("model").is_in(models)).filter(shown)
    with theme():
        figure, axes = facets(len(models), (10.1, 2.3), head, "training done")
        for place, (panel, model) in enumerate(zip(axes, models, strict=True)):
            _scale(panel, rows)
            ends = []
            colour = palette.colour(model)
            for (part,), line in rows.filter(pl.col("model") == model).group_by("part", maintain_order=True):
                at = _line(panel, line, palette, model, dashed=part == "words")
                ends.append(End(at, str(part), colour, colour, 8))
            at_ends(panel, ends, 1.8)
            name_panel(panel, model, colour)
            panel.set_ylabel("" if place % 3 else "loss, nats")
    return figure


def _line(panel: Any, rows: pl.DataFrame, palette: Palette, model: str, dashed: bool = False) -> tuple[float, float]:
    """Draw a model's line, with the range of its seeds as a band; return its end."""
    least = panel.get_ylim()[0]
    x = rows["share"].to_list()
    y, low, high = (rows[name].clip(lower_bound=least).to_list() for name in ("loss", "low", "high"))
    colour = palette.colour(model)
    if rows["seeds"].max() != 1:
        panel.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0, zorder=1)
    look = {"linestyle": DASHES if dashed else "-", "linewidth": 1.9, "markersize": 5.5, "zorder": 3, **ON_LINE}
    every = [int(at) for at in thinned(range(len(x)), _MARKED)]
    panel.plot(x, y, color=colour, marker=palette.marker(model), markevery=every, **look)
    return x[-1], y[-1]


def _scale(panel: Any, rows: pl.DataFrame) -> None:
    """Set the axes to hold all rows: losses from zero, or on a logarithmic axis where they are far apart."""
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
    names = [f"{tick:g}" for tick in ticks]
    if smallest < least:
        names[0] = f"\u2264 {names[0]}"
    panel.set_yticks(ticks, names)
