"""Loss by share of the training: all mixtures in one or two panels, or a panel each where there are many."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from kvray.report.charts import tips
from kvray.report.charts.labels import End, at_ends, name_panel
from kvray.report.charts.style import DASHES, ON_LINE, WIDTH, Palette, facets, panels, shares, theme, thinned
from kvray.results.losses import PARTS, Part

TOGETHER = 6  # most mixtures drawn in one panel; more get a panel each
SHOWN = 12  # most panels of a figure; further mixtures are only in the table
_TITLES: dict[Part, str] = {
    "all": "all answer tokens",
    "integers": "integers: tokens that hold a digit",
    "words": "words around them: the other tokens",
}
_WIDE = 30.0  # ratio of the largest loss to the smallest from which the axis is logarithmic
_LEAST = 1e-3  # nats; a logarithmic axis ends there, and lower losses are drawn at its end
_NAME = 18  # most letters of a name for two panels side by side
_MARKED = 5  # markers on a line


def together(curves: pl.DataFrame, parts: Sequence[Part], palette: Palette, head: tuple[str, str]) -> Any:
    """Draw :func:`kvray.results.losses.curves`: a panel per part, a line per model that has all of these parts."""
    rows = curves.filter(pl.col("part").is_in(list(parts)))
    rows = rows.filter(pl.col("part").n_unique().over("model") == len(parts))
    models = palette.ordered(rows["model"])
    # Stacked where long names would leave no room for the lines.
    stacked = len(parts) > 1 and max(map(len, models)) > _NAME
    shape, height = ((len(parts), 1), 3.0 * len(parts)) if stacked else ((1, len(parts)), 3.6)
    with theme():
        figure, axes = panels((WIDTH, height), shape, head)
        for panel, part in zip(axes, parts, strict=True):
            _scale(panel, rows)
            of = rows.filter(pl.col("part") == part).partition_by("model", as_dict=True)
            ends = [_line(panel, of[model,], palette, alone=False) for model in models]
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
    models = palette.ordered(curves["model"])[:SHOWN]
    has_all_parts = pl.col("part").n_unique().over("model") == len(PARTS)
    rows = curves.filter(pl.col("model").is_in(models), (pl.col("part") == "all") != has_all_parts)
    with theme():
        figure, axes = facets(len(models), (10.1, 2.3), head, "training done")
        for place, (panel, model) in enumerate(zip(axes, models, strict=True)):
            _scale(panel, rows)
            of = rows.filter(pl.col("model") == model).partition_by("part", maintain_order=True)
            ends = [_line(panel, line, palette, alone=True) for line in of]
            at_ends(panel, ends, 1.8)
            name_panel(panel, model, palette.colour(model))
            panel.set_ylabel("" if place % 3 else "loss, nats")
    return figure


def _line(panel: Any, rows: pl.DataFrame, palette: Palette, alone: bool) -> End:
    """Draw one line with a band over seeds; ``alone`` in its panel, it is named by its part instead of its model."""
    model, part = rows.select("model", "part").row(0)
    colour, least = palette.colour(model), panel.get_ylim()[0]
    x = rows["share"].to_list()
    y, low, high = (rows[name].clip(lower_bound=least).to_list() for name in ("loss", "low", "high"))
    if rows["seeds"].max() != 1:
        panel.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0, zorder=1)
    for share, loss, lowest, highest in zip(x, y, low, high, strict=True):
        said = f"{model}, {_TITLES[part].partition(':')[0]}, {100 * share:.0f} % of the training: {loss:.3f} nats"
        tips.point(panel, share, loss, said + (f" ({lowest:.3f} to {highest:.3f} by seed)" if lowest < highest else ""))
    look = {"color": colour, "linewidth": 1.9, "marker": palette.marker(model), "markersize": 5.5, "zorder": 3}
    look["linestyle"] = DASHES if alone and part == "words" else "-"
    every = [int(at) for at in thinned(range(len(x)), _MARKED)]
    panel.plot(x, y, markevery=every, **look, **ON_LINE)
    return End((x[-1], y[-1]), part if alone else model, colour, colour, 8 if alone else 9.5, bold=not alone)


def _scale(panel: Any, rows: pl.DataFrame) -> None:
    """Set the axes to hold all rows: losses from zero, or on a logarithmic axis where they are far apart."""
    smallest, largest = float(rows["low"].min()), float(rows["high"].max())  # type: ignore[arg-type]
    panel.set_xlim(0, 1)
    panel.tick_params(axis="x", pad=6)  # "0" and "0%" keep apart in the corner
    panel.set_xticks(*shares(4))
    if largest <= max(_WIDE * smallest, 2 * _LEAST):
        panel.set_ylim(0, 1.06 * largest if largest > 0 else 1.0)
        return
    least = max(_LEAST, 0.8 * smallest)
    panel.set_yscale("log")
    panel.set_ylim(least, 1.25 * largest)
    steps = [base * 10.0**power for power in range(-3, 4) for base in (1, 3)]
    ticks = [step for step in steps if least * 0.999 <= step <= 1.25 * largest]
    panel.minorticks_off()
    names = [f"{tick:g}" for tick in ticks]
    if smallest < least:
        names[0] = f"\u2264 {names[0]}"
    panel.set_yticks(ticks, names)
