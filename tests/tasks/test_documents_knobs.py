"""MDQA's floors, ceilings, retrieved distractors, query-aware prompts and full-sentence answers."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from kvray.errors import InputError, InvalidValueError
from kvray.tasks.qa.mdqa import WRITER_PROMPT, Mdqa, usable
from kvray.tasks.qa.recall import Recall

REAL = Path(__file__).parents[3] / "shared" / "data" / "nq-open-oracle.jsonl.gz"


def count_words(texts: Sequence[str]) -> np.ndarray:
    return np.array([len(text.split()) for text in texts], dtype=np.int64)


def rows(task: Mdqa | Recall, written: Sequence[str] | None = None) -> list[dict]:
    context = task.context(count_words, written)
    return task.build(0, task.count(context), context).to_pylist()


def shown(row: dict) -> list[str]:
    return re.findall(r"^Document \[\d+\]\(Title: ([^)]*)\)", row["prompt"], re.MULTILINE)


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Write a file as lost-in-the-middle's 5_total_documents_gold_at_2 have it."""
    path = tmp_path / "nq-open-5_total_documents_gold_at_2.jsonl"
    with path.open("w") as file:
        for n in range(30):
            passages = [
                {"title": f"near {n}.{rank}", "text": f"text {n}.{rank}", "isgold": False, "hasanswer": False}
                for rank in range(4)
            ]
            gold = {"title": f"gold {n}", "text": f"It was author{n:02d}.", "isgold": True, "hasanswer": True}
            row = {
                "question": f"who wrote {n}",
                "answers": [f"author{n:02d}"],
                "ctxs": [*passages[:2], gold, *passages[2:]],
            }
            file.write(json.dumps(row) + "\n")
    return str(path)


def test_retrieved_distractors_stay_in_their_order_and_the_gold_document_moves(source: str) -> None:
    made = rows(
        Mdqa(source=source, split="all", distractors="retrieved", documents=5, positions=[1, 3, 5], questions=30)
    )
    assert len(made) == 90
    for row in made:
        number = int(row["references"][0].removeprefix("author"))
        titles = shown(row)
        assert titles.pop(row["position"] - 1) == f"gold {number}"
        assert titles == [f"near {number}.{rank}" for rank in range(4)]
    fewer = rows(Mdqa(source=source, split="all", distractors="retrieved", documents=3, position=2, questions=1))[0]
    assert [title.split()[0] for title in shown(fewer)] == ["near", "gold", "near"]
    assert [title[-2:] for title in shown(fewer)[::2]] == [".0", ".1"], "the best ranked are kept"


def test_retrieved_distractors_that_a_file_has_not_are_an_error(source: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"takes 5 passages beside the gold one, but .* has 4 for 'who wrote"):
        rows(Mdqa(source=source, split="all", distractors="retrieved", documents=6, questions=3))
    (tmp_path / "own.jsonl").write_text('{"question": "q", "answers": ["x"], "text": "x"}')
    with pytest.raises(InputError, match="has 0 for 'q'; give a file of"):
        rows(Mdqa(source=str(tmp_path / "own.jsonl"), split="all", distractors="retrieved", documents=2, questions=1))
    with pytest.raises(InvalidValueError, match="needs a source whose rows have them"):
        Mdqa(distractors="retrieved")


@pytest.mark.parametrize("kind", ["tiny", "random", "retrieved"])
def test_closed_book_and_oracle_ask_the_same_questions_as_any_number_of_documents(kind: str, source: str) -> None:
    knobs: dict = {"questions": 12} if kind == "tiny" else {"questions": 12, "source": source, "split": "all"}
    if kind != "tiny":
        knobs["distractors"] = kind
    asked = {n: rows(Mdqa(documents=n, seed=3, **knobs)) for n in (0, 1, 2, 4)}
    ids = {n: list(dict.fromkeys(row["question_id"] for row in made)) for n, made in asked.items()}
    assert ids[0] == ids[1] == ids[2] == ids[4]
    assert len(asked[0]) == len(asked[1]) == 12
    for bare, oracle in zip(asked[0], asked[1], strict=True):
        question = re.fullmatch(r"Question: (.+)\nAnswer:", bare["prompt"])
        assert question and oracle["prompt"].endswith(f"\n\n{bare['prompt']}")
        assert (bare["position"], bare["units"], bare["example_id"]) == (None, 0, bare["question_id"])
        assert (oracle["position"], oracle["units"]) == (1, 1)
        assert len(shown(oracle)) == 1 and oracle["references"][0] in oracle["prompt"]
        assert (bare["answer"], bare["references"]) == (oracle["answer"], oracle["references"])


def test_no_position_without_documents() -> None:
    assert rows(Mdqa(documents=0, positions="random", questions=3)) == rows(Mdqa(documents=0, questions=3))
    with pytest.raises(InvalidValueError, match=r"lie in 1 to documents \(0\)"):
        Mdqa(documents=0, position=1)
    with pytest.raises(InvalidValueError, match="documents: 0 shows none"):
        Mdqa(documents=0, query_aware=True)


def test_query_aware_prompts_are_lost_in_the_middles_to_the_letter() -> None:
    plain, aware = (rows(Mdqa(documents=3, position=2, questions=1, query_aware=aware))[0] for aware in (False, True))
    head, documents, question = plain["prompt"].split("\n\n")
    first = question.removesuffix("\nAnswer:")
    assert aware["prompt"] == f"{head}\n\n{first}\n\n{documents}\n\n{question}"
    assert {**aware, "prompt": "", "prompt_tokens": 0} == {**plain, "prompt": "", "prompt_tokens": 0}


@pytest.mark.parametrize(
    "kind", ["tiny", pytest.param("real", marks=pytest.mark.skipif(not REAL.exists(), reason="no file"))]
)
def test_120_documents_can_be_shown(kind: str) -> None:
    knobs: dict = {} if kind == "tiny" else {"source": str(REAL)}
    made = rows(Mdqa(documents=120, positions=[1, 60, 120], questions=2, **knobs))
    assert [row["position"] for row in made] == [1, 60, 120] * 2
    for row in made:
        documents = re.split(r"(?:^|\n)Document \[(\d+)\]\(Title: ", row["prompt"])
        assert documents[1::2] == [str(n) for n in range(1, 121)]
        assert row["units"] == 120
        assert kind == "tiny" or 8_000 < row["prompt_tokens"] < 12_000


def test_more_random_distractors_than_the_file_has_is_an_error(source: str) -> None:
    with pytest.raises(InputError, match="documents: 31 asked for, but only 29 of 30 passages"):
        rows(Mdqa(source=source, split="all", documents=31, questions=1))


def test_what_is_trained_on_is_short_or_a_sentence(source: str) -> None:
    def answers(**knobs: object) -> list[str]:
        return [row["answer"] for row in rows(Mdqa(documents=2, position=1, questions=3, **knobs))]

    short = answers(source=source, split="all")
    assert all(re.fullmatch(r"author\d\d", answer) for answer in short)
    assert answers(source=source, split="all", answers="short") == short
    asked = [int(answer[-2:]) for answer in short]
    assert answers(source=source, split="all", answers="sentence") == [f"Author{n:02d} wrote {n}." for n in asked]
    restated = answers()
    assert all(re.fullmatch(r"The \w+ of \w+ \w+ is \w+", answer) for answer in restated)
    assert answers(answers="sentence") == restated, "the tiny world's answers are sentences already"
    assert answers(answers="short") == [answer.split()[-1] for answer in restated]


def test_a_writer_is_asked_for_more_than_are_needed_and_useless_replies_are_passed_by(source: str) -> None:
    task = Mdqa(source=source, split="all", documents=3, positions=[1, 3], questions=8, answers="sentence",
                answer_writer="some/model")  # fmt: skip
    assert task.writer() == "some/model" and Mdqa().writer() is None
    prompts = task.to_write(count_words)
    assert len(prompts) == 28, "eight and twenty spare ones"
    numbers = [int(re.search(r"author(\d\d)\.\n", prompt)[1]) for prompt in prompts]  # type: ignore[index]
    assert prompts[0] == WRITER_PROMPT.format(
        question=f"who wrote {numbers[0]}", answer=f"author{numbers[0]:02d}", title=f"gold {numbers[0]}",
        text=f"It was author{numbers[0]:02d}.",
    )  # fmt: skip
    assert task.count(task.context(count_words)) == 16
    replies = [f" It was Author{n:02d}, who wrote {n}. \n" for n in numbers]
    replies[0], replies[2] = "It was nobody.", f"It was author{numbers[2]:02d}.\nYes."
    made = rows(task, replies)
    kept = [n for at, n in enumerate(numbers) if at not in (0, 2)][:8]
    assert [row["answer"] for row in made[::2]] == [f"It was Author{n:02d}, who wrote {n}." for n in kept]
    assert [row["references"] for row in made] == [[f"author{n:02d}"] for n in kept for _ in range(2)]
    plain = {
        row["example_id"]: row["prompt"]
        for row in rows(task.model_copy(update={"answer_writer": None, "questions": 30}))
    }
    assert all(row["prompt"] == plain[row["example_id"]] for row in made), "prompts are those that they always were"
    with pytest.raises(InputError, match=r"some/model wrote 7 .* in 28 replies; 8 are needed.* type questions: 7"):
        task.context(count_words, ["no"] * 21 + replies[21:28])
    with pytest.raises(InputError, match="has not written the answers yet"):
        rows(task)


def test_the_tiny_world_s_sentences_can_be_written_too() -> None:
    task = Mdqa(documents=2, position=1, questions=4, answers="sentence", answer_writer="m", split="train")
    prompts = task.to_write(count_words)
    replies = [f"Surely {re.search(r'Correct answer: (.+)', prompt)[1]}." for prompt in prompts]  # type: ignore[index]
    made = rows(task, replies)
    assert [row["answer"] for row in made] == replies[:4]
    assert all(row["references"][0] in row["answer"] for row in made)


@pytest.mark.parametrize(
    ("reply", "is_usable"),
    [
        ("It was Marie Curie.", True),
        ("\nIt was marie curie\n", True),
        ("It was Pierre Curie.", False),
        ("Sentence:\nIt was Marie Curie.", False),
        ("", False),
        ("word " * 58 + "Marie-Curie", False),
        ("word " * 57 + "Marie Curie", True),
        ("word " * 58 + "Marie Curie", False),
    ],
)
def test_a_usable_reply_is_one_line_of_few_words_with_the_answer(reply: str, is_usable: bool) -> None:
    assert usable(reply, ["Marie Curie"]) == is_usable


def test_a_writer_s_prompt_needs_question_and_answer(tmp_path: Path) -> None:
    row = {"question": "who {x}?", "answers": ["a {y}"], "title": "T", "text": "P {z}"}
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    task = Mdqa(source=str(tmp_path / "q.jsonl"), split="all", questions=1, documents=1)
    task = task.model_copy(update={"writer_prompt": "{question}|{answer}|{title}|{text}"})
    assert task.to_write(count_words) == ["who {x}?|a {y}|T|P {z}"]
    for wrong in ("{question}", "{question} {answer} {passage}", "{question} {answer} {", "{} {question} {answer}"):
        with pytest.raises(InvalidValueError, match="writer_prompt"):
            Mdqa(writer_prompt=wrong)
    with pytest.raises(InvalidValueError, match="type answers: sentence"):
        Mdqa(answer_writer="m")
    with pytest.raises(InvalidValueError, match="say how many questions"):
        Mdqa(answer_writer="m", answers="sentence", questions=None)


GOLDEN = {
    "closed book": "e42d9bfac513cc3faf27edbefd8a4538bb1bb2791701e320cf774ec26f891b77",
    "oracle": "27580afa815db4b12a757c19ebfeea7be711e8ef9355bb7cad9c6c71f9d9f3ba",
    "query aware": "66f05534704c9e3bbf303886ad6154a2b35ad64d88c50ea36c5b0b29b04418b6",
    "retrieved": "fccfaa0ba07cf4e7ff00a78685a178d2addce26b02d84e6c463b6aa652a45b94",
    "sentence": "dc347ae74f1c13279232be72068fdedfbf49d91c8836a58df78a35060caf0499",
}


@pytest.mark.parametrize("kind", sorted(GOLDEN))
def test_golden_rows(kind: str, source: str) -> None:
    # Whoever changes these changes every dataset made so far: raise the task's VERSION (of sentences: theirs).
    knobs: dict = {
        "closed book": {"documents": 0},
        "oracle": {"documents": 1},
        "query aware": {"documents": 3, "query_aware": True, "source": source, "split": "all"},
        "retrieved": {"documents": 4, "distractors": "retrieved", "source": source, "split": "all"},
        "sentence": {"documents": 3, "answers": "sentence", "source": source, "split": "all"},
    }[kind]
    made = rows(Mdqa(questions=20, **knobs))
    assert hashlib.sha256(json.dumps(made).encode()).hexdigest() == GOLDEN[kind]


def test_a_plan_without_the_hub_expects_rows() -> None:
    away = "https://x.invalid/nq.jsonl"
    assert Mdqa(source=away, questions=200).expected_rows() == 1000
    assert Mdqa(source=away, questions=None, split="train", documents=0).expected_rows() == 531
