"""Kinds of answers as stacked bars: right, refusal, invention and whatever else a task tells apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from kvray.report.charts.style import INK, MUTED, PAPER, WIDTH, on, panels, style
from kvray.results.frames import BASE

FILLS = {
    "right": "#4a6d8c",
    "partial": "#9db4c7",
    "refusal": "#d9d3c3",
    "other": "#c3b091",
    "wrong": "#d19a8a",
    "invention": "#b03a2e",
}
"""Colour of each kind of answer; apart from the models' colours, and told apart in grey as well."""
_FURTHER = "#a99bb5"
_NARROW = 0.055


def outcome_bars(shares: pl.DataFrame, evaluation: str, subtitle: str, said: Mapping[str, str]) -> Any:
    """Draw how each model's answers divide into kinds, a bar per model, the base first.

    Args:
        shares: rows of :func:`kvray.results.outcomes.shares`.
        evaluation: which evaluation.
        subtitle: what n means, in words.
        said: words at the end of a model's bar; none for those absent.

    Returns:
        A matplotlib Figure.
    """
    models = shares["model"].unique(maintain_order=True).to_list()
    kinds = shares["outcome"].unique(maintain_order=True).to_list()
    with style():
        head = (f"What the answers are: {evaluation}", subtitle)
        figure, (panel,) = panels((WIDTH, 0.40 * len(models) + 0.95), (1, 1), head)
        for y, model in enumerate(models):
            left = 0.0
            for row in shares.filter(pl.col("model") == model).iter_rows(named=True):
                share, fill = row["share"], FILLS.get(row["outcome"], _FURTHER)
                panel.barh(y, share, left=left, height=0.74, color=fill, edgecolor=PAPER, linewidth=0.8)
                if share >= _NARROW:
                    where = (left + share / 2, y)
                    panel.text(*where, _points(share), ha="center", va="center", fontsize=9, color=on(fill))
                left += share
            words = said.get(model, "")
            panel.annotate(words, (1.012, y), va="center", fontsize=9, color=INK, annotation_clip=False)
        _legend(panel, kinds)
        panel.set_xlim(0, 1)
        panel.set_ylim(len(models) - 0.5, -1.15)
        panel.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0], ["0", "20", "40", "60", "80", "100"])
        panel.set_xlabel("share of the answers, %")
        panel.set_yticks(range(len(models)), models)
        for label, model in zip(panel.get_yticklabels(), models, strict=True):
            label.set_color(MUTED if model == BASE else INK)
        panel.grid(visible=False)
        panel.spines["left"].set_visible(False)
    return figure


def _points(share: float) -> str:
    """Return a share in %, without decimals; but 100 is said of all alone."""
    said = f"{100 * share:.0f}"
    return said if said != "100" or share == 1 else f"{min(100 * share, 99.9):.1f}"


def _legend(panel: Any, kinds: list[str]) -> None:
    """Name the kinds over the first bar, each behind a patch of its colour."""
    at = 0.0
    for kind in kinds:
        panel.barh(-0.8, 0.016, left=at, height=0.34, color=FILLS.get(kind, _FURTHER), linewidth=0)
        panel.text(at + 0.022, -0.8, kind, va="center", fontsize=9, color=INK)
        at += 0.055 + 0.0145 * len(kind)
