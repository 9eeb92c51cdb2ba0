"""Data of one's own: what rows may look like, which examples they make, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from kvray.errors import InputError
from kvray.finetune.encode import encode
from kvray.models.chat import conversation, prompts_of
from kvray.models.reference import load_tokenizer, resolve
from kvray.planning.lengths import counting, measure
from kvray.store.schemas import CHAT_SCHEMA
from kvray.sweep.load import load
from kvray.tasks import scorers
from kvray.tasks.messages import Messages

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who wrote it?"},
    {"role": "assistant", "content": "Ann."},
    {"role": "user", "content": "When?"},
    {"role": "assistant", "content": "In 1901."},
]


def words(texts: Sequence[str]) -> NDArray[np.int64]:
    return np.array([len(text.split()) for text in texts], np.int64)


def source(folder: Path, rows: Sequence[Any], name: str = "mine.jsonl") -> str:
    file = folder / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(list(rows)), file)  # noqa: TID251  # a user's file
    else:
        file.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(file)


def table(task: Messages) -> pa.Table:
    context = task.context(words)
    return task.build(0, task.count(context), context)


def pairs(number: int) -> list[dict[str, str]]:
    return [{"prompt": f"Number {i}?", "answer": f"It is {i}."} for i in range(number)]


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.parquet"])
def test_a_chat_is_asked_with_all_before_its_last_answer(tmp_path: Path, name: str) -> None:
    made = table(Messages(source=source(tmp_path, [{"messages": CHAT}], name)))
    assert made.schema.equals(CHAT_SCHEMA)
    row = made.to_pylist()[0]
    assert (row["prompt"], row["answer"], row["references"]) == ("When?", "In 1901.", ["In 1901."])
    assert prompts_of(made) == [CHAT[:-1]] and row["prompt_tokens"] == 7
    assert conversation(CHAT[:-1], "Another.") == CHAT[:-1], "a chat's own system message stands"


def test_all_turns_make_an_example_each(tmp_path: Path) -> None:
    made = table(Messages(source=source(tmp_path, [{"messages": CHAT}]), turns="all"))
    assert prompts_of(made) == [CHAT[:2], CHAT[:4]] and made["answer"].to_pylist() == ["Ann.", "In 1901."]
    assert len(set(made["example_id"].to_pylist())) == 2


def test_pairs_by_whatever_names_with_accepted_answers(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Say A.", "output": "A", "ok": ["A", "a!"]},
        {"instruction": "B?", "output": "B", "ok": "b"},
    ]
    made = table(Messages(source=source(tmp_path, rows), prompt="instruction", answer="output", references="ok"))
    assert made["prompt"].to_pylist() == ["Say A.", "B?"] == prompts_of(made)
    assert made["references"].to_pylist() == [["A", "a!"], ["b"]] and made["history"].null_count == 2


def test_rows_are_a_draw_and_splits_share_no_prompt(tmp_path: Path) -> None:
    file = source(tmp_path, [*pairs(40), {"prompt": "Number 3?", "answer": "Three."}])
    train, test = (Messages(source=file, split=split, test_share=0.25) for split in ("train", "test"))
    prompts = [set(table(task)["prompt"].to_pylist()) for task in (train, test)]
    assert len(prompts[0] | prompts[1]) == 40 and len(prompts[1]) == 10 and not prompts[0] & prompts[1]
    few, more = (table(Messages(source=file, rows=rows, seed=1))["example_id"].to_pylist() for rows in (5, 9))
    assert more[:5] == few != table(Messages(source=file, rows=5, seed=2))["example_id"].to_pylist()
    with pytest.raises(InputError, match="found 99; expected at most 41"):
        table(Messages(source=file, rows=99))


def test_training_on_what_is_asked_is_refused(tmp_path: Path) -> None:
    file = source(tmp_path, pairs(20))
    copied = source(tmp_path, pairs(3), "copy.jsonl")
    assert Messages(source=file, split="train").overlaps(Messages(source=file, split="test")) is None
    assert "20 of the same prompts" in str(Messages(source=file).overlaps(Messages(source=file, seed=1)))
    assert "3 of the same prompts" in str(Messages(source=file).overlaps(Messages(source=copied)))
    (tmp_path / "s.yaml").write_text(
        f"name: s\nbase_model: kvray-tiny\ndatasets: {{a: {{task: messages, source: {file}}}}}\n"
        f"evaluate: {{a: {{task: messages, source: {file}, split: test}}}}\n"
    )
    with pytest.raises(InputError, match=r"datasets\.a: found training data that evaluate\.a asks about \(2 of"):
        load(str(tmp_path / "s.yaml"))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "x"}, "row 2: found the fields text; expected messages, or prompt and answer"),
        ({"messages": []}, "row 2: messages: found no message"),
        ({"messages": "hello"}, "row 2: messages: found 'hello'; expected a list of messages"),
        ({"messages": CHAT[:2]}, "row 2: messages: found a last message of the user; expected the assistant's answer"),
        ({"messages": CHAT[2:]}, "row 2: messages: message 1: found an answer; expected a message of the user before"),
        (
            {"messages": [*CHAT[:2], {"role": "bot", "content": "x"}]},
            "message 3: found the role 'bot'; expected ",
        ),
        ({"messages": [*CHAT, CHAT[0]]}, "message 6: found the role system; expected it in the first alone"),
        ({"prompt": "x", "answer": " "}, "row 2: answer: found ' '; expected text that is not blank"),
        (
            {"messages": [CHAT[1], {"role": "assistant", "content": None}]},
            "message 2: content: found None; expected",
        ),
        ("{not json", "mine.jsonl:2: not JSON"),
    ],
)
def test_rows_that_are_no_chat_are_named(tmp_path: Path, row: Any, expected: str) -> None:
    with pytest.raises(InputError) as raised:
        table(Messages(source=source(tmp_path, [*pairs(1), row])))
    assert expected in str(raised.value)


def test_a_file_that_is_not_utf_8_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_bytes(b'{"prompt": "a", "answer": "b"}\n{"prompt": "\xff", "answer": "b"}\n')
    with pytest.raises(InputError, match=r"mine\.jsonl:2: not UTF-8"):
        table(Messages(source=str(tmp_path / "mine.jsonl")))


def test_what_is_counted_for_the_plan_is_what_is_trained_on(tmp_path: Path) -> None:
    base = resolve("kvray-tiny")
    counted = counting(base)
    assert counted is not None
    task = Messages(source=source(tmp_path, [*pairs(20), {"messages": CHAT}, *pairs(2), {"messages": CHAT[1:]}]))
    context = task.context(counted.texts)
    made = task.build(0, 24, context)
    encoded = encode(load_tokenizer(base), prompts_of(made), made["answer"].to_pylist())
    lengths = measure(task, context, 24, counted)
    assert lengths.trained.tolist() == encoded.lengths.tolist()
    assert lengths.asked.tolist() == (encoded.lengths - encoded.answers).tolist()
    whole = load_tokenizer(base).decode(encoded.ids[20])
    assert all(message["content"] in whole for message in CHAT)


def test_scorers() -> None:
    said = "The answer: Ann, of course!"
    assert [score(said, ["ann"]) for score in (scorers.exact, scorers.contains)] == [0.0, 1.0]
    assert scorers.exact("The Ann.", ["nobody", "ann"]) == 1.0
    assert scorers.f1(said, ["ann"]) == pytest.approx(2 / 5) and scorers.f1("x", ["y", "x"]) == 1.0
    assert scorers.contains("anything", ["?"]) == 0.0 == scorers.f1("", ["x"])
    task = Messages(source="x.jsonl", scorer="contains")
    assert task.score(said, ["ann"]) == 1.0
