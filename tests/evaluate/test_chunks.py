"""Chunks: scored, found again, committed once all are there. No engine."""

from __future__ import annotations

from pathlib import Path

import evaluate_store as made
import pytest

from kvray.evaluate import chunks, prompts
from kvray.evaluate.chunks import Labels, Reply
from kvray.store.schemas import PREDICTIONS_SCHEMA
from kvray.store.store import Store
from kvray.tasks.qa.recall import Recall

ROWS = 300
BASE = Labels("sweep", "facts", "recall", "mini", None, None, None, None)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def replies(count: int) -> list[Reply]:
    """Every third answer is right, the first prompt is too long."""
    said = [Reply(20, 16, 3, "it is seven" if i % 3 == 0 else "it is eight", "stop") for i in range(count)]
    return [chunks.too_long(900), *said[1:]]


def write(store: Store, artefact_id: str, examples, index: int, seconds: float = 1.5) -> None:
    span = chunks.span(index, examples.num_rows)
    part = examples.slice(span.start, len(span))
    facts = {"seconds": seconds, "engine": {"vllm": "x"}}
    table = chunks.build(BASE, Recall(), part, replies(len(span)), facts)
    store.write_table(artefact_id, chunks.chunk_name(index), table)


def test_chunks_cover_every_row_once() -> None:
    for rows in (1, 255, 256, 257, 1000):
        covered = [row for index in range(chunks.chunk_count(rows)) for row in chunks.span(index, rows)]
        assert covered == list(range(rows))


def test_a_chunk_is_scored_and_a_too_long_row_has_neither_answer_nor_score() -> None:
    examples = made.example_table(6)
    table = chunks.build(BASE, Recall(), examples, replies(6), {})
    assert table.schema.equals(PREDICTIONS_SCHEMA)
    rows = table.to_pylist()
    assert [row["score"] for row in rows] == [None, 0.0, 0.0, 1.0, 0.0, 0.0]
    assert rows[0]["answer"] is None and rows[0]["finish_reason"] == "too_long" and rows[0]["prompt_tokens"] == 900
    assert rows[3]["references"] == ["7", "seven"] and rows[3]["position"] == 2 and rows[3]["adapter"] is None


def test_only_a_whole_chunk_with_its_own_examples_is_kept(store: Store) -> None:
    examples = prompts.ask_order(made.example_table(ROWS))
    cell = made.predictions(store, made.dataset(store, examples), None)
    assert list(chunks.missing(store, cell, examples)) == [0, 1]
    write(store, cell.id, examples, 0)
    assert list(chunks.missing(store, cell, examples)) == [1]
    # Torn in half, as no store of ours leaves it, but a copy might.
    file = Path(store.path(cell.id, chunks.chunk_name(0)))
    file.write_bytes(file.read_bytes()[:500])
    assert list(chunks.missing(store, cell, examples)) == [0, 1]
    # Whole, but of other examples.
    other = made.example_table(2 * ROWS).slice(ROWS)
    write(store, cell.id, other, 0)
    assert list(chunks.missing(store, cell, examples)) == [0, 1]


def test_an_artefact_is_committed_when_its_last_chunk_is_there_and_only_once(store: Store) -> None:
    examples = prompts.ask_order(made.example_table(ROWS))
    cell = made.predictions(store, made.dataset(store, examples), None)
    write(store, cell.id, examples, 1)
    assert not chunks.commit_if_whole(store, cell, examples)
    assert store.manifest(cell.id) is None
    write(store, cell.id, examples, 0)
    assert chunks.commit_if_whole(store, cell, examples)
    first = store.manifest(cell.id)
    assert chunks.commit_if_whole(store, cell, examples)
    assert store.manifest(cell.id) == first
    table = store.read_table(cell.id)
    assert table["example_id"].to_pylist() == examples["example_id"].to_pylist()
    assert store.problems(cell.id, verify=True) == []


def test_the_facts_of_an_artefact_are_the_sums_of_its_chunks(store: Store) -> None:
    examples = prompts.ask_order(made.example_table(ROWS))
    cell = made.predictions(store, made.dataset(store, examples), None)
    write(store, cell.id, examples, 0, seconds=2.0)
    write(store, cell.id, examples, 1, seconds=0.5)
    chunks.commit_if_whole(store, cell, examples)
    manifest = store.manifest(cell.id)
    assert manifest is not None
    facts = manifest.measurements
    assert (facts["rows"], facts["too_long"], facts["seconds"]) == (300, 2, 2.5)
    assert facts["prompt_tokens"] == 298 * 20 and facts["cached_tokens"] == 298 * 16
    right = sum(i % 3 == 0 for i in range(1, 256)) + sum(i % 3 == 0 for i in range(1, 44))
    assert facts["accuracy"] == pytest.approx(right / 298)
    assert facts["engines"] == [{"vllm": "x"}]
