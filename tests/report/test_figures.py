"""The figures: what they draw is what the frames say, and nothing is hidden."""

from __future__ import annotations

import itertools
import re
import warnings

import polars as pl
import pytest
from paper_store import tables as made

from kvray.report.blocks import Details, Figure, name_figures
from kvray.report.charts import curves, differences, grids, labels, style
from kvray.results import comparisons, frames, outcomes
from kvray.results.profile import LENGTH, OVERALL, POSITION, along

Tables = tuple[pl.DataFrame, pl.DataFrame]


@pytest.fixture(scope="module")
def tables(whole: pl.DataFrame) -> Tables:
    rows = frames.with_models(whole)
    compared = comparisons.compare_all(rows)
    return comparisons.scores(rows, compared), compared.filter(pl.col("family") == OVERALL)


def palette(scores: pl.DataFrame) -> style.Palette:
    return style.Palette(frames.models(scores))


def test_lines_are_the_accuracies_on_an_axis_from_zero_to_one(tables: Tables) -> None:
    scores, _ = tables
    figure = curves.accuracy_along(POSITION, scores, "mdqa20", palette(scores), "words")
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
    scores = comparisons.scores(rows, comparisons.compare_all(rows))
    figure = curves.accuracy_along(POSITION, scores, "mdqa20", palette(rows), "words")
    assert [panel.get_title(loc="left") for panel in figure.axes] == names
    assert all(len(panel.lines) == 2 for panel in figure.axes)


def test_panels_keep_their_room_where_no_mixture_has_several_seeds(make_cell) -> None:
    names = [f"mix-{i}" for i in range(5)]
    parts = [pl.from_arrow(make_cell("mdqa20", name, 0, questions=8)) for name in names]
    rows = frames.with_models(pl.concat([pl.from_arrow(make_cell("mdqa20", questions=8)), *parts]))
    scores = comparisons.scores(rows, comparisons.compare_all(rows))
    none = pl.DataFrame(schema={"model": pl.String, "position": pl.Int32, "accuracy": pl.Float64, "seed": pl.Int64})
    figure = curves.accuracy_along(POSITION, scores, "mdqa20", palette(rows), "words", seeds=none)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a layout that fails only warns
        style.render(figure, "svg")
    boxes = [panel.get_position() for panel in figure.axes[:5]]
    assert all(box.width > 0.2 for box in boxes) and boxes[0].x0 < 0.08


def test_colour_and_marker_stay_with_a_model_and_tell_models_apart() -> None:
    names = [f"m{i}" for i in range(12)]
    chosen = style.Palette(names)
    assert len({(chosen.colour(name), chosen.marker(name)) for name in names}) == 12
    assert chosen.colour("base") == style.GREY


def test_forest_and_scatter_hold_every_interval_and_zero(tables: Tables) -> None:
    scores, against = tables
    forest = differences.knowledge_change(against, ["recall"], palette(scores), "words")
    scatter = differences.gain_against_loss(against, "mdqa20", "recall", palette(scores), "words")
    recall = against.filter(pl.col("evaluation") == "recall")
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
    apart = labels.spread([0.5, 0.5, 0.51, 0.9], [0.05] * 4)
    assert all(b - a >= 0.05 - 1e-6 for a, b in itertools.pairwise(sorted(apart)))


def test_rendering_is_reproducible_and_honest_about_its_kind(tables: Tables) -> None:
    scores, against = tables
    twice = [
        style.render(differences.knowledge_change(against, ["recall"], palette(scores), "words"), "svg")
        for _ in range(2)
    ]
    assert twice[0] == twice[1]
    assert not re.search(rb"<dc:date>", twice[0])
    png = style.render(differences.knowledge_change(against, ["recall"], palette(scores), "words"), "png")
    assert png.startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def paper() -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Predictions, comparisons with the base and scores of the base and two mixtures on evaluations of other kinds."""
    evaluations = ("flenqa-direct", "needle", "recall", "triviaqa", "gsm8k")
    parts = [pl.from_arrow(table) for table in made(24, evaluations, ("kv", "needle"), (0,))]
    rows = frames.with_models(pl.concat(parts))  # type: ignore[type-var,arg-type]
    compared = comparisons.compare_all(rows)
    return rows, compared.filter(pl.col("family") == OVERALL), comparisons.scores(rows, compared)


def test_lengths_are_spaced_by_their_ratio_and_named(paper: tuple[pl.DataFrame, ...]) -> None:
    rows, _, scores = paper
    figure = curves.accuracy_along(LENGTH, scores, "flenqa-direct", palette(rows), "words")
    (panel,) = figure.axes
    assert panel.get_xscale() == "log"
    assert [label.get_text() for label in panel.get_xticklabels()] == ["250", "500", "1,000", "2,000", "3,000"]
    of = (pl.col("model") == "kv") & (pl.col("evaluation") == "flenqa-direct")
    drawn = [list(line.get_ydata()) for line in panel.lines]
    assert along(scores, LENGTH).filter(of).sort("length")["accuracy"].to_list() in drawn


def test_floors_ceilings_and_published_points_are_drawn_and_named(tables: Tables) -> None:
    scores, _ = tables
    levels = [curves.Level("closed (closed book)", True, 0.21, 0.18, 0.24), curves.Level("oracle", False, 0.9)]
    beside = [curves.Published("base", "published", ((1.0, 0.758), (10.0, 0.538)))]
    figure = curves.accuracy_along(POSITION, scores, "mdqa20", palette(scores), "words", levels, beside)
    (panel,) = figure.axes
    said = [text.get_text() for text in panel.texts]
    assert "closed (closed book): base 21 %, finetunes 18 to 24 %" in said
    assert "oracle: base 90 %" in said
    assert "base, published" in said
    hollow = [line for line in panel.lines if line.get_markerfacecolor() == "none"]
    assert [list(line.get_ydata()) for line in hollow] == [[0.758, 0.538]]
    flat = {line.get_ydata()[0] for line in panel.lines if len(set(line.get_ydata())) == 1}
    assert {0.21, 0.9} <= flat


def test_every_cell_of_a_heatmap_shows_its_number_in_a_readable_colour(paper: tuple[pl.DataFrame, ...]) -> None:
    rows, _, scores = paper
    figure = grids.heatmaps(scores, "needle", "accuracy", palette(rows), "words")
    panels = [panel for panel in figure.axes if panel.patches]
    assert [panel.get_title(loc="left") for panel in panels] == ["base", "kv", "needle"]
    cells = scores.filter((pl.col("evaluation") == "needle") & pl.col("depth").is_not_null())
    for panel in panels:
        of = cells.filter(pl.col("model") == panel.get_title(loc="left")).sort("length", "depth")
        shown = {text.get_position(): text.get_text() for text in panel.texts}
        wanted = [f"{100 * accuracy:.0f}" for accuracy in of["accuracy"]]
        assert [shown[(x, y)] for x in range(5) for y in range(5)] == wanted
        for text, patch in zip(panel.texts, panel.patches, strict=True):
            assert contrast(text.get_color(), patch.get_facecolor()) > 4.4
    base = scores.filter(pl.col("model") == "base")
    change = grids.heatmaps(scores, "needle", "difference", palette(rows), "words")
    titles = [panel.get_title(loc="left") for panel in change.axes if panel.texts]
    assert titles == ["kv", "needle"]
    assert grids.heatmaps(base, "needle", "difference", palette(rows), "words") is None


def contrast(one: object, other: object) -> float:
    """Return the contrast of two colours, WCAG 2: 1 to 21."""
    from matplotlib.colors import to_rgb

    def luminance(colour: object) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]  # type: ignore[arg-type]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_benchmarks_share_a_scale_that_holds_ours_and_theirs(paper: tuple[pl.DataFrame, ...]) -> None:
    rows, compared, _ = paper
    theirs = {("triviaqa", "needle"): [-0.55]}
    figure = differences.benchmark_changes(compared, ["triviaqa", "gsm8k"], palette(rows), "words", theirs)
    first, second = figure.axes
    assert first.get_xlim() == second.get_xlim()
    assert first.get_xlim()[0] < -55
    hollow = [line.get_xdata()[0] for line in first.lines if line.get_markerfacecolor() == "none"]
    assert hollow == [pytest.approx(-55.0)]
    assert [label.get_text() for label in first.get_yticklabels()] == ["needle", "kv"]


def test_bars_fill_the_whole_and_name_their_kinds(paper: tuple[pl.DataFrame, ...]) -> None:
    rows, _, _ = paper
    figure = grids.outcome_bars(outcomes.shares(rows, "recall"), "recall", "words", {"kv": "at the end"})
    (panel,) = figure.axes
    said = [text.get_text() for text in panel.texts]
    assert {"right", "refusal", "invention", "at the end"} <= set(said)
    widths: dict[float, float] = {}
    for patch in panel.patches:
        if patch.get_y() > -0.5:
            widths[patch.get_y()] = widths.get(patch.get_y(), 0.0) + patch.get_width()
    assert list(widths.values()) == pytest.approx([1.0, 1.0, 1.0])
    assert len({*grids.FILLS.values(), *style.COLOURS, style.GREY}) == len(grids.FILLS) + len(style.COLOURS) + 1


def test_names_of_lines_that_end_together_stay_apart_and_inside() -> None:
    from matplotlib.text import Text

    from kvray.report.charts.style import panels, render

    figure, (panel,) = panels((8.6, 3.6), (1, 1), ("title", "subtitle"))
    names = ["kv-template lora[learning_rate=0.003]", "kv-template full[learning_rate=0.001]", "kv", "base"]
    ends = [labels.End((1.0, 1.0), name, "black", "black", 9.5) for name in names]
    ends.append(labels.End((0.2, 0.5), "a point", "black", "black", 8))
    panel.set_xlim(0, 1)
    panel.set_ylim(0, 1)
    labels.at_ends(panel, ends, 2.9)
    render(figure, "png")
    boxes = [Text.get_window_extent(text) for text in panel.texts]  # an annotation's own holds its arrow
    # Letters' boxes hold room for descenders: only what overlaps by more than that would be seen.
    assert all(not a.shrunk(1.0, 0.9).overlaps(b.shrunk(1.0, 0.9)) for a, b in itertools.combinations(boxes[:4], 2))
    around = panel.get_window_extent()
    assert all(around.y0 - 10 <= (box.y0 + box.y1) / 2 <= around.y1 + 10 for box in boxes)
    assert all(box.x0 > around.x1 for box in boxes[:4])
    assert boxes[4].x1 < around.x0 + 0.5 * around.width  # named where it stands


def test_too_many_labels_are_spread_evenly_about_the_middle() -> None:
    placed = labels.spread([1.0] * 30, [0.1] * 30)
    assert [b - a for a, b in itertools.pairwise(sorted(placed))] == pytest.approx([0.1] * 29)
    assert sum(placed) / 30 == pytest.approx(0.5)
    low = labels.spread([0.0, 0.0, 0.9], [0.1] * 3)
    assert sorted(low) == pytest.approx([0.0, 0.1, 0.9])


def test_markers_at_the_ends_of_the_axis_are_whole(tables: Tables) -> None:
    scores, _ = tables
    figure = curves.accuracy_along(POSITION, scores, "mdqa20", palette(scores), "words")
    assert all(not line.get_clip_on() for line in figure.axes[0].lines if line.get_marker() != "None")


def test_a_corner_is_named_only_where_its_quarter_has_room(tables: Tables) -> None:
    scores, against = tables
    of = pl.col("evaluation")
    gained = pl.when(of == "mdqa20").then(0.5).otherwise(pl.col("difference"))
    right = against.with_columns(gained.alias("difference"), low=gained - 0.02, high=gained + 0.02)

    def said(rows: pl.DataFrame) -> set[str]:
        figure = differences.gain_against_loss(rows, "mdqa20", "recall", palette(scores), "words")
        return {text.get_text() for text in figure.axes[0].texts}

    assert "retrieves less, knows less" not in said(right)
    both = right.with_columns(low=pl.lit(-0.5), high=pl.lit(0.5))
    assert {"retrieves less, knows less", "retrieves more, knows more"} <= said(both)


@pytest.mark.parametrize(("share", "said"), [(1.0, "100"), (0.9979, "99.8"), (0.99999, "99.9"), (0.994, "99")])
def test_a_bar_says_100_of_all_alone(share: float, said: str) -> None:
    rows = [{"model": "base", "outcome": "right", "share": share, "n": 480}]
    rows += [{"model": "base", "outcome": "wrong", "share": 1 - share, "n": 480}] if share < 1 else []
    (panel,) = grids.outcome_bars(pl.DataFrame(rows), "recall", "words", {}).axes
    assert said in {text.get_text() for text in panel.texts}


def test_no_two_figures_have_one_file_whatever_evaluations_are_called() -> None:
    keys = [("heatmap", "change-x"), ("heatmap-change", "x"), ("answers", "MDQA"), ("answers", "mdqa")]
    keys += [
        ("gain-against-loss", "a-b", "c"),
        ("gain-against-loss", "a", "b-c"),
        ("answers", "m[n=1]"),
        ("answers", "m-n-1"),
    ]
    keys += [("answers", "x" * 200 + end) for end in "abc"]
    figure = style.panels((1, 1), (1, 1), ("", ""))[0]
    figures = [Figure(figure, "about", *key) for key in keys]
    assert name_figures([*figures[:2], Details("folded", figures[2:])]) == figures
    names = [figure.name for figure in figures]
    assert len({name.lower() for name in names}) == len(keys)
    assert names[:2] == ["heatmap-change-x", "heatmap-change-x-2"]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,130}", name) for name in names)
