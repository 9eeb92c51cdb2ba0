"""Accuracy along an axis: gold position, context length or needle depth; floors, ceilings and published numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from kvray.report.charts import labels
from kvray.report.charts.style import DASHES, GREY, MUTED, PAPER, WIDTH, Palette, panels, style, tokens
from kvray.results.comparisons import along
from kvray.results.frames import BASE
from kvray.results.profile import Axis

NAMED: dict[Axis, tuple[str, str]] = {
    "position": ("gold position", "gold position (1 = first)"),
    "length": ("context length", "context length, tokens"),
    "depth": ("needle depth", "depth of the needle, % of the context"),
}
"""Each axis in a title and under a figure."""
_TOGETHER = 4
"""Models drawn in one panel; more get a panel each, beside the base, since their bands would hide each other."""
_DOTS = (0, (1, 1.6))


@dataclass(frozen=True)
class Level:
    """A floor or a ceiling: what the same questions give without a document, or with the gold one alone.

    Attributes:
        name: of the evaluation, and what it is.
        floor: whether it lies under the curves; named under its line then.
        base: accuracy of the base model; None where it has none.
        low: lowest accuracy of a finetune; None where there is none.
        high: highest accuracy of a finetune.
    """

    name: str
    floor: bool
    base: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Published:
    """A published curve, or points of one.

    Attributes:
        model: the model of the sweep that it stands beside.
        name: what to call it in the figure.
        points: (place on the axis, accuracy in [0, 1]), by place.
    """

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
) -> Any:
    """Draw accuracy along an axis, a line with its 95 % band per model, the base dashed and grey.

    Args:
        axis: "position", "length" (a logarithmic axis where it spans eightfold or more) or "depth".
        scores: rows of :func:`kvray.results.comparisons.scores`.
        evaluation: which evaluation.
        palette: colours of the models.
        subtitle: what n and the bands mean, in words.
        levels: floors and ceilings, thin horizontal lines.
        published: drawn dashed with hollow markers, in the colour of the model that each stands beside.

    Returns:
        A matplotlib Figure.
    """
    rows = along(scores, axis).filter((pl.col("evaluation") == evaluation) & pl.col("accuracy").is_not_null())
    rows = rows.sort(axis).with_columns(pl.col(axis).cast(pl.Float64).alias("x"))
    finetuned = sorted((m for m in rows["model"].unique() if m != BASE), key=palette.place)
    alone = len(finetuned) <= _TOGETHER
    groups = [finetuned] if alone else [[m] for m in finetuned]
    columns = min(3, len(groups))
    lines = -(-len(groups) // columns)
    size = (WIDTH, 4.4) if alone else (3.5 * columns + 0.6, 2.7 * lines + 0.4)
    with style():
        title = f"Accuracy by {NAMED[axis][0]}: {evaluation}"
        figure, made = panels(size, (lines, columns), (title, subtitle))
        for panel, group in zip(made, groups, strict=False):
            beside = [each for each in published if each.model in (BASE, *group)]
            ends = _panel(panel, rows, group, palette, alone, beside)
            _scale(panel, axis, rows["x"].unique().sort().to_list(), beside, 0.013 if alone else 0.032)
            labels.at_ends(panel, ends, 3.8 if alone else 2.1)
            _levels(panel, levels, alone)
        for panel in made[len(groups) :]:
            panel.set_visible(False)
        for place, panel in enumerate(made):
            if place % columns == 0:
                panel.set_ylabel("accuracy")
            if place + columns >= len(groups):
                panel.set_xlabel(NAMED[axis][1])
    return figure


def _panel(
    panel: Any,
    rows: pl.DataFrame,
    models: Sequence[str],
    palette: Palette,
    alone: bool,
    published: Sequence[Published],
) -> list[labels.End]:
    """Draw the lines of a panel and return their ends."""
    ends = []
    for model in [BASE, *models]:
        line = rows.filter(pl.col("model") == model)
        if not line.height:
            continue
        x, y = line["x"].to_list(), line["accuracy"].to_list()
        base = model == BASE
        colour = palette.colour(model)
        panel.fill_between(
            x, line["low"].to_list(), line["high"].to_list(), color=colour, alpha=0.13, linewidth=0, zorder=1
        )
        panel.plot(
            x,
            y,
            color=colour,
            linestyle=DASHES if base else "-",
            linewidth=1.8 if base else 2.1,
            marker=palette.marker(model),
            markersize=4 if base else 6,
            markeredgecolor=PAPER,
            markeredgewidth=0.7,
            zorder=2 if base else 3,
            clip_on=False,  # a marker at 0 or 100 % is shown whole
        )
        if alone or base:
            told = MUTED if base else colour
            ends.append(labels.End((x[-1], y[-1]), model, told, colour, 9.5 if alone else 8, bold=not base))
    for each in published:
        colour = palette.colour(each.model)
        x, y = [point[0] for point in each.points], [point[1] for point in each.points]
        panel.plot(
            x,
            y,
            color=colour,
            linestyle=_DOTS,
            linewidth=1.3,
            marker=palette.marker(each.model),
            markersize=6.5,
            markerfacecolor="none",
            markeredgewidth=1.3,
            zorder=4,
        )
        name = f"{each.model}, {each.name}" if alone or each.model == BASE else each.name
        told, size, width = MUTED if each.model == BASE else colour, 8 if alone else 6.5, 26 if alone else 18
        ends.append(labels.End((x[-1], y[-1]), name, told, colour, size, width=width))
    if not alone:
        panel.set_title(
            labels.two_lines(models[0], 30), loc="left", fontsize=10, color=palette.colour(models[0]), fontweight="bold"
        )
    return ends


def _scale(panel: Any, axis: Axis, places: Sequence[float], published: Sequence[Published], letter: float) -> None:
    """Set limits and ticks; ``letter`` is the width of a letter in shares of the axis, so that names keep apart."""
    from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

    every = sorted({*places, *(point[0] for each in published for point in each.points)})
    first, last = every[0], every[-1]
    if axis == "length" and last >= 8 * first > 0:
        panel.set_xscale("log")
        panel.xaxis.set_minor_locator(NullLocator())
        margin = (last / first) ** 0.03
        panel.set_xlim(first / margin, last * margin)
    else:
        margin = 0.03 * max(1, last - first)
        panel.set_xlim(first - margin, last + margin)
    said = {place: tokens(place) if axis == "length" else f"{place:g}" for place in places}
    across = panel.transData + panel.transAxes.inverted()
    at = {place: float(across.transform((place, 0))[0]) for place in places}
    ticks: list[float] = []
    for place in reversed(places):
        room = letter * (0.5 * (len(said[place]) + len(said[ticks[-1]])) + 0.6) if ticks else 0.0
        if not ticks or at[ticks[-1]] - at[place] >= room:
            ticks.append(place)
    ticks.reverse()
    panel.xaxis.set_major_locator(FixedLocator(ticks))
    panel.set_xticks(ticks, [said[tick] for tick in ticks])
    panel.set_ylim(0, 1)
    panel.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    panel.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _levels(panel: Any, levels: Sequence[Level], alone: bool) -> None:
    from matplotlib.patheffects import withStroke

    for level in levels:
        said = []
        if level.low is not None and level.high is not None:
            panel.axhspan(level.low, level.high, color=MUTED, alpha=0.10, linewidth=0, zorder=0)
            ends = list(dict.fromkeys(f"{100 * share:.0f}" for share in (level.low, level.high)))
            said.append(f"finetunes {' to '.join(ends)} %")
        if level.base is not None:
            panel.axhline(level.base, color=GREY, linewidth=0.9, zorder=1)
            said.insert(0, f"base {100 * level.base:.0f} %")
        drawn = [end for end in (level.base, level.low, level.high) if end is not None]
        if not drawn:
            continue
        # A floor is named under its line and a ceiling over it, where no curve should be.
        below = level.floor and min(drawn) > 0.06
        panel.annotate(
            f"{level.name}: {', '.join(said)}" if alone else f"{level.name}, {said[0]}",
            (0.006, min(drawn) if below else max(drawn)),
            (0, -3 if below else 3),
            xycoords=panel.get_yaxis_transform(),
            textcoords="offset points",
            va="top" if below else "bottom",
            fontsize=8 if alone else 7,
            color=MUTED,
            zorder=5,
            path_effects=[withStroke(linewidth=2.5, foreground=PAPER)],
        )
