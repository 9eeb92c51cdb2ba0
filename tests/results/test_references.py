"""Published numbers: the file holds what it says, and is matched with a sweep by name, never by guess."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from kvray.results import references
from kvray.sweep.load import load
from kvray.tasks.ruler.ruler import Ruler

PAPER = "Xiong et al. 2024 (arXiv 2406.19292)"
V01 = "mistralai/Mistral-7B-Instruct-v0.1"
V02 = "mistralai/Mistral-7B-Instruct-v0.2"


def published(**wanted: object) -> pl.DataFrame:
    return references.read().filter(pl.all_horizontal(pl.col(name) == value for name, value in wanted.items()))


def test_the_file_keeps_its_schema_and_every_set_has_rows() -> None:
    rows = references.read()
    assert rows.columns == references.REFERENCE_SCHEMA.names
    assert {"artificial-needles", "lost-in-the-middle", "flenqa", "ruler"} <= set(references.sets())
    for field in references.REFERENCE_SCHEMA:
        assert len(field.metadata[b"description"]) > 10


def test_printed_changes_agree_with_printed_accuracies_to_their_last_digit() -> None:
    rows = published(set="artificial-needles", base_model=V01)
    wide = rows.pivot("metric", index=["mixture", "evaluation"], values="value")
    base = dict(wide.filter(pl.col("mixture") == "base").select("evaluation", "accuracy").iter_rows())
    printed = wide.filter(pl.col("change").is_not_null())
    assert printed.height == 4 * 5
    for row in printed.iter_rows(named=True):
        assert row["change"] == pytest.approx(row["accuracy"] - base[row["evaluation"]], abs=0.0101), row


def test_what_nobody_has_read_is_left_out_and_a_contradiction_is_told() -> None:
    # No number without the template was read for Mistral, so none is shown.
    assert published(mixture="kv", base_model=V01).height == 0
    # The abstract contradicts the paper's own table, and names no baseline: told beside the table's numbers.
    for mixture, loss in (("in2", -2.19), ("needle", -6.33)):
        table = published(set="artificial-needles", mixture=mixture, evaluation="triviaqa", metric="change")
        assert table["value"].to_list() == [loss]
        assert "abstract has 2.33 to 6.19 points and names none" in table["note"][0]


def test_known_curves_are_whole() -> None:
    liu = published(set="lost-in-the-middle").sort("position")
    assert liu["position"].to_list() == [1, 5, 10, 15, 20]
    assert liu["value"].to_list() == [75.8, 57.2, 53.8, 55.4, 63.2]
    assert published(set="ruler", mixture="in2")["length"].to_list() == [4096 * 2**i for i in range(6)]


def test_a_set_gives_the_rows_of_the_sweeps_own_model_where_it_has_them() -> None:
    def chosen(base_model: str, evaluation: str) -> set[str]:
        document = {"base_model": base_model, "sweep": {"reference": ["artificial-needles"]}}
        rows, unknown = references.of_sweep(document)
        assert unknown == []
        return set(rows.filter(pl.col("evaluation") == evaluation)["base_model"])

    assert chosen(V01, "mmlu") == {V01}
    assert chosen("openai:gpt-3.5-turbo-1106", "mmlu") == {"gpt-3.5-turbo-1106"}
    assert chosen("kvray-tiny", "mmlu") == {V01, "gpt-3.5-turbo-1106"}
    assert chosen(V01, "mdqa-20") == {"gpt-3.5-turbo-1106"}  # there is no other


def test_without_reference_there_is_nothing_and_unknown_sets_are_told() -> None:
    for sweep in ({}, {"reference": None}, {"reference": []}):
        rows, unknown = references.of_sweep({"base_model": "kvray-tiny", "sweep": sweep})
        assert (rows.height, unknown) == (0, [])
    rows, unknown = references.of_sweep({"sweep": {"reference": ["ruler", "rular"]}})
    assert unknown == ["rular"]
    assert set(rows["set"]) == {"ruler"}
    assert not rows["same_base"].any()


def test_a_change_that_was_not_printed_is_the_difference_of_the_accuracies() -> None:
    rows = references.changes(references.read().with_columns(pl.lit(False).alias("same_base")))
    of = (pl.col("base_model") == "gpt-3.5-turbo-1106") & (pl.col("evaluation") == "gsm8k")
    changes = dict(rows.filter(of).select("mixture", "change").iter_rows())
    assert changes["base"] is None
    assert changes["kv-template"] == pytest.approx(71.65 - 72.33)
    assert changes["kv"] == 2.73
    alone = rows.filter((pl.col("evaluation") == "mdqa-20") & (pl.col("position") == 10)).row(0, named=True)
    assert (alone["accuracy"], alone["change"]) == (None, 10.5)


def of_ruler(base_model: str, asked: pl.DataFrame) -> list[int]:
    """Return the lengths at which RULER's published means stand beside predictions of the base model."""
    rows, _ = references.of_sweep({"base_model": base_model, "sweep": {"reference": ["ruler"]}})
    return references.beside(rows, asked, [])["length"].to_list()


def test_a_mean_of_subtasks_stands_beside_the_same_model_that_was_asked_all_of_them() -> None:
    tasks, lengths = Ruler().tasks, (4096, 8192, 16384)
    asked = pl.DataFrame(
        [
            {"evaluation": "ruler", "task": "ruler", "model": "base", "mixture": None, "position": None}
            | {"length": length, "subtask": subtask, "condition": None, "score": 1.0}
            for length, subtask in itertools.product(lengths, tasks)
        ],
        infer_schema_length=None,
        schema_overrides={"mixture": pl.String, "position": pl.Int32, "condition": pl.String},
    )
    assert of_ruler(V02, asked) == list(lengths)
    assert of_ruler(V01, asked) == of_ruler("kvray-tiny", asked) == [], "of another model"
    one = (pl.col("length") == 8192) & (pl.col("subtask") == "qa_2")
    assert of_ruler(V02, asked.filter(~one)) == [4096, 16384], "one task is missing"
    unasked = asked.with_columns(score=pl.when(one).then(None).otherwise("score"))
    assert of_ruler(V02, unasked) == [4096, 16384], "no answer to one task"
    tiny = asked.with_columns(condition=pl.when(one).then(pl.lit("text=tiny")))
    assert of_ruler(V02, tiny) == [4096, 16384], "one task is of another text"
    assert of_ruler(V02, asked.filter(pl.col("subtask").str.starts_with("niah"))) == []


def test_a_number_of_one_subtask_stands_beside_that_subtask_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    mean = references.read().filter((pl.col("set") == "ruler") & (pl.col("length") == 4096))
    monkeypatch.setattr(references, "read", lambda: mean.with_columns(subtask=pl.lit("vt")))
    row = {"evaluation": "ruler", "task": "ruler", "model": "base", "mixture": None, "position": None, "length": 4096}
    for subtask, beside in (("vt", [4096]), ("cwe", [])):
        asked = pl.DataFrame([{**row, "subtask": subtask, "condition": None, "score": 0.5}])
        asked = asked.with_columns(pl.col("mixture", "condition").cast(pl.String), pl.col("position").cast(pl.Int32))
        assert of_ruler(V02, asked) == beside


METRICS = ("accuracy", "change")
CERTAINTIES = ("primary", "secondary", "derived")


def problems(text: str) -> list[str]:
    """What a reference file breaks of its schema, by line."""
    lines = list(csv.reader(text.splitlines()))
    if lines[0] != references.REFERENCE_SCHEMA.names:
        return [f"reference.csv:1: found {lines[0]}; expected the columns {references.REFERENCE_SCHEMA.names}"]
    found: list[str] = []
    seen: dict[tuple[object, ...], int] = {}
    for number, cells in enumerate(lines[1:], start=2):
        row, wrong = parse(cells)
        if not wrong and (first := seen.setdefault(tuple(row[name] for name in references.CELL), number)) != number:
            wrong.append(f"found the same cell as line {first}; expected each once in a set")
        found += [f"reference.csv:{number}: {problem}" for problem in wrong]
    return found


def parse(cells: Sequence[str]) -> tuple[dict[str, object], list[str]]:
    if len(cells) != len(references.REFERENCE_SCHEMA.names):
        return {}, [f"found {len(cells)} cells; expected {len(references.REFERENCE_SCHEMA.names)}"]
    row: dict[str, object] = {}
    wrong = []
    for field, cell in zip(references.REFERENCE_SCHEMA, cells, strict=True):
        if cell == "" and field.name != "note":
            row[field.name] = None
            if not field.nullable:
                wrong.append(f"{field.name}: found nothing; expected {field.metadata[b'description'].decode()}")
        elif pa.types.is_string(field.type):
            row[field.name] = cell
        else:
            try:
                row[field.name] = float(cell) if pa.types.is_floating(field.type) else int(cell)
            except ValueError:
                row[field.name] = None
                wrong.append(f"{field.name}: found {cell!r}; expected a number")
    for name, known in (("metric", METRICS), ("certainty", CERTAINTIES)):
        if row[name] is not None and row[name] not in known:
            wrong.append(f"{name}: found {row[name]!r}; expected {', '.join(known)}")
    value, low = row["value"], -100.0 if row["metric"] == "change" else 0.0
    if isinstance(value, float) and not (math.isfinite(value) and low <= value <= 100.0):
        wrong.append(f"value: found {value:g}; expected {low:g} to 100")
    return row, wrong


def test_the_file_breaks_nothing() -> None:
    text = (Path(references.__file__).parent / "reference.csv").read_text(encoding="utf-8")
    assert problems(text) == []
    assert references.read().height == len(text.splitlines()) - 1
    assert references.read()["note"].null_count() == 0


def test_every_broken_line_is_named() -> None:
    header = ",".join(references.REFERENCE_SCHEMA.names)
    good = "s,w,m,base,mmlu,,,,accuracy,50,,Table 1,primary,"
    lines = [
        header,
        good,
        "s,w,m,base,mmlu,,,,accuracy,51,,Table 1,primary,the same cell again",
        "s,w,m,base,arc,,,,accuracy,151,,Table 1,primary,",
        "s,w,m,base,piqa,,one,,accurate,5,,Table 1,sure,",
        "s,w,m,base,boolq",
        "s,,m,base,copa,,,,change,-3,,Table 1,primary,",
    ]
    said = problems("\n".join(lines))
    assert [problem.split(": ")[0] for problem in said] == [
        "reference.csv:3",
        "reference.csv:4",
        "reference.csv:5",
        "reference.csv:5",
        "reference.csv:5",
        "reference.csv:6",
        "reference.csv:7",
    ]
    assert "line 2" in said[0]
    assert problems(f"{header}\n{good}\n") == []
    assert "columns" in problems("a,b\n")[0]


def test_the_file_travels_with_the_package() -> None:
    root = Path(references.__file__).parents[2]
    if not (root / "pyproject.toml").is_file():
        pytest.skip("installed without its source")
    assert '"kvray.results" = ["*.csv"]' in (root / "pyproject.toml").read_text()


SWEEPS = Path(__file__).parents[2] / "sweeps"
OUT_OF_REACH: dict[str, tuple[pl.Expr, str]] = {
    "log-probabilities": (
        (pl.col("base_model") == "gpt-3.5-turbo-1106") & (pl.col("evaluation") == "mmlu"),
        "MMLU wants log-probabilities, which the API of this model does not give; a sweep of one's own may have them",
    ),
    "past the sweep's lengths": (
        (pl.col("set") == "ruler") & (pl.col("length") > 24_576),
        "sweeps/paper/long-24k.yaml asks up to the length that the paper trains at",
    ),
    "FILM-7B": (
        (pl.col("set") == "ruler") & (pl.col("mixture") == "in2"),
        "sweeps/paper/long-24k.yaml finetunes on dictionaries alone, as the paper does at that length",
    ),
}
"""Published numbers that no sweep of ours sets beside its own, each with the reason."""


def reached(path: Path, rows: pl.DataFrame) -> pl.Series:
    """Mark the rows of the file that stand beside a number of a sweep: set, evaluation, mixture and place are its."""
    sweep = load(str(path))
    document = {"base_model": sweep.base_model, "sweep": {"reference": sweep.reference}}
    chosen = references.of_sweep(document)[0].drop("same_base")
    places = {"subtask": "tasks", "position": "positions", "length": "lengths"}
    found = []
    for row in rows.iter_rows(named=True):
        task = sweep.evaluate.get(row["evaluation"])
        placed = all(
            row[place] is None or row[place] in getattr(task, knob, ()) for place, knob in places.items() if task
        )
        known = row["mixture"] in {"base", *sweep.mixtures}
        found.append(bool(task) and placed and known and row in chosen.to_dicts())
    return pl.Series(found, dtype=pl.Boolean)


def test_every_published_number_reaches_a_table_of_a_sweep_or_says_why_not() -> None:
    rows = references.read()
    marked = [reached(path, rows) for path in sorted(SWEEPS.rglob("*.yaml")) if "reference:" in path.read_text()]
    anywhere = rows.with_columns(reached=pl.any_horizontal(*marked) if len(marked) > 1 else marked[0])
    lost = anywhere.filter(~pl.col("reached"))
    for name, (which, _) in OUT_OF_REACH.items():
        assert not anywhere.filter(which)["reached"].any(), f"{name}: a sweep asks these now"
        assert anywhere.filter(which).height, f"{name}: the file has no such number any more"
        lost = lost.filter(~which)
    columns = ["set", "base_model", "mixture", "evaluation", "subtask", "position", "length"]
    assert lost.select(columns).rows() == []
