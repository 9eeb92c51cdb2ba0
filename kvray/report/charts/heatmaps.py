"""Accuracy by length and depth, a heatmap per model, and the change of each finetune against the base."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import polars as pl

from kvray.report.charts.style import MUTED, PAPER, WIDTH, Palette, on, panels, style, thinned, tokens
from kvray.results.frames import BASE

_ACROSS = 3
_PRINTED = 16
"""Lengths or depths up to which every cell shows its number."""
_SEQUENTIAL = ("#f3f7fb", "#c6dbec", "#86b6d8", "#3f87bd", "#0b559b", "#08306b")
_DIVERGING = ("#8c3a00", "#d55e00", "#f0a875", "#f6f4f1", "#85b7dc", "#0072b2", "#003f6b")


def accuracy_grid(scores: pl.DataFrame, evaluation: str, palette: Palette, subtitle: str) -> Any:
    """Draw accuracy by context length and needle depth, a heatmap per model, the base first.

    Args:
        scores: rows of :func:`kvray.results.comparisons.scores`.
        evaluation: which evaluation.
        palette: colours of the models.
        subtitle: what n means, in words.

    Returns:
        A matplotlib Figure.
    """
    rows = _cells(scores, evaluation).filter(pl.col("accuracy").is_not_null())
    head = (f"Accuracy by context length and needle depth: {evaluation}", subtitle)
    return _draw(rows, "accuracy", head, palette, (0.0, 1.0), "accuracy, %")


def change_grid(scores: pl.DataFrame, evaluation: str, palette: Palette, subtitle: str) -> Any:
    """Draw each finetune's change against the base by context length and needle depth; None where there is none.

    Cells whose change is told from none after Holm's correction have a border.

    Args:
        scores: rows of :func:`kvray.results.comparisons.scores`.
        evaluation: which evaluation.
        palette: colours of the models.
        subtitle: what n and the borders mean, in words.

    Returns:
        A matplotlib Figure, or None.
    """
    rows = _cells(scores, evaluation).filter(pl.col("difference").is_not_null())
    if not rows.height:
        return None
    # Rounded up, so that the scale reads well: 20, 40, 60, 80 or 100 points.
    far = max(0.2, math.ceil(5 * max(abs(float(change)) for change in rows["difference"]) - 1e-9) / 5)
    head = (f"Change against the base by context length and needle depth: {evaluation}", subtitle)
    return _draw(rows, "difference", head, palette, (-far, far), "change, points")


def _draw(
    rows: pl.DataFrame, value: str, head: tuple[str, str], palette: Palette, ends: tuple[float, float], unit: str
) -> Any:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    models = sorted(rows["model"].unique().to_list(), key=palette.place)
    lengths, depths = (rows[axis].unique().sort().to_list() for axis in ("length", "depth"))
    columns = min(_ACROSS, len(models))
    lines = -(-len(models) // columns)
    width = max(WIDTH, columns * (0.42 * min(len(lengths), _PRINTED) + 0.5) + 1.2) if columns == _ACROSS else WIDTH
    height = lines * (min(4.4, max(1.5, 0.25 * len(depths))) + 0.42) + 0.45
    shade = ScalarMappable(Normalize(*ends), _map(_SEQUENTIAL if value == "accuracy" else _DIVERGING))
    with style():
        figure, made = panels((width, height), (lines, columns), head)
        for place, (panel, model) in enumerate(zip(made, models, strict=False)):
            of = rows.filter(pl.col("model") == model)
            _heatmap(panel, of, value, shade, lengths, depths)
            colour = MUTED if model == BASE else palette.colour(model)
            panel.set_title(model, loc="left", fontsize=10, color=colour, fontweight="bold")
            panel.set_yticklabels([]) if place % columns else panel.set_ylabel("depth, %")
            if place + columns >= len(models):
                panel.set_xlabel("context length, tokens")
        for panel in made[len(models) :]:
            panel.set_visible(False)
        bar = figure.colorbar(shade, ax=made, fraction=0.02, pad=0.012, aspect=28)
        bar.outline.set_visible(False)
        bar.solids.set_rasterized(False)
        bar.set_label(unit, fontsize=9, color=MUTED)
        ticks = [ends[0] + i * (ends[1] - ends[0]) / 4 for i in range(5)]
        bar.set_ticks(ticks, labels=[_points(tick, value) for tick in ticks])
    return figure


def _heatmap(
    panel: Any, rows: pl.DataFrame, value: str, shade: Any, lengths: Sequence[int], depths: Sequence[float]
) -> None:
    from matplotlib.patches import Rectangle

    printed = len(lengths) <= _PRINTED and len(depths) <= _PRINTED
    size = 8.5 if len(lengths) <= 8 else 7 if len(lengths) <= 12 else 6
    for row in rows.iter_rows(named=True):
        x, y = lengths.index(row["length"]), depths.index(row["depth"])
        fill = shade.to_rgba(row[value])
        panel.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=fill, edgecolor=PAPER, linewidth=1.0))
        if value == "difference" and row["verdict"] in ("better", "worse"):
            inner = Rectangle((x - 0.44, y - 0.44), 0.88, 0.88, fill=False, edgecolor=on(fill[:3]), linewidth=1.4)
            panel.add_patch(inner)
        if printed:
            said = _points(row[value], value)
            panel.text(x, y, said, ha="center", va="center", fontsize=size, color=on(fill[:3]))
    panel.set_xlim(-0.5, len(lengths) - 0.5)
    panel.set_ylim(len(depths) - 0.5, -0.5)
    panel.grid(visible=False)
    for side in panel.spines.values():
        side.set_visible(False)
    shown = [lengths.index(length) for length in thinned(lengths, 8)]
    panel.set_xticks(shown, [tokens(lengths[i]) for i in shown], fontsize=8.5 if len(shown) < 7 else 7.5)
    shown = [depths.index(depth) for depth in thinned(depths, 11)]
    panel.set_yticks(shown, [f"{depths[i]:.3g}" for i in shown], fontsize=8.5)


def _cells(scores: pl.DataFrame, evaluation: str) -> pl.DataFrame:
    return scores.filter(
        (pl.col("evaluation") == evaluation) & pl.col("length").is_not_null() & pl.col("depth").is_not_null()
    )


def _points(share: float, value: str) -> str:
    """Return a number for a cell, without decimals: a change has its sign."""
    points = round(100 * share)
    return f"{points:+d}".replace("-", "\u2212") if value == "difference" and points else f"{points}"


@cache
def _map(colours: tuple[str, ...]) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("kvray", colours)
