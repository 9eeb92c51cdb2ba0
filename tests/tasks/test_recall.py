"""Recall: what is asked closed book, and of wrong answers which ones refuse and which ones invent."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kvray.tasks.qa.mdqa import Mdqa
from kvray.tasks.qa.recall import Recall

REFUSALS = [
    "", "  \n ", "...", "?", "I don't know", "I don\u2019t know.", "I do not know the answer to that question.",
    "I'm not sure.", "I\u2019m not sure, but I think it was Lyon.", "Unknown", "The answer is unknown.",
    "It is unknown who wrote it.", "As an AI language model, I cannot browse.", "There is no information about this.",
    "I cannot answer this question.", "Sorry, I can't help with that.", "N/A", "Not sure", "I have no idea.", "No idea",
    "Unfortunately, the text does not say.", "I could not find the answer.", "I'm unable to determine that.",
    "The document does not provide enough information to answer.", "It is not clear which one.",
    "Could you please provide more context?", "It's not known.", "no answer", "I don't have access to such data",
    "It cannot be determined from the given text", "That information is not available", "there is no record of that",
    "I am not familiar with that book", "The search results do not mention it.", "I don't know\nLyon",
    "None of the documents answer the question.",
]  # fmt: skip
INVENTIONS = [
    "Lyon", "The capital is Lyon.", "I Can't Get No Satisfaction", "I Don't Want to Miss a Thing", "Nobody", "None",
    "No", "The Unknown Soldier", "He cannot swim", "Known as the Bard", "Lyon\nI don't know", "Not Afraid by Eminem",
    "Information Society", "Sorry by Justin Bieber", "Can't Help Falling in Love", "No Country for Old Men",
    "It is not only Lyon but Nice", "He is not able to fly", "I Know What You Did Last Summer", "Lack of rain",
    "Can't Find My Way Home", "He was not given a name",
]  # fmt: skip


@pytest.mark.parametrize("answer", REFUSALS)
def test_a_refusal_is_no_invention(answer: str) -> None:
    assert Recall().outcome(answer, ["Paris"]) == "refusal"
    assert Mdqa(documents=0).outcome(answer, ["Paris"]) == "refusal"


@pytest.mark.parametrize("answer", INVENTIONS)
def test_a_confident_wrong_answer_is_an_invention(answer: str) -> None:
    assert Recall().outcome(answer, ["Paris"]) == "invention"


@pytest.mark.parametrize("answer", ["I'm not sure, but it may be Paris.", "Paris", "Unknown to most, paris!"])
def test_a_doubt_that_holds_the_right_answer_is_right(answer: str) -> None:
    assert Recall().outcome(answer, ["London", "Paris"]) == "right"


def test_an_answer_that_is_a_refusal_s_very_words_can_be_right() -> None:
    assert Recall().outcome("unknown", ["Unknown"]) == "right"


def test_with_documents_a_wrong_answer_is_wrong() -> None:
    assert [Mdqa(documents=n).outcome("I don't know", ["Paris"]) for n in (0, 1, 20)] == ["refusal", "wrong", "wrong"]


def test_a_file_without_passages_is_asked_closed_book_by_both(tmp_path: Path) -> None:
    source = tmp_path / "nq.jsonl"
    source.write_text("".join(json.dumps({"question": f"q {n}", "answer": [f"a{n}"]}) + "\n" for n in range(9)))

    def asked(task: Recall | Mdqa) -> list[dict]:
        context = task.context(lambda texts: np.zeros(len(texts), dtype=np.int64))
        return task.build(0, task.count(context), context).to_pylist()

    by_heart = asked(Recall(source=str(source), split="all"))
    assert by_heart == asked(Mdqa(source=str(source), split="all", documents=0, questions=None))
    assert len(by_heart) == 9 and all(row["position"] is None for row in by_heart)
    assert Recall(source="https://x.invalid/nq.jsonl").expected_rows() == 2124, "four fifths of NQ-Open's 2,655"
