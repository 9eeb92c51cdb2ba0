"""Datasets that a model writes a part of: what it wrote reaches the task, and only from a store."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from kvray.cli import samples
from kvray.driver.export.files import make
from kvray.errors import InputError
from kvray.generate.job import Written, build, context_of
from kvray.models.reference import resolve
from kvray.models.tokenizer import token_counter
from kvray.store.fingerprint import fingerprint
from kvray.store.schemas import WRITING_SCHEMA
from kvray.store.store import Store, artefact_id
from kvray.tasks.in2.in2 import In2

BASE = resolve("kvray-tiny")


@pytest.fixture
def task(tmp_path: Path) -> In2:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(" ".join(f"The mill of village {n} ground {n * 3} sacks of flour." for n in range(300)))
    shape = {"segment_tokens": 60, "length_min": 400, "length_max": 600}
    return In2(source=str(corpus), rows=12, question_writer="some/model", **shape)


def commit(store: Store, texts: list[str], name: str) -> str:
    """Commit a writing in two chunks."""
    row = {"prompt": "", "prompt_tokens": 1, "output_tokens": 1}
    rows = [{**row, "index": n, "text": text, "finish_reason": "stop"} for n, text in enumerate(texts)]
    rows[0]["finish_reason"] = "length"
    digest = fingerprint({"name": name})
    made = artefact_id("writing", name, digest)
    tables = {"data/chunk-00000.parquet": rows[:4], "data/chunk-00001.parquet": rows[4:]}
    entries = [store.write(made, file, pa.Table.from_pylist(of, WRITING_SCHEMA)) for file, of in tables.items()]
    store.commit(id=made, kind="writing", name=name, fingerprint=digest, recipe={"name": name}, needs=[], files=entries)
    return made


def test_the_replies_reach_the_task_and_are_read_once(task: In2, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    prompts = task.to_write(token_counter(BASE))
    texts = [f"Question: Which one was {n}?\nAnswer: Number {n}." for n in range(len(prompts))]
    written = Written(store, commit(store, texts, "one"))
    assert task.count(context_of(task, BASE, written)) == 12
    made = build(task, BASE, range(12), written)
    answers = made["answer"].to_pylist()
    # The first reply was cut off, so it is none.
    assert "Number 1." in answers and "Number 0." not in answers
    assert context_of(task, BASE, written) is context_of(task, BASE, Written(store, written.artefact_id))
    other = Written(store, commit(store, [text.replace("Number", "No.") for text in texts], "other"))
    assert build(task, BASE, range(12), other)["answer"].to_pylist() == [a.replace("Number", "No.") for a in answers]


def test_without_a_store_a_writer_is_refused_with_what_to_do(task: In2, tmp_path: Path) -> None:
    refused = "in2: some/model writes a part of these examples first, .*type kvray run SWEEP"
    with pytest.raises(InputError, match=refused):
        build(task, BASE, range(1))
    with pytest.raises(InputError, match=refused):
        next(samples.rows(task, BASE, 1))
    with pytest.raises(InputError, match=refused):
        make(task, BASE, tmp_path / "out.jsonl", "jsonl")
    assert not (tmp_path / "out.jsonl").exists()
