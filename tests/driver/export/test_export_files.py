"""The formats of one file: what other trainers read."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq

from kvray.driver.export.files import make
from kvray.generate.job import build
from kvray.models.openai import OPENAI_SYSTEM
from kvray.models.reference import resolve
from kvray.store.schemas import EXAMPLE_SCHEMA
from kvray.tasks.kv.simple import SimpleKV

BASE = resolve("kvray-tiny")
TASK = SimpleKV(rows=30, dictionaries=3)


def test_json_lines_hold_user_and_assistant_and_openai_the_system_message_first(tmp_path: Path) -> None:
    table = build(TASK, BASE, range(30))
    made = make(TASK, BASE, tmp_path / "x.jsonl", "jsonl")
    lines = [json.loads(line) for line in Path(made.path).read_text().splitlines()]
    assert [list(line) for line in lines] == [["messages"]] * 30
    assert [[m["role"] for m in line["messages"]] for line in lines] == [["user", "assistant"]] * 30
    assert [line["messages"][0]["content"] for line in lines] == table["prompt"].to_pylist()
    assert [line["messages"][1]["content"] for line in lines] == table["answer"].to_pylist()
    openai = Path(make(TASK, BASE, tmp_path / "o.jsonl", "openai").path).read_text().splitlines()
    for line, plain in zip(openai, lines, strict=True):
        system, *rest = json.loads(line)["messages"]
        assert system == {"role": "system", "content": OPENAI_SYSTEM}
        assert rest == plain["messages"]


def test_parquet_holds_every_column(tmp_path: Path) -> None:
    made = make(TASK, BASE, tmp_path / "x.parquet", "parquet")
    table = pq.read_table(made.path)
    assert table.schema.equals(EXAMPLE_SCHEMA)
    assert table.equals(build(TASK, BASE, range(30)))
    assert (made.rows, made.bytes) == (30, Path(made.path).stat().st_size)
    assert made.prompt_tokens == sum(table["prompt_tokens"].to_pylist())
