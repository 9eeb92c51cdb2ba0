"""The figures: what they draw is what the frames say, and nothing is hidden."""

from __future__ import annotations

import itertools
import re

import polars as pl
import pytest

from kvray.results import frames, labels, plots

Tables = tuple[pl.DataFrame, pl.DataFrame]


@pytest.fixture(scope="module")
def tables(whole: pl.DataFrame) -> Tables:
    rows = frames.with_models(whole)
    comparisons = frames.family(rows)
    return frames.scores(rows, comparisons), comparisons


def palette(scores: pl.DataFrame) -> plots.Palette:
    return plots.Palette(frames.models(scores))


def test_lines_are_the_accuracies_on_an_axis_from_zero_to_one(tables: Tables) -> None:
    scores, _ = tables
    figure = plots.accuracy_by_position(scores, "mdqa20", palette(scores), "words")
    (panel,) = figure.axes
    assert panel.get_ylim() == (0.0, 1.0)
    assert [tick for tick in panel.get_xticks()] == [1, 2, 5, 10, 15, 20]
    drawn = [list(line.get_ydata()) for line in panel.lines]
    for model in ("base", "ours", "ours-no-template", "multi-subkey", "mdqa"):
        of = (pl.col("model") == model) & (pl.col("evaluation") == "mdqa20") & pl.col("position").is_not_null()
        assert scores.filter(of).sort("position")["accuracy"].to_list() in drawn
    assert len(panel.collections) == 5  # a band each
    assert {text.get_text() for text in panel.texts} == {"base", "ours", "ours-no-template", "multi-subkey", "mdqa"}


def test_many_mixtures_get_a_panel_each_beside_the_base(make_cell) -> None:
    names = [f"mix-{i}" for i in range(6)]
    parts = [pl.from_arrow(make_cell("mdqa20", name, 0, questions=8)) for name in names]
    rows = frames.with_models(pl.concat([pl.from_arrow(make_cell("mdqa20", questions=8)), *parts]))
    scores = frames.scores(rows, frames.family(rows))
    figure = plots.accuracy_by_position(scores, "mdqa20", palette(rows), "words")
    assert [panel.get_title(loc="left") for panel in figure.axes] == names
    assert all(len(panel.lines) == 2 for panel in figure.axes)


def test_colour_and_marker_stay_with_a_model_and_tell_models_apart() -> None:
    names = [f"m{i}" for i in range(12)]
    chosen = plots.Palette(names)
    assert len({(chosen.colour(name), chosen.marker(name)) for name in names}) == 12
    assert chosen.colour("base") == plots.GREY


def test_forest_and_scatter_hold_every_interval_and_zero(tables: Tables) -> None:
    scores, comparisons = tables
    forest = plots.knowledge_change(comparisons, ["recall"], palette(scores), "words")
    scatter = plots.gain_against_loss(comparisons, "mdqa20", "recall", palette(scores), "words")
    recall = comparisons.filter((pl.col("family") == frames.OVERALL) & (pl.col("evaluation") == "recall"))
    low, high = 100 * recall["low"].min(), 100 * recall["high"].max()  # type: ignore[operator]
    for left, right in (forest.axes[0].get_xlim(), scatter.axes[0].get_ylim()):
        assert left < min(low, 0) <= max(high, 0) < right
    labels = {text.get_text() for text in scatter.axes[0].texts}
    assert {"ours", "ours-no-template", "multi-subkey", "mdqa", "base"} <= labels


def test_names_never_cover_each_other() -> None:
    points = [(0.5, 0.5), (0.505, 0.5), (0.51, 0.51), (0.98, 0.5), (0.5, 0.97)]
    names = ["first", "second", "third", "at-the-edge", "top"]
    places = labels.places(names, points, (0.1, 0.1))
    boxes = [(x, y - 0.021, x + 0.0115 * len(n), y + 0.021) for n, (x, y) in zip(names, places, strict=True)]
    assert all(labels.overlap(a, b) == 0 for a, b in itertools.combinations(boxes, 2))
    assert all(box[0] >= 0 and box[2] <= 1 and box[1] >= 0 and box[3] <= 1 for box in boxes)
    apart = labels.spread([0.5, 0.5, 0.51, 0.9], 0.05)
    assert all(b - a >= 0.05 - 1e-6 for a, b in itertools.pairwise(sorted(apart)))


def test_rendering_is_reproducible_and_honest_about_its_kind(tables: Tables) -> None:
    scores, comparisons = tables
    twice = [
        plots.render(plots.knowledge_change(comparisons, ["recall"], palette(scores), "words"), "svg") for _ in range(2)
    ]
    assert twice[0] == twice[1]
    assert not re.search(rb"<dc:date>", twice[0])
    png = plots.render(plots.knowledge_change(comparisons, ["recall"], palette(scores), "words"), "png")
    assert png.startswith(b"\x89PNG")
