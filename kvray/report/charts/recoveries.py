"""Recovery ratios along an axis: how much of the gap between closed book and oracle the context closes."""

from typing import Any

import polars as pl

from kvray.report.charts import labels, style, tips
from kvray.report.charts.style import WIDTH, Palette
from kvray.report.text import Linked, interval, percent
from kvray.results.frames import BASE
from kvray.results.profile import LENGTH, Axis

_HEIGHT = 3.2
_BANDS = 4
"""Most models whose intervals are drawn as bands; more would hide each other, and the table has them."""
_TICKS = 12
_MOST, _LEAST = 1.5, -0.5  # shares shown at most; an interval may reach further


def along(axis: Axis, rows: pl.DataFrame, evaluation: str, palette: Palette, subtitle: str) -> Any:
    """Draw the ratios of :func:`kvray.results.recovery.recovery` by an axis; the base is dashed and grey."""
    drawn = rows.filter(pl.col("recovery").is_not_null()).sort(axis.name)
    models = palette.ordered(drawn["model"])
    ends = []
    with style.theme():
        figure, (panel,) = style.panels(
            (WIDTH, _HEIGHT), (1, 1), (f"Recovered by {axis.title}: {evaluation}", subtitle)
        )
        for model in models:
            line, base, colour = drawn.filter(pl.col("model") == model), model == BASE, palette.colour(model)
            x, y, low, high = (line[name].to_list() for name in (axis.name, "recovery", "low", "high"))
            if len(models) <= _BANDS:
                panel.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0, zorder=1)
            look = {"linestyle": style.DASHES if base else "-", "linewidth": 1.8 if base else 2.1, "zorder": 3}
            panel.plot(x, y, color=colour, marker=palette.marker(model), markersize=5, **look, **style.ON_LINE)
            for row in line.iter_rows(named=True):
                said = f"{model}, {axis.value.format(row[axis.name])}: {percent(row['recovery'], 0)} recovered, "
                said += f"95 % interval {interval(row['low'], row['high'])}; n {row['questions']:,} questions"
                to = {"evaluation": evaluation, "model": model, axis.name: row[axis.name]}
                tips.point(panel, row[axis.name], row["recovery"], Linked(said, to))
            ink = style.MUTED if base else colour
            ends.append(labels.End((x[-1], y[-1]), model, ink, colour, 9.5, bold=not base))
        places = style.thinned(drawn[axis.name].unique().sort().to_list(), _TICKS)
        panel.set_xticks(places, [style.tokens(place) if axis == LENGTH else f"{place:g}" for place in places])
        panel.set_xlabel(axis.scale)
        lowest, highest = min([0.0, *drawn["low"].to_list()]), max([1.0, *drawn["high"].to_list()])
        panel.set_ylim(max(_LEAST, lowest), min(_MOST, highest))
        panel.set_yticks(*style.shares(4))
        panel.set_ylabel("recovered")
        panel.axhline(1.0, **style.ZERO)
        labels.at_ends(panel, ends, _HEIGHT - 0.6)
    return figure
