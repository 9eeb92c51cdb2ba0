"""Heatmaps of accuracy and of change by length and depth; kinds of answers as stacked bars."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import polars as pl

from kvray.report.charts import tips
from kvray.report.charts.labels import name_panel
from kvray.report.charts.style import INK, MUTED, PAPER, WIDTH, Palette, facets, on, panels, theme, thinned, tokens
from kvray.report.charts.style import shares as ticks
from kvray.report.text import Linked, percent
from kvray.results.frames import BASE
from kvray.results.profile import DEPTH, LENGTH

Value = Literal["accuracy", "difference"]  # the column of the scores that a heatmap shows
_ACROSS = 3
_PRINTED = 16  # most lengths or depths of a heatmap whose cells show their numbers
_SEQUENTIAL = ("#f3f7fb", "#c6dbec", "#86b6d8", "#3f87bd", "#0b559b", "#08306b")
_DIVERGING = ("#8c3a00", "#d55e00", "#f0a875", "#f6f4f1", "#85b7dc", "#0072b2", "#003f6b")
FILLS = {
    "right": "#4a6d8c",
    "partial": "#9db4c7",
    "refusal": "#d9d3c3",
    "other": "#c3b091",
    "wrong": "#d19a8a",
    "invention": "#b03a2e",
}
"""Colours of the kinds of answers, distinct from the models' and, in grey, from each other."""
_FURTHER = "#a99bb5"
_NARROW = 0.055  # least share of the answers that is printed in its part of the bar


def heatmaps(scores: pl.DataFrame, evaluation: str, value: Value, palette: Palette, subtitle: str) -> Any:
    """Draw a heatmap per model by length and depth, significant changes bordered; None if no model has the value."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    rows = cells(scores, evaluation).filter(pl.col(value).is_not_null())
    if not rows.height:
        return None
    title, unit, low, high = "Accuracy", "accuracy, %", 0.0, 1.0
    if value == "difference":
        # A scale that reads well: 20, 40, 60, 80 or 100 points.
        high = max(0.2, math.ceil(5 * max(map(abs, rows[value])) - 1e-9) / 5)
        title, unit, low = "Change against the base", "change, points", -high
    models = palette.ordered(rows["model"])
    lengths, depths = (rows[axis].unique().sort().to_list() for axis in ("length", "depth"))
    columns = min(_ACROSS, len(models))
    width = max(WIDTH, columns * (0.42 * min(len(lengths), _PRINTED) + 0.5) + 1.2) if columns == _ACROSS else WIDTH
    height = min(4.4, max(1.5, 0.25 * len(depths))) + 0.42
    colours = _DIVERGING if low else _SEQUENTIAL
    shade = ScalarMappable(Normalize(low, high), LinearSegmentedColormap.from_list("kvray", colours))
    head = (f"{title} by context length and needle depth: {evaluation}", subtitle)
    with theme():
        figure, axes = facets(len(models), (width, height), head, "context length, tokens", columns, margin=0.45)
        for place, (panel, model) in enumerate(zip(axes, models, strict=True)):
            _heatmap(panel, rows.filter(pl.col("model") == model), value, shade, lengths, depths)
            name_panel(panel, model, MUTED if model == BASE else palette.colour(model))
            panel.set_yticklabels([]) if place % columns else panel.set_ylabel("depth, %")
        bar = figure.colorbar(shade, ax=figure.axes, fraction=0.02, pad=0.012, aspect=28)
        bar.outline.set_visible(False)
        bar.solids.set_rasterized(False)
        bar.set_label(unit, fontsize=9, color=MUTED)
        ticks = [low + i * (high - low) / 4 for i in range(5)]
        bar.set_ticks(ticks, labels=[_points(tick, value) for tick in ticks])
    return figure


def cells(scores: pl.DataFrame, evaluation: str) -> pl.DataFrame:
    """Return the scores of an evaluation at each length and depth."""
    placed = pl.col("length").is_not_null() & pl.col("depth").is_not_null()
    return scores.filter((pl.col("evaluation") == evaluation) & placed)


def outcome_bars(shares: pl.DataFrame, evaluation: str, subtitle: str, ends: Mapping[str, str]) -> Any:
    """Draw :func:`kvray.results.outcomes.shares` as a bar per model, with the words of ``ends`` behind it."""
    models = shares["model"].unique(maintain_order=True).to_list()
    with theme():
        head = (f"What the answers are: {evaluation}", subtitle)
        figure, (panel,) = panels((WIDTH, 0.40 * len(models) + 0.95), (1, 1), head)
        for y, model in enumerate(models):
            left = 0.0
            for row in shares.filter(pl.col("model") == model).iter_rows(named=True):
                share, fill = row["share"], FILLS.get(row["outcome"], _FURTHER)
                panel.barh(y, share, left=left, height=0.74, color=fill, edgecolor=PAPER, linewidth=0.8)
                said = f"{model}, {row['outcome']}: {percent(share)} of {row['n']:,} answers"
                to = {"evaluation": evaluation, "model": model, "outcome": row["outcome"]}
                tips.box(panel, left, y - 0.37, left + share, y + 0.37, Linked(said, to))
                if share >= _NARROW:
                    centre = {"ha": "center", "va": "center", "fontsize": 9, "color": on(fill)}
                    panel.text(left + share / 2, y, _whole_percent(share), **centre)
                left += share
            panel.annotate(ends.get(model, ""), (1.012, y), va="center", fontsize=9, color=INK, annotation_clip=False)
        _legend(panel, shares["outcome"].unique(maintain_order=True).to_list())
        panel.set_xlim(0, 1)
        panel.set_ylim(len(models) - 0.5, -1.15)
        panel.set_xticks(*ticks(5, unit=""))
        panel.set_xlabel("share of the answers, %")
        panel.set_yticks(range(len(models)), models)
        for label, model in zip(panel.get_yticklabels(), models, strict=True):
            label.set_color(MUTED if model == BASE else INK)
        panel.grid(visible=False)
        panel.spines["left"].set_visible(False)
    return figure


def _heatmap(
    panel: Any, rows: pl.DataFrame, value: Value, shade: Any, lengths: Sequence[int], depths: Sequence[float]
) -> None:
    from matplotlib.patches import Rectangle

    printed = len(lengths) <= _PRINTED and len(depths) <= _PRINTED
    size = 8.5 if len(lengths) <= 8 else 7 if len(lengths) <= 12 else 6
    for row in rows.iter_rows(named=True):
        x, y = lengths.index(row["length"]), depths.index(row["depth"])
        fill = shade.to_rgba(row[value])
        panel.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=fill, edgecolor=PAPER, linewidth=1.0))
        where = f"{LENGTH.value.format(row['length'])}, depth {DEPTH.value.format(row['depth'])}"
        tips.box(panel, x - 0.5, y - 0.5, x + 0.5, y + 0.5, tips.accuracy(row, where))
        if value == "difference" and row["verdict"] in ("better", "worse"):
            inner = Rectangle((x - 0.44, y - 0.44), 0.88, 0.88, fill=False, edgecolor=on(fill[:3]), linewidth=1.4)
            panel.add_patch(inner)
        if printed:
            centre = {"ha": "center", "va": "center", "fontsize": size, "color": on(fill[:3])}
            panel.text(x, y, _points(row[value], value), **centre)
    panel.set_xlim(-0.5, len(lengths) - 0.5)
    panel.set_ylim(len(depths) - 0.5, -0.5)
    panel.grid(visible=False)
    for side in panel.spines.values():
        side.set_visible(False)
    shown = [lengths.index(length) for length in thinned(lengths, 8)]
    panel.set_xticks(shown, [tokens(lengths[i]) for i in shown], fontsize=8.5 if len(shown) < 7 else 7.5)
    shown = [depths.index(depth) for depth in thinned(depths, 11)]
    panel.set_yticks(shown, [f"{depths[i]:.3g}" for i in shown], fontsize=8.5)


def _points(share: float, value: Value) -> str:
    points = round(100 * share)
    return f"{points:+d}".replace("-", "\u2212") if value == "difference" and points else f"{points}"


def _whole_percent(share: float) -> str:
    """Return a share in % without decimals, "100" only for 1."""
    rounded = f"{100 * share:.0f}"
    return rounded if rounded != "100" or share == 1 else f"{min(100 * share, 99.9):.1f}"


def _legend(panel: Any, kinds: list[str]) -> None:
    at = 0.0
    for kind in kinds:
        panel.barh(-0.8, 0.016, left=at, height=0.34, color=FILLS.get(kind, _FURTHER), linewidth=0)
        panel.text(at + 0.022, -0.8, kind, va="center", fontsize=9, color=INK)
        at += 0.055 + 0.0145 * len(kind)
