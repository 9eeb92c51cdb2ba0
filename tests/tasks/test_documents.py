"""MDQA: prompts and scores to the letter, and distractors that stay put."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from kvray.errors import InputError, InvalidValueError
from kvray.store.schemas import EXAMPLE_SCHEMA
from kvray.tasks.qa.mdqa import Mdqa
from kvray.tasks.qa.questions import best_subspan_em, normalise
from kvray.tasks.qa.recall import Recall

REAL = Path(__file__).parents[3] / "shared" / "data" / "nq-open-oracle.jsonl.gz"


def count_words(texts: Sequence[str]) -> np.ndarray:
    return np.array([len(text.split()) for text in texts], dtype=np.int64)


def rows(task: Mdqa | Recall, start: int = 0, stop: int | None = None) -> list[dict]:
    context = task.context(count_words)
    return task.build(start, task.count(context) if stop is None else stop, context).to_pylist()


def write_questions(path: Path, count: int = 12) -> str:
    lines = [
        {
            "question": f"who wrote book {n}",
            "answers": [f"Author{n} Smith", "the Anon"] if n == 0 else [f"Author{n} Smith"],
            "ctxs": [
                {"title": f"Book {n}", "text": f"Book {n} was written by Author{n} Smith.", "isgold": True},
                {"title": "noise", "text": "Nothing here.", "isgold": False},
            ],
        }
        for n in range(count)
    ]
    text = "\n".join(map(json.dumps, lines))
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def test_prompt_is_lost_in_the_middles_to_the_letter(tmp_path: Path) -> None:
    source = write_questions(tmp_path / "q.jsonl")
    row = rows(Mdqa(source=source, split="all", documents=2, position=2, questions=1))[0]
    number = row["references"][0].removeprefix("Author").removesuffix(" Smith")
    first = row["prompt"].split("\n")[2].removeprefix("Document [1](Title: ")
    assert row["prompt"] == (
        "Write a high-quality answer for the given question using only the provided search results "
        "(some of which might be irrelevant).\n\n"
        f"Document [1](Title: {first}\n"
        f"Document [2](Title: Book {number}) Book {number} was written by Author{number} Smith.\n\n"
        f"Question: who wrote book {number}\nAnswer:"
    )


def test_distractors_of_a_question_are_the_same_at_every_position() -> None:
    made = rows(Mdqa(documents=6, positions=[1, 3, 6], questions=5))
    for number in range(5):
        of_question = made[3 * number : 3 * number + 3]
        assert [row["position"] for row in of_question] == [1, 3, 6]
        bare = []
        for row in of_question:
            lines = row["prompt"].split("\n\n")[1].split("\n")
            gold = lines.pop(row["position"] - 1)
            assert row["references"][0] in gold
            bare.append([line.split("(", 1)[1] for line in lines])
        assert bare[0] == bare[1] == bare[2], "only the gold document moves"


def test_no_distractor_holds_an_answer_and_no_document_comes_twice() -> None:
    for row in rows(Mdqa(documents=20, questions=60)):
        lines = [line.split("(", 1)[1] for line in row["prompt"].split("\n\n")[1].split("\n")]
        assert sum(row["references"][0] in line for line in lines) == 1
        assert len(set(lines)) == 20


def test_prompts_of_32k_tokens_can_be_made_of_the_tiny_world() -> None:
    (row,) = rows(Mdqa(documents=1210, positions=[1210], questions=1))
    documents = re.findall(r"^Document \[(\d+)\]\(Title: (.*?)\)", row["prompt"], re.MULTILINE)
    assert [int(label) for label, _ in documents] == list(range(1, 1211)) and len(
        {title for _, title in documents}
    ) == 1210
    with pytest.raises(InputError, match=r"documents: 2001 are more than the tiny world can tell apart \(2000\)"):
        rows(Mdqa(documents=2001, questions=1))


@pytest.mark.skipif(not REAL.exists(), reason="the real questions are not beside this checkout")
def test_real_questions_have_no_distractor_with_an_answer() -> None:
    made = rows(Mdqa(source=str(REAL), split="all", documents=20, position=10, questions=50))
    for row in made:
        # A passage may itself have line ends, so documents are told apart by their labels.
        documents = re.split(r"(?:^|\n)Document \[\d+\]\(Title: ", row["prompt"])[1:]
        assert len(documents) == 20
        others = [text for n, text in enumerate(documents, 1) if n != row["position"] and n < 20]
        answers = [normal for answer in row["references"] if (normal := normalise(answer))]
        assert not any(answer in normalise(text) for text in others for answer in answers)
    assert len(rows(Mdqa(source=str(REAL), split="all", documents=1, questions=None))) == 2655


def test_a_row_is_a_pure_function_of_recipe_and_index() -> None:
    task = Mdqa(documents=4, positions="random", questions=40)
    context = task.context(count_words)
    whole = task.build(0, 40, context)
    assert pa.concat_tables([task.build(0, 13, context), task.build(13, 40, context)]).equals(whole)
    assert whole.schema.equals(EXAMPLE_SCHEMA)
    assert set(whole["position"].to_pylist()) == {1, 2, 3, 4}, "random positions reach every document"
    fewer = Mdqa(documents=4, positions="random", questions=10)
    assert fewer.build(0, 10, fewer.context(count_words)).equals(whole.slice(0, 10)), (
        "more questions change no earlier one"
    )


def test_training_and_test_questions_never_meet(tmp_path: Path) -> None:
    source = write_questions(tmp_path / "q.jsonl.gz", 60)
    ids = {
        split: {row["question_id"] for row in rows(Mdqa(source=source, split=split, documents=2, questions=None))}
        for split in ("train", "test", "all")
    }
    assert ids["train"] and ids["train"].isdisjoint(ids["test"])
    assert ids["train"] | ids["test"] == ids["all"]
    train, test = Mdqa(source=source, split="train"), Mdqa(source=source, split="test")
    assert train.overlaps(test) is None
    assert "split: train" in str(test.overlaps(test))
    assert Mdqa(split="train").overlaps(Recall()) is None
    # What was trained on must not be asked closed book either, as if the model had known it before.
    assert train.overlaps(Recall(source=source)) is None
    assert "split: train" in str(Mdqa(source=source, split="all").overlaps(Recall(source=source)))
    assert Mdqa().overlaps(Recall()) is None, "the tiny world's known people are never trained on"


def test_identity_is_the_files_content_not_its_path(tmp_path: Path) -> None:
    first, second = (Mdqa(source=write_questions(tmp_path / name)) for name in ("a.jsonl", "b.jsonl"))
    assert first.recipe() == second.recipe() and "source" not in first.recipe()
    assert first.sources() == second.sources() != Mdqa(source=write_questions(tmp_path / "c.jsonl", 13)).sources()


def test_own_parquet_and_own_jsonl_are_read(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    table = pa.table({"question": ["q one", "q two"], "answers": [["x1"], ["x2"]], "text": ["has x1", "has x2"]})
    pq.write_table(table, tmp_path / "own.parquet")  # noqa: TID251 (a user's file, not the store's)
    assert len(rows(Mdqa(source=str(tmp_path / "own.parquet"), split="all", documents=2, questions=2))) == 10 / 5 * 2
    (tmp_path / "own.jsonl").write_text('{"question": "q", "answer": "x"}\n')
    assert rows(Recall(source=str(tmp_path / "own.jsonl"), split="all"))[0]["prompt"] == "Question: q\nAnswer:"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question": "q"}', "row 1: 'answers' must be"),
        ('{"answers": ["a"]}', "row 1: no 'question'; found the fields answers"),
        ("{", ":1: not JSON"),
        ("[1]", ":1: expected an object"),
        ('{"question": "q", "answers": 7}', "row 1: 'answers' must be"),
        ('{"question": "q", "answers": {"a": 1}}', "row 1: 'answers' must be"),
        ('{"question": "q", "answers": ["a"], "ctxs": ["text"]}', "row 1: 'ctxs' must be a list of passages"),
        ("", "no questions"),
    ],
)
def test_a_bad_file_is_named_with_its_row(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "bad.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        Recall(source=str(tmp_path / "bad.jsonl"), split="all").context(count_words)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("q.parquet", b"PAR1 torn", "not a whole Parquet file"),
        ("q.jsonl.gz", gzip.compress(b"{}" * 500, mtime=0)[:20], "not a whole gzip file"),
        ("q.jsonl.gz", gzip.compress(b"{}" * 500, mtime=0)[:10] + b"\xff" * 20, "not a whole gzip file"),
        ("q.jsonl", b'{"question": "q", "answers": ["a"]}\n{"question": "\xff"}', ":2: not UTF-8"),
        ("q.csv", b"question,answer", "expected .jsonl, .jsonl.gz or .parquet"),
    ],
)
def test_a_torn_file_is_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        Recall(source=str(tmp_path / name), split="all").context(count_words)


def test_a_text_keeps_its_line_separators_and_a_byte_order_mark_is_no_question(tmp_path: Path) -> None:
    row = {"question": "who\u2028wrote it", "answers": ["Ann\x85"], "text": "by Ann\u2029 herself"}
    (tmp_path / "q.jsonl").write_text("\ufeff" + json.dumps(row, ensure_ascii=False) + "\r\n", "utf-8")
    made = rows(Mdqa(source=str(tmp_path / "q.jsonl"), split="all", documents=1, questions=1))
    assert made[0]["prompt"].endswith("by Ann\u2029 herself\n\nQuestion: who\u2028wrote it\nAnswer:")


def test_more_questions_change_no_prompt_of_a_file_s_question(tmp_path: Path) -> None:
    source = write_questions(tmp_path / "q.jsonl", 40)
    few, many = (
        {row["example_id"]: row for row in rows(Mdqa(source=source, split="all", documents=5, questions=count))}
        for count in (7, 30)
    )
    assert few.items() <= many.items()


def test_distractors_of_a_file_s_question_are_the_same_at_every_position(tmp_path: Path) -> None:
    source = write_questions(tmp_path / "q.jsonl", 40)
    every = Mdqa(source=source, split="all", documents=5, positions=[1, 2, 5], questions=8)
    lines: dict[str, list[list[str]]] = {}
    for row in rows(every):
        documents = [line.split("(", 1)[1] for line in row["prompt"].split("\n\n")[1].split("\n")]
        assert row["references"][0] in documents.pop(row["position"] - 1)
        lines.setdefault(row["question_id"], []).append(documents)
    assert len(lines) == 8
    assert all(first == second == third for first, second, third in lines.values())
    # One position alone gives the very rows that it has among others.
    alone = Mdqa(source=source, split="all", documents=5, position=2, questions=8)
    assert rows(alone) == [row for row in rows(every) if row["position"] == 2]


def test_too_many_questions_says_how_many_there_are(tmp_path: Path) -> None:
    source = write_questions(tmp_path / "q.jsonl")
    with pytest.raises(InputError, match="type questions: 12"):
        Mdqa(source=source, split="all", questions=13, documents=2).context(count_words)
    with pytest.raises(InputError, match="cannot be read"):
        Mdqa(source=str(tmp_path / "none.jsonl")).sources()
    with pytest.raises(InvalidValueError, match=r"found \[5\]"):
        Mdqa(documents=4, position=5)


@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        ("Wilhelm Conrad Röntgen.", ["Wilhelm Conrad Röntgen"], 1.0),
        ("It was the U.S.A., I think", ["usa"], 1.0),
        ("An answer, The Beatles", ["a the beatles"], 1.0),
        ("no idea\nParis", ["Paris"], 0.0),
        ("\n Paris", ["Paris"], 1.0),
        ("It is\u2028Paris", ["Paris"], 1.0),
        ("It is\r\nParis", ["Paris"], 0.0),
        ("London", ["Paris", "lond"], 1.0),
        ("", ["Paris"], 0.0),
    ],
)
def test_best_subspan_em(answer: str, references: list[str], score: float) -> None:
    assert best_subspan_em(answer, references) == score


def test_recall_asks_every_known_fact_once() -> None:
    made = rows(Recall())
    assert len(made) == len({row["question_id"] for row in made}) == 480
    assert all(row["position"] is None and row["units"] == 0 for row in made)
    assert made[0]["answer"].endswith(made[0]["references"][0])
