"""docs/results.md: four readers give one answer on a store as it lies there, and every column is on the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from documents import Snippet, snippets
from made_sweeps import commit_sweep

import kvray
from kvray.store.schemas import ANSWERS_SCHEMA, CHAT_SCHEMA, PREFIX_SCHEMA
from kvray.store.store import Store

PAGE = Path(__file__).parents[2] / "docs" / "results.md"
SNIPPETS = [each for each in snippets(PAGE) if each.language == "python"]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("read")
    commit_sweep(
        Store(folder / "store"),
        "quickstart",
        retrieval="mdqa",
        mixtures=("kv-template", "in2"),
        seeds=(0,),
        questions=20,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def run(snippet: Snippet) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(snippet.text, snippet.page, "exec"), names)
    return names


def of(library: str) -> list[Snippet]:
    return [each for each in SNIPPETS if f"import {library}" in each.text]


def test_the_page_has_a_snippet_for_each_reader() -> None:
    assert [len(of(library)) for library in ("kvray", "polars", "duckdb", "pandas")] == [2, 1, 2, 1]
    assert sum(len(of(library)) for library in ("kvray", "polars", "duckdb", "pandas")) == len(SNIPPETS)


@pytest.mark.parametrize("snippet", of("polars") + of("duckdb")[:1] + of("pandas"), ids=["polars", "duckdb", "pandas"])
def test_every_reader_finds_the_accuracies_and_changes_that_kvray_reports(snippet: Snippet, here: Path) -> None:
    found = run(snippet)
    accuracy, change = found["accuracy"], found["change"]
    results = kvray.open("store")
    reported = results.accuracy(by=["model", "position"]).filter(pl.col("position").is_not_null())
    if isinstance(accuracy, pd.DataFrame):
        accuracy, change = pl.from_pandas(accuracy), pl.from_pandas(change.rename("change").reset_index())
    assert accuracy.select("model", "position").rows() == reported.select("model", "position").rows()
    assert accuracy["score"].to_list() == pytest.approx(reported["accuracy"].to_list())
    for model, difference in change.select("model", "change").iter_rows():
        compared = results.compare("base", model).filter(pl.col("evaluation") == "mdqa")
        assert difference == pytest.approx(compared["difference"].item())
    assert sorted(change["model"]) == ["in2", "kv-template"]


@pytest.mark.parametrize("snippet", of("kvray"), ids=["examples", "accuracy"])
def test_kvrays_own_snippets_have_rows(snippet: Snippet, here: Path) -> None:
    names = run(snippet)
    for line in snippet.text.splitlines():
        if line.startswith("results."):
            assert eval(line, names).height > 0


def test_prompts_are_joined_by_the_dataset_that_predictions_name(here: Path) -> None:
    found = run(of("duckdb")[1])["wrong"]
    expected = kvray.open("store").examples("mdqa", "in2", position=20, right=False).sort("example_id")
    assert found.height > 0
    assert found.equals(expected.select(found.columns))


def test_a_predictions_directory_opens_as_it_is(here: Path) -> None:
    folder = next(Path("store/predictions").glob("mdqa-base*/data"))
    rows = kvray.open("store").predictions().filter(pl.col("mixture").is_null(), evaluation="mdqa").collect().height
    opened = {
        "pandas": len(pd.read_parquet(folder)),
        "polars": pl.read_parquet(folder).height,
        "polars lazily": pl.scan_parquet(folder).collect().height,
        "duckdb": duckdb.sql(f"select * from '{folder}/*.parquet'").pl().height,
        "pyarrow.dataset": pads.dataset(folder).count_rows(),
        "pyarrow.parquet": pq.read_table(folder).num_rows,
    }
    assert opened == dict.fromkeys(opened, rows) and rows == 20 * 6
    assert pq.read_schema(next(folder.iterdir())).names == ANSWERS_SCHEMA.names


def test_columns_describe_themselves_in_the_file_and_on_the_page(here: Path) -> None:
    text = PAGE.read_text()
    for field in [*ANSWERS_SCHEMA, *CHAT_SCHEMA, *PREFIX_SCHEMA]:
        assert f"`{field.name}`" in text, field.name
    stored = pq.read_schema(next(Path("store/predictions").glob("mdqa-base*/data/*.parquet")))
    assert b"score" in stored.field("score").metadata[b"description"]
