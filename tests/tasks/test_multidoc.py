"""MultiDocQA: answers that restate their document on one line, from made-up people, questions, or instruction rows."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from kvray.errors import InputError
from kvray.store.schemas import EXAMPLE_SCHEMA
from kvray.tasks.qa.mdqa import Mdqa
from kvray.tasks.qa.multidoc import MultiDocQa, is_english, pair, restated
from kvray.tasks.qa.questions import Question
from kvray.tasks.qa.recall import Recall

REAL = Path(__file__).parents[3] / "shared" / "data" / "nq-open-oracle.jsonl.gz"
GOLDEN = {
    "tiny": "e8064cfdbdd065bc6226b1afec7c5ecff8bf27d07be67c911a8b63804a3e56a1",
    "questions": "e661cd318af67cf000fe7c4b2a7814f5bc7a6b32521e767208b54577e1643178",
    "instructions": "6e8028f68b861a11c10533f3f20c28417d8daced6520a6d9b7c8db2498f73585",
}


def count_words(texts: Sequence[str]) -> np.ndarray:
    return np.array([len(text.split()) for text in texts], dtype=np.int64)


def rows(task: MultiDocQa | Mdqa) -> list[dict]:
    context = task.context(count_words)
    return task.build(0, task.count(context), context).to_pylist()


def question_file(folder: Path, count: int = 60) -> str:
    with (folder / "questions.jsonl").open("w") as file:
        for n in range(count):
            text = (
                f"Book {n} is long.\nIt was written by Author{n:02d} in 19{n:02d}. Many read it."
                + " word" * (n % 2) * 50
            )
            file.write(
                json.dumps({"question": f"who wrote book {n}", "answers": [f"Author{n:02d}"], "text": text}) + "\n"
            )
    return str(folder / "questions.jsonl")


def instruction_file(folder: Path) -> str:
    with (folder / "rows.jsonl").open("w") as file:
        for n in range(40):
            chinese = n % 4 == 0
            prompt = f"参考文档 {n} 问题" * 3 if chinese else f"Documents {n}. " + "word " * n + "Question?"
            answer = "原文" if chinese else f"The text says {n}.\nSo {n}."
            file.write(json.dumps({"instruction": prompt, "output": answer}) + "\n")
    return str(folder / "rows.jsonl")


def documents_of(row: dict) -> list[str]:
    return [line.split(") ", 1)[1] for line in row["prompt"].split("\n") if line.startswith("Document [")]


def test_an_answer_names_its_document_restates_it_and_concludes_on_one_line() -> None:
    made = rows(MultiDocQa(rows=200, documents=7))
    for row in made:
        found = re.fullmatch(r'According to Document \[(\d)\]: "(.+)" So the answer is: (\w+)\.', row["answer"])
        assert found is not None
        assert int(found[1]) == row["position"]
        assert found[2] in documents_of(row)[row["position"] - 1] and found[2].endswith(f"is {found[3]}.")
        assert found[3] == row["references"][0]
        assert sum(found[3] in document for document in documents_of(row)) == 1
        assert MultiDocQa().score(row["answer"], row["references"]) == 1.0
    assert {row["position"] for row in made} == set(range(1, 8)), "random positions reach every document"
    assert len({row["question_id"] for row in made}) == 200


def test_it_trains_on_people_that_no_evaluation_asks_about() -> None:
    trained = {
        name for row in rows(MultiDocQa(rows=300, documents=4)) for name in re.findall(r"Title: ([^)]+)", row["prompt"])
    }
    asked = {
        name for row in rows(Mdqa(questions=300, documents=4)) for name in re.findall(r"Title: ([^)]+)", row["prompt"])
    }
    assert trained and trained.isdisjoint(asked)
    assert MultiDocQa().overlaps(Mdqa()) is None
    assert MultiDocQa().overlaps(Recall()) is None
    assert "split: train" in str(MultiDocQa(split="all").overlaps(Mdqa()))
    assert "split: train" in str(Mdqa(split="train").overlaps(MultiDocQa()))


def test_rows_may_end_within_a_question_s_positions() -> None:
    made = rows(MultiDocQa(rows=7, documents=3, positions=[1, 3]))
    assert [row["position"] for row in made] == [1, 3, 1, 3, 1, 3, 1]
    assert len({row["question_id"] for row in made}) == 4
    assert [row["position"] for row in rows(MultiDocQa(rows=5, documents=20, positions=None))] == [1, 5, 10, 15, 20]


def test_questions_of_a_file_restate_the_sentence_or_the_passage(tmp_path: Path) -> None:
    source = question_file(tmp_path)
    row = rows(MultiDocQa(source=source, split="all", rows=1, documents=3))[0]
    n = row["references"][0].removeprefix("Author")
    said = f"It was written by Author{n} in 19{n}."
    assert row["answer"] == f'According to Document [{row["position"]}]: "{said}" So the answer is: Author{n}.'
    assert "\nIt was" in row["prompt"], "the document keeps its line end"
    whole = rows(MultiDocQa(source=source, split="all", rows=1, documents=3, restate="passage"))[0]
    assert whole["prompt"] == row["prompt"] and "\n" not in whole["answer"]
    assert f'"Book {int(n)} is long. {said} Many read it.' in whole["answer"]


def test_rows_longer_than_max_tokens_are_passed_by_and_the_others_stay(tmp_path: Path) -> None:
    source = question_file(tmp_path)
    every = rows(MultiDocQa(source=source, split="all", rows=60, documents=1, max_tokens=None))
    short = rows(MultiDocQa(source=source, split="all", rows=30, documents=1, max_tokens=80))
    fitting = [row for row in every if sum(count_words([row["prompt"], row["answer"]])) <= 80]
    assert len(fitting) == 30 and short == fitting, "the same examples in the same order"
    with pytest.raises(
        InputError, match=r"gives 30; 30 more are passed by for max_tokens: 80; type rows: 30 or another max"
    ):
        MultiDocQa(source=source, split="all", rows=31, documents=1, max_tokens=80).context(count_words)
    with pytest.raises(InputError, match=r"in split 'train'; type rows: \d+ or split: all"):
        MultiDocQa(source=source, rows=60, documents=1, max_tokens=None).context(count_words)


def test_training_shows_no_passage_of_the_other_split(tmp_path: Path) -> None:
    source = question_file(tmp_path)
    train = MultiDocQa(source=source, split="train", rows=5, documents=5)
    golds = {row["references"][0] for row in rows(Mdqa(source=source, split="test", questions=None, documents=1))}
    assert not golds & set(re.findall(r"Author\d\d", " ".join(row["prompt"] for row in rows(train))))


def test_a_row_is_a_pure_function_of_recipe_and_index(tmp_path: Path) -> None:
    for task in (
        MultiDocQa(rows=20, documents=3),
        MultiDocQa(rows=20, documents=3, source=question_file(tmp_path), split="all"),
        MultiDocQa(rows=20, source=instruction_file(tmp_path), split="all"),
    ):
        context = task.context(count_words)
        whole = task.build(0, 20, context)
        assert whole.schema.equals(EXAMPLE_SCHEMA)
        assert task.build(7, 20, context).equals(whole.slice(7).combine_chunks())
        fewer = task.model_copy(update={"rows": 6})
        assert fewer.build(0, 6, fewer.context(count_words)).equals(whole.slice(0, 6).combine_chunks())


def test_instruction_rows_are_taken_as_they_are(tmp_path: Path) -> None:
    source = instruction_file(tmp_path)
    made = rows(MultiDocQa(source=source, split="all", rows=30))
    assert len(made) == 30 and not any("参考" in row["prompt"] for row in made)
    row = made[0]
    number = re.search(r"Documents (\d+)", row["prompt"])
    assert number and row["answer"] == f"The text says {number[1]}.\nSo {number[1]}."
    assert (row["position"], row["units"], row["references"]) == (None, 0, [row["answer"]])
    with pytest.raises(
        InputError, match=r"gives 30; 10 more are passed by for english_only: true; type rows: 30 or another"
    ):
        rows(MultiDocQa(source=source, split="all", rows=31))
    assert len(rows(MultiDocQa(source=source, split="all", rows=40, english_only=False))) == 40
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join(reversed([*lines, lines[1]])))
    assert rows(MultiDocQa(source=source, split="all", rows=30)) == made, "neither order nor repeats matter"


def test_instruction_rows_come_out_of_archives_and_tables(tmp_path: Path) -> None:
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerows([["text"], ["<|im_start|>system\nBe good<|im_end|>\n<|im_start|>user\nDocs, q?<|im_end|>\n"
                                 "<|im_start|>assistant\nIt says a.<|im_end|>"]])  # fmt: skip
    (tmp_path / "chatml.csv").write_text(table.getvalue())
    with zipfile.ZipFile(tmp_path / "mixture.zip", "w") as archive:
        archive.writestr(
            "en/qa.json", json.dumps([{"context": "Docs", "questions": ["q?", "r?"], "answers": ["It says a.", "b"]}])
        )
        archive.writestr(
            "en/chat.jsonl",
            json.dumps({"messages": [{"role": "user", "content": "Docs q"}, {"role": "assistant", "content": "a"}]}),
        )
    table_row = rows(MultiDocQa(source=str(tmp_path / "chatml.csv"), split="all", rows=1))[0]
    assert (table_row["prompt"], table_row["answer"]) == ("Docs, q?", "It says a.")
    both = rows(MultiDocQa(source=str(tmp_path / "mixture.zip"), split="all", rows=2))
    assert sorted((row["prompt"], row["answer"]) for row in both) == [("Docs\n\nq?", "It says a."), ("Docs q", "a")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "Do", "input": "this", "output": "done"}, ("Do\n\nthis", "done")),
        ({"instruction": "Do", "input": "", "output": "done"}, ("Do", "done")),
        ({"prompt": " p ", "response": " r "}, ("p", "r")),
        ({"input": "i", "answer": "a"}, ("i", "a")),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, ("q", "a")),
        (
            {"messages": [{"role": role, "content": role[0]} for role in ("system", "user", "assistant", "user")]},
            ("u", "a"),
        ),
        ({"prompt": "p", "output": ""}, ("p", "")),
    ],
)  # fmt: skip
def test_the_usual_shapes_of_instruction_rows_are_read(row: dict, expected: tuple[str, str]) -> None:
    assert pair(row, "here") == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"a": 1}, "here: found the fields a; expected messages"),
        ({"prompt": "p"}, "found the fields prompt; expected"),
        ({"prompt": 7, "output": "x"}, "found the fields prompt, output; expected"),
        ({"messages": [{"role": "user", "content": "q"}]}, "expected a conversation"),
        ({"messages": "q"}, "expected a conversation"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "tool", "content": "t"}]}, "expected a conversation"),
    ],
)
def test_a_row_of_another_shape_is_named(row: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pair(row, "here")


@pytest.mark.parametrize(
    ("text", "english"),
    [("Words", True), ("a naïve café in the middle of Paris", True), ("中文", False), ("Qwen 中文中文中文", False),
     ("A name 张伟 in a long English sentence", True), ("123 456", False), ("", False)],
)  # fmt: skip
def test_english_is_nine_letters_of_ten_in_ascii(text: str, english: bool) -> None:
    assert is_english(text) == english


def test_a_sentence_that_holds_the_trained_answer_is_restated() -> None:
    passage = "Alpha came. Beta (b. 1900) stayed! Did Gamma go?\nNobody knows."
    assert restated(Question("", "", ("Gamma",), "", passage)) == ("Did Gamma go?", "Gamma")
    initials = "Few knew. John F. Kennedy of St. Louis went. Then he came."
    assert restated(Question("", "", ("St Louis",), "", initials)) == ("John F. Kennedy of St. Louis went.", "St Louis")
    assert restated(Question("", "", ("Omega", "beta"), "", passage)) == ("Beta (b. 1900) stayed!", "beta")
    assert restated(Question("", "", ("came beta",), "", passage)) == (passage, "came beta"), "no one sentence holds it"


@pytest.mark.skipif(not REAL.exists(), reason="the real questions are not beside this checkout")
def test_real_answers_hold_what_they_conclude() -> None:
    for row in rows(MultiDocQa(source=str(REAL), rows=100, documents=4)):
        assert MultiDocQa().score(row["answer"].rsplit("So the answer is: ", 1)[1], row["references"]) == 1.0
        assert "\n" not in row["answer"]


@pytest.mark.parametrize("kind", sorted(GOLDEN))
def test_golden_rows(kind: str, tmp_path: Path) -> None:
    # Whoever changes these changes every dataset made so far: raise the task's VERSION.
    source = {"tiny": "tiny", "questions": question_file(tmp_path), "instructions": instruction_file(tmp_path)}[kind]
    made = rows(MultiDocQa(source=source, split="all" if kind != "tiny" else "train", documents=3, rows=25))
    assert hashlib.sha256(json.dumps(made).encode()).hexdigest() == GOLDEN[kind]
