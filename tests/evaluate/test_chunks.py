"""Chunks: scored, found again, committed once all are there. No engine."""

from __future__ import annotations

from pathlib import Path

import evaluate_store as made
import pyarrow as pa
import pytest

from kvray.evaluate import chunks
from kvray.evaluate.cells import Cells
from kvray.evaluate.engines.base import Reply, too_long
from kvray.evaluate.questions import DatasetQuestions, ask_order
from kvray.models.reference import resolve
from kvray.planning.artefacts import Artefact
from kvray.store.schemas import ANSWERS_SCHEMA
from kvray.store.store import Store
from kvray.tasks.qa.recall import Recall

ROWS = 300
BASE = {"evaluation": "facts", "task": "recall", "base_model": "mini"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def replies(count: int) -> list[Reply]:
    """Every third answer is right, the first prompt is too long."""
    said = [Reply(20, 16, 3, "it is seven" if i % 3 == 0 else "it is eight", "stop") for i in range(count)]
    return [too_long(900), *said[1:]]


def table_of(asked: DatasetQuestions, rows: range, seconds: float = 1.5) -> pa.Table:
    info = {"seconds": seconds, "engine": {"vllm": "x"}}
    return asked.table(rows, [[reply] for reply in replies(len(rows))], BASE, info)


def write(store: Store, artefact_id: str, asked: DatasetQuestions, index: int, seconds: float = 1.5) -> None:
    table = table_of(asked, chunks.span(index, len(asked)), seconds)
    store.write(artefact_id, chunks.chunk_name(index), table)


def commit(store: Store, cell: Artefact, asked: DatasetQuestions) -> None:
    """Commit a cell of the chunks in the store."""
    every = range(chunks.chunk_count(len(asked)))
    tables = [chunks.read(store, cell.id, index, asked) for index in every]
    chunks.commit(store, cell, asked, tables, [store.entry(cell.id, chunks.chunk_name(index)) for index in every])


def questions(store: Store, rows: int = ROWS) -> tuple[Artefact, DatasetQuestions]:
    examples = made.example_table(rows)
    return made.predictions(store, made.dataset(store, examples), None), DatasetQuestions(examples, Recall())


def test_chunks_cover_every_row_once() -> None:
    for rows in (1, 255, 256, 257, 1000):
        covered = [row for index in range(chunks.chunk_count(rows)) for row in chunks.span(index, rows)]
        assert covered == list(range(rows))


def test_a_chunk_is_scored_and_a_too_long_row_has_neither_answer_nor_score() -> None:
    table = table_of(DatasetQuestions(made.example_table(6), Recall()), range(6))
    assert table.schema.equals(ANSWERS_SCHEMA)
    rows = table.to_pylist()
    assert [row["score"] for row in rows] == [None, 0.0, 0.0, 1.0, 0.0, 0.0]
    assert rows[0]["answer"] is None and rows[0]["finish_reason"] == "too_long" and rows[0]["prompt_tokens"] == 900
    assert rows[3]["references"] == ["7", "seven"] and rows[3]["position"] == 2 and rows[3]["adapter"] is None


def test_predictions_declare_what_they_measure_and_what_their_units_are_called() -> None:
    asked = DatasetQuestions(made.example_table(2), Recall())
    measured = asked.summary([table_of(asked, range(2))])
    assert (measured["measures"], measured["unit"], measured["rows"]) == ("knowledge", Recall.UNIT, 2)


def test_only_a_whole_chunk_with_its_own_examples_is_read(store: Store) -> None:
    cell, asked = questions(store)
    assert chunks.missing(store, cell.id, asked) == [0, 1]
    write(store, cell.id, asked, 0)
    assert chunks.missing(store, cell.id, asked) == [1] and chunks.read(store, cell.id, 0, asked) is not None
    # Torn in half, as no store of ours leaves it, but a copy might.
    file = Path(store.path(cell.id, chunks.chunk_name(0)))
    file.write_bytes(file.read_bytes()[:500])
    assert chunks.read(store, cell.id, 0, asked) is None
    # Whole, but of other examples.
    other = DatasetQuestions(made.example_table(2 * ROWS).slice(ROWS), Recall())
    write(store, cell.id, other, 0)
    assert chunks.read(store, cell.id, 0, asked) is None


def test_an_artefact_is_committed_once(store: Store) -> None:
    cell, asked = questions(store)
    write(store, cell.id, asked, 1)
    write(store, cell.id, asked, 0)
    commit(store, cell, asked)
    first = store.manifest(cell.id)
    commit(store, cell, asked)
    assert store.manifest(cell.id) == first
    table = store.read_table(cell.id)
    assert table["example_id"].to_pylist() == ask_order(made.example_table(ROWS))["example_id"].to_pylist()
    assert store.problems(cell.id, verify=True) == []


def test_the_facts_of_an_artefact_are_the_sums_of_its_chunks(store: Store) -> None:
    cell, asked = questions(store)
    write(store, cell.id, asked, 0, seconds=2.0)
    write(store, cell.id, asked, 1, seconds=0.5)
    commit(store, cell, asked)
    manifest = store.manifest(cell.id)
    assert manifest is not None
    facts = manifest.measurements
    assert (facts["rows"], facts["too_long"], facts["seconds"]) == (300, 2, 2.5)
    assert facts["prompt_tokens"] == 298 * 20 and facts["cached_tokens"] == 298 * 16
    right = sum(i % 3 == 0 for i in range(1, 256)) + sum(i % 3 == 0 for i in range(1, 44))
    assert facts["accuracy"] == pytest.approx(right / 298)
    assert facts["engines"] == [{"vllm": "x"}]


def test_a_chunk_of_an_older_version_reads_as_null_where_it_lacks_a_column(store: Store) -> None:
    cell, asked = questions(store)
    old = table_of(asked, range(256))
    store.write(cell.id, chunks.chunk_name(0), old.drop_columns(["subtask", "cached_tokens"]))
    read = chunks.read(store, cell.id, 0, asked)
    assert read is not None and read.schema.names == ANSWERS_SCHEMA.names
    assert read["subtask"].null_count == read["cached_tokens"].null_count == 256
    write(store, cell.id, asked, 1)
    commit(store, cell, asked)
    table = store.read_table(cell.id)
    assert table.num_rows == ROWS and sorted(table.schema.names) == sorted(ANSWERS_SCHEMA.names)
    assert table["cached_tokens"].null_count == 256 + 1
    # A column that every row must have cannot be made up: the chunk is answered again.
    store.discard(cell.id)
    store.write(cell.id, chunks.chunk_name(0), old.drop_columns(["finish_reason"]))
    assert chunks.read(store, cell.id, 0, asked) is None


def test_chunks_that_an_earlier_kvray_left_unfinished_are_not_mixed_with_new_ones(store: Store) -> None:
    cell, asked = questions(store)
    # As they lay before there was a folder for them: beside where the manifest is to be.
    wrong = table_of(asked, range(256)).append_column("sweep", [["sweep"] * 256])
    store.write(cell.id, "chunk-00000.parquet", wrong)
    assert chunks.missing(store, cell.id, asked) == [0, 1]
    write(store, cell.id, asked, 0)
    write(store, cell.id, asked, 1)
    commit(store, cell, asked)
    assert store.state(cell.id, verify=True) == "committed"
    table = store.read_table(cell.id)
    assert table.num_rows == ROWS and table.schema.names == ANSWERS_SCHEMA.names


def test_rows_carry_the_labels_of_the_sweep_that_asks_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    cell = made.predictions(store, made.dataset(store, made.example_table(3)), None)
    assert Cells(store, resolve("kvray-tiny"), {cell.id: cell}, False, None).labels(cell) == {
        "evaluation": "facts",
        "task": "recall",
        "base_model": "kvray-tiny",
        "mixture": None,
        "finetune": None,
        "seed": None,
        "adapter": None,
        "dataset": cell.needs[0],
    }
