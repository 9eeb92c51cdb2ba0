"""Paired changes against the base: in knowledge, in benchmarks, and retrieval gained against knowledge lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from kvray.report.charts import labels
from kvray.report.charts.style import GREY, INK, MUTED, PAPER, WIDTH, Palette, limits, panels, reach, style
from kvray.report.text import signed
from kvray.results.comparisons import OVERALL
from kvray.results.frames import BASE

Places = Mapping[tuple[str, str], Sequence[float]]
"""Published changes, as shares, by (evaluation, model)."""
_CORNER = (0.24, 0.07)
"""Width and height of the words in a corner, in shares of the panel."""


def knowledge_change(comparisons: pl.DataFrame, evaluations: Sequence[str], palette: Palette, subtitle: str) -> Any:
    """Draw the paired change to the base of each model in the closed-book evaluations, a panel each.

    Args:
        comparisons: rows of :func:`kvray.results.comparisons.family`.
        evaluations: the closed-book ones.
        palette: colours of the models.
        subtitle: what n and the bars mean, in words.

    Returns:
        A matplotlib Figure.
    """
    # From below upward; of equals the sweep's first stands highest.
    tables = [against(comparisons, e).reverse().sort("difference", maintain_order=True) for e in evaluations]
    height = sum(0.42 * table.height + 0.9 for table in tables) + 0.2
    with style():
        title = f"Change in knowledge: {', '.join(evaluations)}"
        shape, heights = (len(tables), 1), [table.height + 1.0 for table in tables]
        figure, made = panels((WIDTH, height), shape, (title, subtitle), heights)
        for panel, table, evaluation in zip(made, tables, evaluations, strict=True):
            _forest(panel, table, palette)
            if len(evaluations) > 1:
                panel.set_title(evaluation, loc="left", fontsize=10, color=INK)
        made[-1].set_xlabel("change in accuracy against the base model, points")
    return figure


def benchmark_changes(
    comparisons: pl.DataFrame,
    evaluations: Sequence[str],
    palette: Palette,
    subtitle: str,
    published: Places | None = None,
) -> Any:
    """Draw the paired change to the base of every model on every benchmark, a panel each on one scale.

    Args:
        comparisons: rows of :func:`kvray.results.comparisons.family`.
        evaluations: the benchmarks.
        palette: colours of the models.
        subtitle: what n and the bars mean, in words.
        published: drawn hollow, under ours.

    Returns:
        A matplotlib Figure.
    """
    tables = {e: against(comparisons, e) for e in evaluations}
    models = sorted({m for table in tables.values() for m in table["b"]}, key=palette.place, reverse=True)
    others = published or {}
    theirs = [change for (e, m), each in others.items() if e in tables and m in models for change in each]
    low, high = limits([row for table in tables.values() for row in table.iter_rows(named=True)], theirs)
    columns = min(5, len(tables))
    lines = -(-len(tables) // columns)
    height = lines * (0.46 * len(models) + 0.75) + 0.2
    with style():
        head = (f"Change on general benchmarks: {', '.join(evaluations)}", subtitle)
        figure, made = panels((max(WIDTH, 1.75 * columns + 0.9), height), (lines, columns), head)
        for panel, (evaluation, table) in zip(made, tables.items(), strict=False):
            panel.axvline(0, color=GREY, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
            rows = {row["b"]: row for row in table.iter_rows(named=True)}
            for y, model in enumerate(models):
                if model in rows:
                    _dot(panel, rows[model], y, palette)
                for change in others.get((evaluation, model), ()):
                    panel.plot(
                        100 * change,
                        y - 0.27,
                        palette.marker(model),
                        color=palette.colour(model),
                        markerfacecolor="none",
                        markersize=6,
                        markeredgewidth=1.2,
                        zorder=3,
                    )
            panel.set_title(evaluation, loc="left", fontsize=10, color=INK)
            panel.set_xlim(low, high)
            panel.set_ylim(-0.6, len(models) - 0.4)
            panel.grid(axis="y", visible=False)
        for place, panel in enumerate(made):
            panel.set_visible(place < len(tables))
            named = models if place % columns == 0 else [""] * len(models)
            panel.set_yticks(range(len(models)), named, color=INK)
            if place + columns >= len(tables):
                panel.set_xlabel("points")
    return figure


def gain_against_loss(
    comparisons: pl.DataFrame, retrieval: str, knowledge: str, palette: Palette, subtitle: str
) -> Any:
    """Draw each model at (change in retrieval, change in knowledge), with 95 % intervals both ways.

    Args:
        comparisons: rows of :func:`kvray.results.comparisons.family`.
        retrieval: evaluation on the horizontal axis.
        knowledge: evaluation on the vertical axis.
        palette: colours of the models.
        subtitle: what n and the bars mean, in words.

    Returns:
        A matplotlib Figure.
    """
    from matplotlib.patheffects import withStroke

    across = {row["b"]: row for row in against(comparisons, retrieval).iter_rows(named=True)}
    upward = {row["b"]: row for row in against(comparisons, knowledge).iter_rows(named=True)}
    both = [model for model in across if model in upward]
    with style():
        head = (f"Retrieval gained, knowledge lost: {retrieval}, {knowledge}", subtitle)
        figure, (panel,) = panels((WIDTH, 5.0), (1, 1), head)
        for line in (panel.axhline, panel.axvline):
            line(0, color=GREY, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
        for model in both:
            x, y = across[model], upward[model]
            panel.errorbar(
                100 * x["difference"],
                100 * y["difference"],
                xerr=reach(x),
                yerr=reach(y),
                fmt=palette.marker(model),
                color=palette.colour(model),
                markersize=8,
                markeredgecolor=PAPER,
                markeredgewidth=0.8,
                elinewidth=1.4,
                zorder=3,
            )
        (left, right), (low, high) = limits([across[m] for m in both]), limits([upward[m] for m in both])
        panel.set_xlim(left, right)
        panel.set_ylim(low, high)
        width, height = right - left, high - low
        points = [
            ((100 * across[m]["difference"] - left) / width, (100 * upward[m]["difference"] - low) / height)
            for m in both
        ]
        for model, (x_text, y_text) in zip(
            both, labels.places(both, points, (-left / width, -low / height)), strict=True
        ):
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
        panel.annotate(BASE, (0, 0), (-6, -12), textcoords="offset points", color=MUTED, fontsize=9, ha="right")
        corner = {"transform": panel.transAxes, "fontsize": 8.5, "color": MUTED, "style": "italic"}
        # Each where its quarter has room for it: it would speak of another one across the lines of zero.
        if right > _CORNER[0] * width and high > _CORNER[1] * height:
            panel.text(0.985, 0.98, "retrieves more, knows more", ha="right", va="top", **corner)
        if -left > _CORNER[0] * width and -low > _CORNER[1] * height:
            panel.text(0.015, 0.02, "retrieves less, knows less", ha="left", va="bottom", **corner)
        panel.set_xlabel(f"change in retrieval against the base, points ({retrieval})")
        panel.set_ylabel(f"change in knowledge against the base, points ({knowledge})")
    return figure


def against(comparisons: pl.DataFrame, evaluation: str) -> pl.DataFrame:
    """Return the comparisons of every model with the base over a whole evaluation, those without pairs left out."""
    wanted = (pl.col("family") == OVERALL) & (pl.col("evaluation") == evaluation)
    return comparisons.filter(wanted & pl.col("difference").is_not_null())


def _forest(panel: Any, table: pl.DataFrame, palette: Palette) -> None:
    panel.axvline(0, color=GREY, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
    for y, row in enumerate(table.iter_rows(named=True)):
        _dot(panel, row, y, palette)
        words = f"{signed(row['difference'])}  ({signed(row['low'])} to {signed(row['high'])})  {row['verdict']}"
        panel.annotate(
            words, (1.015, y), xycoords=panel.get_yaxis_transform(), va="center", fontsize=9, annotation_clip=False
        )
    panel.set_yticks(range(table.height), table["b"].to_list(), color=INK)
    panel.set_ylim(-0.6, table.height - 0.4)
    panel.grid(axis="y", visible=False)
    panel.set_xlim(*limits(list(table.iter_rows(named=True))))


def _dot(panel: Any, row: dict[str, Any], y: float, palette: Palette) -> None:
    panel.errorbar(
        100 * row["difference"],
        y,
        xerr=reach(row),
        fmt=palette.marker(row["b"]),
        color=palette.colour(row["b"]),
        markersize=8,
        markeredgecolor=PAPER,
        markeredgewidth=0.8,
        elinewidth=2.0,
        zorder=3,
    )
