"""Accuracy along an axis (gold position, context length, needle depth), with floors, ceilings, published numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from kvray.report.charts import labels, style, tips
from kvray.report.charts.style import WIDTH, Palette
from kvray.report.text import Linked, percent
from kvray.results.frames import BASE
from kvray.results.profile import LENGTH, Axis, along

_TOGETHER = 4
"""Most models drawn in one panel; more get a panel each, with the base, since their bands would hide each other."""
_DOTS = (0, (1, 1.6))


@dataclass(frozen=True)
class Level:
    """A floor or a ceiling: accuracies on the same questions without a document, or with the gold one alone.

    ``base`` is the base model's, ``low`` and ``high`` the range of the finetunes'.
    """

    name: str
    floor: bool
    base: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Published:
    """A published curve for a model of the sweep: points are (place on the axis, accuracy in [0, 1])."""

    model: str
    name: str
    points: tuple[tuple[float, float], ...]


def accuracy_along(
    axis: Axis,
    scores: pl.DataFrame,
    evaluation: str,
    palette: Palette,
    subtitle: str,
    levels: Sequence[Level] = (),
    published: Sequence[Published] = (),
    seeds: pl.DataFrame | None = None,
) -> Any:
    """Draw accuracy along an axis with 95 % bands; the base is dashed and grey, published numbers are dotted.

    ``seeds`` are the accuracies of single finetunes (columns model, seed, the axis, accuracy), drawn as small points.
    """
    rows = along(scores, axis).filter((pl.col("evaluation") == evaluation) & pl.col("accuracy").is_not_null())
    rows = rows.sort(axis.name).with_columns(pl.col(axis.name).cast(pl.Float64).alias("x"))
    finetuned = palette.ordered(set(rows["model"]) - {BASE})
    alone = len(finetuned) <= _TOGETHER
    head = (f"Accuracy by {axis.title}: {evaluation}", subtitle)
    with style.theme():
        if alone:
            figure, axes = style.panels((WIDTH, 4.4), (1, 1), head)
            axes[0].set_xlabel(axis.scale)
        else:
            figure, axes = style.facets(len(finetuned), (11.1, 2.7), head, axis.scale)
        groups = [finetuned] if alone else [[model] for model in finetuned]
        for place, (panel, group) in enumerate(zip(axes, groups, strict=True)):
            beside = [each for each in published if each.model in (BASE, *group)]
            _seeds(panel, seeds, axis, evaluation, group, palette)
            ends = _curves(panel, rows, group, palette, alone) + _published(panel, beside, palette, alone)
            for row in rows.filter(pl.col("model").is_in([BASE, *group])).sort("model", "x").iter_rows(named=True):
                tips.point(panel, row["x"], row["accuracy"], tips.accuracy(row, axis.value.format(row[axis.name])))
            _scale(panel, axis, rows["x"].unique().sort().to_list(), beside, 0.013 if alone else 0.032)
            labels.at_ends(panel, ends, 3.8 if alone else 2.1)
            _levels(panel, levels, alone)
            panel.set_ylabel("accuracy" if place % 3 == 0 else "")
            if not alone:
                labels.name_panel(panel, group[0], palette.colour(group[0]))
    return figure


def _seeds(
    panel: Any, seeds: pl.DataFrame | None, axis: Axis, evaluation: str, models: Sequence[str], palette: Palette
) -> None:
    if seeds is None:
        return
    for model in models:
        points = seeds.filter(pl.col("model") == model)
        if not points.height:  # an empty line would make the layout leave room down to the figure's corner
            continue
        look = {"marker": "o", "color": palette.colour(model), "clip_on": False, **style.SEED}
        panel.plot(points[axis.name].to_list(), points["accuracy"].to_list(), **look)
        for row in points.iter_rows(named=True):
            to = {"evaluation": evaluation, "model": model, "seed": row["seed"], axis.name: row[axis.name]}
            said = f"{model}, seed {row['seed']}, {axis.value.format(row[axis.name])}: {percent(row['accuracy'])}"
            tips.point(panel, row[axis.name], row["accuracy"], Linked(said, to))


def _curves(panel: Any, rows: pl.DataFrame, models: Sequence[str], palette: Palette, alone: bool) -> list[labels.End]:
    ends = []
    for model in [BASE, *models]:
        line = rows.filter(pl.col("model") == model)
        if not line.height:
            continue
        base, colour = model == BASE, palette.colour(model)
        x, y, low, high = (line[name].to_list() for name in ("x", "accuracy", "low", "high"))
        panel.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0, zorder=1)
        look = {"linestyle": style.DASHES if base else "-", "linewidth": 1.8 if base else 2.1, **style.ON_LINE}
        look |= {"markersize": 4, "zorder": 2} if base else {"markersize": 6, "zorder": 3}
        panel.plot(x, y, color=colour, marker=palette.marker(model), **look)
        if alone or base:
            ink = style.MUTED if base else colour
            ends.append(labels.End((x[-1], y[-1]), model, ink, colour, 9.5 if alone else 8, bold=not base))
    return ends


def _published(panel: Any, published: Sequence[Published], palette: Palette, alone: bool) -> list[labels.End]:
    ends = []
    look = {"linestyle": _DOTS, "linewidth": 1.3, "markersize": 6.5, "markeredgewidth": 1.3, "zorder": 4}
    for each in published:
        colour = palette.colour(each.model)
        x, y = [point[0] for point in each.points], [point[1] for point in each.points]
        panel.plot(x, y, color=colour, marker=palette.marker(each.model), markerfacecolor="none", **look)
        for place, share in each.points:
            tips.point(panel, place, share, f"{each.model}, {each.name}, at {place:,g}: {percent(share)}")
        name = f"{each.model}, {each.name}" if alone or each.model == BASE else each.name
        ink, size, width = style.MUTED if each.model == BASE else colour, 8 if alone else 6.5, 26 if alone else 18
        ends.append(labels.End((x[-1], y[-1]), name, ink, colour, size, width=width))
    return ends


def _scale(panel: Any, axis: Axis, places: Sequence[float], published: Sequence[Published], letter: float) -> None:
    """Set limits, and ticks whose names keep apart; ``letter`` is the width of a letter as a share of the axis."""
    every = sorted({*places, *(point[0] for each in published for point in each.points)})
    first, last = every[0], every[-1]
    if axis == LENGTH and last >= 8 * first > 0:
        panel.set_xscale("log")
        panel.minorticks_off()
        margin = (last / first) ** 0.03
        panel.set_xlim(first / margin, last * margin)
    else:
        margin = 0.03 * max(1, last - first)
        panel.set_xlim(first - margin, last + margin)
    names = {place: style.tokens(place) if axis == LENGTH else f"{place:g}" for place in places}
    across = panel.transData + panel.transAxes.inverted()
    at = {place: float(across.transform((place, 0))[0]) for place in places}
    ticks: list[float] = []
    for place in reversed(places):
        room = letter * (0.5 * (len(names[place]) + len(names[ticks[-1]])) + 0.6) if ticks else 0.0
        if not ticks or at[ticks[-1]] - at[place] >= room:
            ticks.append(place)
    panel.set_xticks(ticks[::-1], [names[tick] for tick in ticks[::-1]])
    panel.set_ylim(0, 1)
    panel.set_yticks(*style.shares(5))


def _levels(panel: Any, levels: Sequence[Level], alone: bool) -> None:
    for level in levels:
        numbers = []
        if level.base is not None:
            panel.axhline(level.base, color=style.GREY, linewidth=0.9, zorder=1)
            numbers.append(f"base {100 * level.base:.0f} %")
        if level.low is not None and level.high is not None:
            panel.axhspan(level.low, level.high, color=style.MUTED, alpha=0.10, linewidth=0, zorder=0)
            ends = list(dict.fromkeys(f"{100 * share:.0f}" for share in (level.low, level.high)))
            numbers.append(f"finetunes {' to '.join(ends)} %")
        drawn = [end for end in (level.base, level.low, level.high) if end is not None]
        if not drawn:
            continue
        # Curves lie between floor and ceiling, so names go outside.
        below = level.floor and min(drawn) > 0.06
        look = {"fontsize": 8 if alone else 7, "color": style.MUTED, "zorder": 5, "va": "top" if below else "bottom"}
        look |= {"xycoords": panel.get_yaxis_transform(), "textcoords": "offset points"}
        name = f"{level.name}: {', '.join(numbers)}" if alone else f"{level.name}, {numbers[0]}"
        at, away = (0.006, min(drawn) if below else max(drawn)), (0, -3 if below else 3)
        panel.annotate(name, at, away, path_effects=style.halo(), **look)
