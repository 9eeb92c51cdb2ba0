"""The formats of one file: what other trainers read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from kvray.driver.export.files import format_of, make
from kvray.driver.export.formats import Layout
from kvray.errors import InputError
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


@pytest.mark.parametrize("columns", ["examples", "messages", "prompt-completion"])
def test_the_same_columns_come_as_parquet_and_as_json_lines(columns: Any, tmp_path: Path) -> None:
    parquet = make(TASK, BASE, tmp_path / "x.parquet", Layout(columns, "parquet"))
    jsonl = make(TASK, BASE, tmp_path / "x.jsonl", Layout(columns, "jsonl"))
    rows = [json.loads(line) for line in Path(jsonl.path).read_text().splitlines()]
    assert rows == pq.read_table(parquet.path).to_pylist() and len(rows) == 30
    names = {"examples": EXAMPLE_SCHEMA.names, "messages": ["messages"], "prompt-completion": ["prompt", "completion"]}
    assert list(rows[0]) == names[columns]


@pytest.mark.parametrize(
    ("out", "given", "expected"),
    [
        ("x.parquet", None, Layout("examples", "parquet")),
        ("x.jsonl", None, Layout("messages", "jsonl")),
        ("x.parquet", "messages", Layout("messages", "parquet")),
        ("x", "prompt-completion", Layout("prompt-completion", "jsonl")),
        ("x", "examples", Layout("examples", "parquet")),
        ("x.jsonl", "examples", Layout("examples", "jsonl")),
        ("x.jsonl", "parquet", Layout("examples", "parquet")),
    ],
)
def test_the_name_says_how_it_is_written_and_the_format_what(out: str, given: str | None, expected: Layout) -> None:
    assert format_of(out, given) == expected


def test_what_the_api_would_not_take_is_refused() -> None:
    with pytest.raises(InputError, match=r"ends in \.parquet; expected \.jsonl"):
        format_of("x.parquet", "openai")
