"""How the loss fell, in a report: the figures and the table show what was logged."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from loss_logs import commit, frame, log

from kvray.report import build
from kvray.report.charts import losses as descent
from kvray.report.charts import style
from kvray.results import losses
from kvray.store.store import Store


def section(text: str) -> str:
    found = re.search(r"^## How the loss fell\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    return found.group(1) if found else ""


def cells(text: str) -> list[list[str]]:
    return [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]


def test_the_figure_has_the_curves_of_mixtures_with_both_on_one_scale_in_their_colours() -> None:
    steep, flat = [4.0, 2.0, 1.0], [1.0, 0.9, 0.8]
    logs = {"kv": [log(steep, steep)], "needle": [log([None] * 3, flat)], "kv-template": [log(steep, flat)]}
    rows, palette = losses.curves(frame(logs)), style.Palette(list(logs))
    figure = descent.together(rows, ["integers", "words"], palette, ("title", "subtitle"))
    integers, words = figure.axes
    assert [[list(line.get_ydata()) for line in panel.lines] for panel in (integers, words)] == [
        [steep, steep],
        [steep, flat],
    ]
    for panel in (integers, words):
        assert [line.get_color() for line in panel.lines] == [palette.colour("kv"), palette.colour("kv-template")]
        assert {text.get_text() for text in panel.texts} == {"kv", "kv-template"}
        assert panel.get_ylim() == integers.get_ylim()
        assert panel.get_ylim()[0] == 0.0
        assert not panel.collections  # one seed: no band
    (panel,) = descent.together(rows, ["all"], palette, ("title", "subtitle")).axes
    assert {text.get_text() for text in panel.texts} == set(logs)
    (panel,) = descent.together(
        losses.curves(frame({"kv": [log(steep, flat), log(flat, flat)]})), ["all"], palette, ("", "")
    ).axes
    assert len(panel.collections) == 1  # the range of two seeds


def test_losses_far_apart_have_a_logarithmic_axis_and_none_is_lost() -> None:
    palette = style.Palette(["kv"])
    rows = losses.curves(frame({"kv": [log([8.0, 4.0, 2.0], [1.0, 0.01, 0.0])]}))
    for panel in descent.together(rows, ["integers", "words"], palette, ("", "")).axes:
        low, high = panel.get_ylim()
        assert panel.get_yscale() == "log"
        assert low <= min(panel.lines[0].get_ydata()) <= max(panel.lines[0].get_ydata()) <= high
        assert panel.get_yticklabels()[0].get_text() == "\u2264 0.001"
    for value in (0.0, 2.0):
        (panel,) = descent.together(
            losses.curves(frame({"kv": [log([value] * 3, [value] * 3)]})), ["all"], palette, ("", "")
        ).axes
        low, high = panel.get_ylim()
        assert low == 0.0
        assert value < high


def test_long_names_leave_room_for_the_lines() -> None:
    names = ["kv-template lora[learning_rate=0.003]", "kv-template full[learning_rate=0.001]"]
    values = [2.0, 1.0]
    rows = losses.curves(frame({name: [log(values, values)] for name in names}))
    figure = descent.together(rows, ["integers", "words"], style.Palette(names), ("", ""))
    style.render(figure, "png")
    for panel in figure.axes:
        assert panel.get_position().width > 0.5


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> str:
    store = Store(str(tmp_path_factory.mktemp("many")))
    values = [4.0, 2.0, 1.0]
    rows = [(f"mix-{i:02d}", "lora", 0, log(values if i % 2 else [None] * 3, values)) for i in range(27)]
    commit(store, rows)
    written = build.write(store, "first")
    assert {Path(path).stem for path in written.figures} == {"loss"}
    return Path(written.markdown).read_text()


def test_many_mixtures_have_a_panel_each_up_to_a_page_and_a_table_folded_away(many: str) -> None:
    part = section(many)
    assert "<details><summary>Losses of all 27 mixtures</summary>" in part
    assert len(cells(part)) == 1 + 1 + 27
    names = [f"mix-{i:02d}" for i in range(27)]
    values = [4.0, 2.0, 1.0]
    logs = {name: [log([None] * 3 if at == 1 else values, values)] for at, name in enumerate(names)}
    figure = descent.apart(losses.curves(frame(logs)), style.Palette(names), ("", ""))
    shown = [panel for panel in figure.axes if panel.get_visible()]
    assert [panel.get_title(loc="left") for panel in shown] == names[: descent.SHOWN]
    assert [{text.get_text() for text in panel.texts} for panel in shown[:2]] == [{"integers", "words"}, {"all"}]


def test_the_section_gives_the_numbers_says_what_they_are_and_who_has_none(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    template = log([3.0] + [1.0] * 18 + [0.25], [0.125] + [0.1] * 18 + [0.0625])
    plain = log([3.0] * 20, [2.0] * 20)
    other = log([5.0] * 20, [4.0] * 20)
    commit(store, [("kv-template", "lora", 0, template), ("kv", "lora", 0, plain), ("kv", "lora", 1, other),
                   ("needle", "lora", 0, log([None] * 20, [2.5] * 20)), ("gpt", "api", 0, None)])  # fmt: skip
    written = build.write(store, "first")
    part = section(Path(written.markdown).read_text())
    table = cells(part)
    assert table[0] == [
        "mixture",
        *(f"{p}, {t} tenth" for p in ("all", "integers", "words") for t in ("first", "last")),
    ]
    assert {Path(path).stem for path in written.figures} == {"loss", "loss-by-kind"}
    by_name = {line[0]: line[1:] for line in table[2:]}
    # A tenth of 20 steps is two: (3 + 1) / 2 of integers, (0.125 + 0.1) / 2 of words.
    assert by_name["**kv-template**"][2:] == ["2.000", "0.625", "0.113", "0.081"]
    assert by_name["**kv**"] == ["3.500", "3.500", "4.000", "4.000", "3.000", "3.000"]  # two seeds averaged
    assert by_name["**needle**"][2:] == ["\u2013", "\u2013", "2.500", "2.500"]
    assert "Figure 4 of the paper" in part
    assert "1 of 5 finetunes have no log" in part
    assert "How the loss fell" in Path(written.html).read_text()


def test_without_any_log_there_is_no_section(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    commit(store, [("gpt", "api", 0, None)])
    written = build.write(store, "first")
    assert not section(Path(written.markdown).read_text())
    assert written.figures == ()


def test_words_alone_are_all_there_is(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    commit(store, [("needle", "lora", 0, log([None] * 3, [3.0, 2.0, 1.0]))])
    written = build.write(store, "first")
    part = section(Path(written.markdown).read_text())
    assert cells(part)[0] == ["mixture", "all, first tenth", "all, last tenth"]
    assert "ntegers" not in part
    assert {Path(path).stem for path in written.figures} == {"loss"}
