"""Paired changes against the base: in knowledge, on benchmarks, and retrieval gained against knowledge lost."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from kvray.report.charts import labels, style, tips
from kvray.report.charts.style import WIDTH, Palette
from kvray.report.text import Linked, change, judged, signed
from kvray.results.frames import BASE

Places = Mapping[tuple[str, str], Sequence[float]]  # published changes, as shares, by (evaluation, model)
Seeds = Mapping[tuple[str, str], Mapping[int, float]]  # changes of single finetunes, as shares, likewise, then by seed
_BESIDE = 0.26  # of a row's height, by which the points of seeds lie above the mean
TOLD = 4
"""Most evaluations whose numbers :func:`between_sweeps` writes beside the points."""
_CORNER = (0.24, 0.07)  # width and height of the words in a corner, as shares of the panel


def knowledge_change(
    comparisons: pl.DataFrame, evaluations: Sequence[str], palette: Palette, subtitle: str, seeds: Seeds | None = None
) -> Any:
    """Draw each model's change in closed-book evaluations, a panel each, the greatest gain on top; a dot per seed."""
    # Drawn from below: reversed so that among equals the sweep's first is highest.
    parts = [comparisons.filter(pl.col("evaluation") == evaluation) for evaluation in evaluations]
    tables = [part.reverse().sort("difference", maintain_order=True).to_dicts() for part in parts]
    height = sum(0.42 * len(table) + 0.9 for table in tables) + 0.2
    head = (f"Change in knowledge: {', '.join(evaluations)}", subtitle)
    with style.theme():
        figure, axes = style.panels((WIDTH, height), (len(tables), 1), head, [len(table) + 1.0 for table in tables])
        for panel, table, evaluation in zip(axes, tables, evaluations, strict=True):
            _forest(panel, table, [row["b"] for row in table], palette, seeds)
            panel.set_xlim(*style.limits(table, _of(evaluation, seeds)))
            beside = {"xycoords": panel.get_yaxis_transform(), "va": "center", "fontsize": 9, "annotation_clip": False}
            for y, row in enumerate(table):
                points = change(row["difference"], row["low"], row["high"]).replace(" (", "  (", 1)
                panel.annotate(f"{points}  {judged(row)}", (1.015, y), **beside)
            if len(evaluations) > 1:
                panel.set_title(evaluation, loc="left", fontsize=10, color=style.INK)
        axes[-1].set_xlabel("change in accuracy against the base model, points")
    return figure


def benchmark_changes(
    comparisons: pl.DataFrame,
    evaluations: Sequence[str],
    palette: Palette,
    subtitle: str,
    published: Places | None = None,
    seeds: Seeds | None = None,
) -> Any:
    """Draw each model's change on benchmarks, a panel each on one scale, a dot per seed; published are hollow."""
    rows = comparisons.filter(pl.col("evaluation").is_in(list(evaluations))).to_dicts()
    models = palette.ordered(row["b"] for row in rows)[::-1]
    theirs = {key: each for key, each in (published or {}).items() if key[0] in evaluations and key[1] in models}
    further = [each for several in theirs.values() for each in several]
    limits = style.limits(rows, [*further, *(each for name in evaluations for each in _of(name, seeds))])
    columns = min(5, len(evaluations))
    size = (max(WIDTH, 1.75 * columns + 0.9), 0.46 * len(models) + 0.75)
    head = (f"Change on general benchmarks: {', '.join(evaluations)}", subtitle)
    hollow = {"markerfacecolor": "none", "markersize": 6, "markeredgewidth": 1.2, "zorder": 3}
    with style.theme():
        figure, axes = style.facets(len(evaluations), size, head, "points", columns, margin=0.2)
        for place, (panel, evaluation) in enumerate(zip(axes, evaluations, strict=True)):
            _forest(panel, [row for row in rows if row["evaluation"] == evaluation], models, palette, seeds)
            panel.set_xlim(*limits)
            for y, model in enumerate(models):
                look = {"marker": palette.marker(model), "color": palette.colour(model), **hollow}
                for each in theirs.get((evaluation, model), ()):
                    panel.plot(100 * each, y - 0.27, **look)
            panel.set_title(evaluation, loc="left", fontsize=10, color=style.INK)
            if place % columns:
                panel.set_yticklabels([])
    return figure


def between_sweeps(
    comparisons: pl.DataFrame, titles: Mapping[str, str], palette: Palette, head: tuple[str, str], below: str
) -> Any:
    """Draw each pair's change from one sweep to another, a panel per evaluation, which ``titles`` name, on one scale.

    ``b`` is the pair's name; a row without an interval is told by its verdict. Few evaluations have the numbers beside
    the points; many stand side by side without.
    """
    told_rows = comparisons.filter(pl.col("evaluation").is_in(list(titles))).to_dicts()
    rows = [row for row in told_rows if row["low"] is not None]
    models = palette.ordered(row["b"] for row in rows)[::-1]
    told = len(titles) <= TOLD
    head, below = (head, below) if told else ((head[0], f"{below}; {head[1]}"), "points")
    columns = 1 if told else min(4, len(titles))
    size = (WIDTH if told else max(WIDTH, 1.9 * columns + 1.2), 0.42 * len(models) + (0.7 if told else 0.6))
    beside: dict[str, Any] = {"va": "center", "fontsize": 9, "annotation_clip": False}
    with style.theme():
        figure, axes = style.facets(len(titles), size, head, below, columns, margin=0.25)
        for place, (panel, (evaluation, title)) in enumerate(zip(axes, titles.items(), strict=True)):
            _forest(panel, [row for row in rows if row["evaluation"] == evaluation], models, palette)
            panel.set_xlim(*style.limits(rows))
            name = title if told else labels.two_lines(evaluation, 22)
            panel.set_title(name, loc="left", fontsize=10, color=style.INK)
            if place % columns:
                panel.set_yticklabels([])
            here = [row for row in told_rows if row["evaluation"] == evaluation and row["b"] in models]
            for row in here if told else ():
                points = change(row["difference"], row["low"], row["high"]).replace(" (", "  (", 1)
                said = row["verdict"] if row["low"] is None else f"{points}  {judged(row)}"
                look = beside | ({"color": style.MUTED} if row["low"] is None else {})
                at = (1.015, models.index(row["b"]))
                panel.annotate(said, at, xycoords=panel.get_yaxis_transform(), **look)
    return figure


def gain_against_loss(
    comparisons: pl.DataFrame,
    retrieval: str,
    knowledge: str,
    palette: Palette,
    subtitle: str,
    seeds: Seeds | None = None,
) -> Any:
    """Draw each model at (change in a retrieval evaluation, change in a closed-book one), with 95 % intervals.

    ``subtitle`` says what the intervals cover; every seed that both evaluations have is a small point.
    """
    across, upward = (
        {row["b"]: row for row in comparisons.filter(pl.col("evaluation") == evaluation).iter_rows(named=True)}
        for evaluation in (retrieval, knowledge)
    )
    both = [model for model in across if model in upward]
    single = {model: _both(model, retrieval, knowledge, seeds) for model in both}
    with style.theme():
        head = (f"Retrieval gained, knowledge lost: {retrieval}, {knowledge}", subtitle)
        figure, (panel,) = style.panels((WIDTH, 5.0), (1, 1), head)
        panel.axhline(0, **style.ZERO)
        panel.axvline(0, **style.ZERO)
        points = {model: (100 * across[model]["difference"], 100 * upward[model]["difference"]) for model in both}
        for model, point in points.items():
            errors = {"xerr": style.reach(across[model]), "yerr": style.reach(upward[model]), "elinewidth": 1.4}
            panel.errorbar(*point, fmt=palette.marker(model), color=palette.colour(model), **errors, **style.DOT)
            said = f"{tips.difference(across[model])}. {tips.difference(upward[model])}"
            tips.point(panel, *point, Linked(said, {"evaluation": retrieval, "model": model}))
            for each in single[model]:
                panel.plot(100 * each[0], 100 * each[1], marker="o", color=palette.colour(model), **style.SEED)
        drawn = [each for several in single.values() for each in several]
        left, right = style.limits([across[m] for m in both], [each[0] for each in drawn])
        low, high = style.limits([upward[m] for m in both], [each[1] for each in drawn])
        panel.set_xlim(left, right)
        panel.set_ylim(low, high)
        width, height = right - left, high - low
        shares = [((x - left) / width, (y - low) / height) for x, y in points.values()]
        look = {"fontsize": 9.5, "fontweight": "bold", "va": "center", "zorder": 4, "transform": panel.transAxes}
        look["path_effects"] = style.halo()
        for model, place in zip(both, labels.places(both, shares, (-left / width, -low / height)), strict=True):
            panel.text(*place, model, color=palette.colour(model), **look)
        panel.scatter([0], [0], color=style.GREY, s=34, zorder=2)
        panel.annotate(BASE, (0, 0), (-6, -12), textcoords="offset points", color=style.MUTED, fontsize=9, ha="right")
        corner = {"transform": panel.transAxes, "fontsize": 8.5, "color": style.MUTED, "style": "italic"}
        # Only where the words fit into their quadrant: across a zero line they would describe another one.
        if right > _CORNER[0] * width and high > _CORNER[1] * height:
            panel.text(0.985, 0.98, "retrieves more, knows more", ha="right", va="top", **corner)
        if -left > _CORNER[0] * width and -low > _CORNER[1] * height:
            panel.text(0.015, 0.02, "retrieves less, knows less", ha="left", va="bottom", **corner)
        panel.set_xlabel(f"change in retrieval against the base, points ({retrieval})")
        panel.set_ylabel(f"change in knowledge against the base, points ({knowledge})")
    return figure


def _forest(
    panel: Any,
    rows: Sequence[Mapping[str, Any]],
    models: Sequence[str],
    palette: Palette,
    seeds: Seeds | None = None,
) -> None:
    panel.axvline(0, **style.ZERO)
    for row in rows:
        place = models.index(row["b"])
        look = {"fmt": palette.marker(row["b"]), "color": palette.colour(row["b"]), "elinewidth": 2.0, **style.DOT}
        panel.errorbar(100 * row["difference"], place, xerr=style.reach(row), **look)
        tips.point(panel, 100 * row["difference"], place, tips.difference(row))
        for seed, each in (seeds or {}).get((row["evaluation"], row["b"]), {}).items():
            panel.plot(100 * each, place + _BESIDE, marker="o", color=palette.colour(row["b"]), **style.SEED)
            to = {"evaluation": row["evaluation"], "model": row["b"], "seed": seed}
            said = Linked(f"{row['b']} on {row['evaluation']}, seed {seed}: {signed(each)} points", to)
            tips.point(panel, 100 * each, place + _BESIDE, said)
    panel.set_yticks(range(len(models)), models, color=style.INK)
    panel.set_ylim(-0.6, len(models) - 0.4)
    panel.grid(axis="y", visible=False)


def _of(evaluation: str, seeds: Seeds | None) -> list[float]:
    """Return the changes of all seeds in one evaluation."""
    return [each for (name, _), of in (seeds or {}).items() if name == evaluation for each in of.values()]


def _both(model: str, retrieval: str, knowledge: str, seeds: Seeds | None) -> list[tuple[float, float]]:
    """Return the changes of each seed of a model in two evaluations."""
    across, upward = ((seeds or {}).get((evaluation, model), {}) for evaluation in (retrieval, knowledge))
    return [(across[seed], upward[seed]) for seed in across if seed in upward]
