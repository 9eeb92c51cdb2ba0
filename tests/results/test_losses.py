"""How the loss fell: which logs are read, what is averaged, and that the figure and the table show it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from kvray.report import build
from kvray.report.charts import losses as descent
from kvray.report.charts import style
from kvray.results import losses
from kvray.store.fingerprint import fingerprint
from kvray.store.schemas import LOSS_SCHEMA
from kvray.store.store import Store, artefact_id

Log = Mapping[str, Sequence[float | None]]


def log(integers: Sequence[float | None], words: Sequence[float], loss: Sequence[float] | None = None) -> Log:
    """A finetune's log: of each step, the loss of integers, of words and of all."""
    both = [w if i is None else (i + w) / 2 for i, w in zip(integers, words, strict=True)]
    return {"loss": loss or both, "loss_integers": integers, "loss_words": words}


def commit(store: Store, finetunes: Sequence[tuple[str, str, int, Log | None]], name: str = "first") -> list[str]:
    """Commit finetunes, each (mixture, finetune, seed, log or None for none), and a sweep of them alone."""
    planned: list[dict[str, Any]] = []
    for mixture, finetune, seed, columns in finetunes:
        recipe = {"mixture": mixture, "finetune": finetune, "seed": seed}
        digest = fingerprint(recipe, [])
        one = artefact_id("finetune", f"{mixture}-s{seed}", digest)
        files = [store.write_bytes(one, "model.json", b"{}")]
        if columns is not None:
            steps = {"step": list(range(1, len(columns["loss"]) + 1)), **columns}
            fields = [LOSS_SCHEMA.field(column) for column in steps]
            files.append(store.write_table(one, losses.FILE, pa.table(steps, schema=pa.schema(fields))))
        store.commit(
            id=one, kind="finetune", name=one, fingerprint=digest, recipe=recipe, needs=[], files=files, measurements={}
        )
        planned.append({"id": one, "kind": "finetune", "labels": recipe, "needs": [], "rows": 1})
    document = {"format": 1, "name": name, "base_model": "kvray-tiny", "sweep": {}, "artefacts": planned}
    store.write_document(f"sweeps/{name}.json", json.dumps(document).encode())
    return [artefact["id"] for artefact in planned]


def frame(models: Mapping[str, Sequence[Log]]) -> pl.DataFrame:
    """Loss logs as :func:`losses.read` gives them: of each model, one per seed."""
    parts = []
    for model, seeds in models.items():
        for seed, columns in enumerate(seeds):
            n = len(columns["loss"])
            step, share = list(range(1, n + 1)), [at / max(1, n - 1) for at in range(n)]
            values = [columns[name] for name in ("loss", "loss_integers", "loss_words")]
            parts.append(
                pl.DataFrame(
                    [[model] * n, [seed] * n, step, share, *map(list, values)], schema=losses._LOSSES, strict=False
                )
            )
    return pl.concat(parts)


def section(text: str) -> str:
    found = re.search(r"^## How the loss fell\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    return found.group(1) if found else ""


def cells(text: str) -> list[list[str]]:
    return [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]


def test_a_curve_averages_each_twentieth_then_the_seeds() -> None:
    rising, falling = [float(v) for v in range(40)], [float(v) for v in range(40, 0, -1)]
    rows = losses.curves(frame({"kv": [log(rising, rising), log(falling, rising)]}))
    line = rows.filter(pl.col("part") == "integers")
    assert line.height == losses.BINS
    # The first twentieth holds steps 1 and 2: 0.5 of one seed, 39.5 of the other.
    assert line.row(0, named=True) == {
        "model": "kv", "part": "integers", "share": pytest.approx(0.5 / 39), "loss": 20.0, "low": 0.5, "high": 39.5,
        "seeds": 2,
    }  # fmt: skip
    assert line["share"].is_sorted()
    words = rows.filter(pl.col("part") == "words")
    assert words["low"].to_list() == words["high"].to_list() == words["loss"].to_list()
    assert words["loss"][-1] == 38.5


@pytest.mark.parametrize(("steps", "first", "last"), [(1, [1], [1]), (10, [1], [10]), (25, [1, 2, 3], [23, 24, 25])])
def test_a_tenth_is_at_least_a_step(steps: int, first: list[int], last: list[int]) -> None:
    values = [float(step**2) for step in range(1, steps + 1)]
    row = losses.tenths(frame({"kv": [log(values, values)]})).row(0, named=True)
    assert row["first"] == pytest.approx(np.mean([step**2 for step in first]))
    assert row["last"] == pytest.approx(np.mean([step**2 for step in last]))


def test_steps_without_an_integer_are_no_zeros() -> None:
    rows = frame({"kv": [log([None, 3.0, 5.0, None], [1.0, 1.0, 1.0, 1.0])], "needle": [log([None] * 4, [2.0] * 4)]})
    assert losses.split(rows) == ["kv"]
    lines = losses.curves(rows).filter(pl.col("part") == "integers")
    assert lines["loss"].to_list() == [3.0, 5.0]
    assert set(lines["model"]) == {"kv"}
    ends = {(r["model"], r["part"]): (r["first"], r["last"]) for r in losses.tenths(rows).iter_rows(named=True)}
    assert ends["kv", "integers"] == (None, None)
    assert ends["kv", "words"] == (1.0, 1.0)
    assert ("needle", "integers") not in ends


def test_only_logs_that_tell_integers_from_words_are_read(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    good = log([2.0, 1.0], [1.0, 0.5])
    whole = ("kv", "lora", 0, good)
    old, api, damaged = ("kv", "lora", 1, {"loss": [9.0]}), ("kv", "lora", 2, None), ("kv", "lora", 3, good)
    ids = commit(store, [whole, old, api, damaged, ("kv", "lora", 4, good)])
    Path(store.path(ids[3], losses.FILE)).write_bytes(b"no parquet")
    manifests = {one: manifest for one in ids if (manifest := store.manifest(one)) is not None}
    del manifests[ids[4]]  # as if it were not committed
    planned = json.loads(store.read_document("sweeps/first.json") or b"")["artefacts"]
    names = pl.DataFrame(schema={"mixture": pl.String, "finetune": pl.String, "model": pl.String})
    rows = losses.read(store, planned, manifests, names)
    assert rows.rows() == [("kv", 0, 1, 0.0, 1.5, 2.0, 1.0), ("kv", 0, 2, 1.0, 0.75, 1.0, 0.5)]


def test_models_are_called_as_in_the_predictions(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    made = [("kv", f"lora[learning_rate={rate}]", 0, log([1.0], [1.0])) for rate in (1, 2)]
    ids = commit(store, made)
    manifests = {one: manifest for one in ids if (manifest := store.manifest(one)) is not None}
    planned = json.loads(store.read_document("sweeps/first.json") or b"")["artefacts"]
    known = {"mixture": ["kv"], "finetune": ["lora[learning_rate=1]"], "model": ["kv"]}
    rows = losses.read(store, planned, manifests, pl.DataFrame(known))
    assert losses.models(rows) == ["kv", "kv [learning_rate=2]"]


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


def test_the_log_has_the_columns_that_are_read() -> None:
    assert {"step", *losses._LOGGED} <= set(LOSS_SCHEMA.names)
