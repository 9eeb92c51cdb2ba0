"""Questions: what the scorer of lost-in-the-middle accepts, and what is read from rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvray.tasks.qa import questions
from kvray.tasks.qa.questions import Question, best_subspan_em, in_split, normalise


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat's\tPyjamas!", "cats pyjamas"),
        ("A.B.C. an the a", "abc"),
        ("theatre another an-the", "theatre another anthe"),
        ("“quoted” — dash…", "“quoted” — dash…"),
        ("Ünïcode THE End", "ünïcode end"),
        ("U.S.", "us"),
    ],
)
def test_normalisation_is_squads_in_its_order(text: str, normal: str) -> None:
    # Punctuation goes before articles ("an-the" is one word by then), and only ASCII punctuation goes.
    assert normalise(text) == normal


@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        ("14 December 1972.", ["14 December 1972 UTC", "December 1972"], 1.0),
        ("December 14, 1972", ["14 December 1972"], 0.0),
        ("It is the answer", ["an answer"], 1.0),
        ("Mother Teresa's order", ["Mother Teresa"], 1.0),
        ("O'Brien", ["OBrien"], 1.0),
        ("the 1,000 islands", ["1000 islands"], 1.0),
        ("1 000 islands", ["1000 islands"], 0.0),
        ("Parisian", ["Paris"], 1.0),
        ("Par is", ["Paris"], 0.0),
        ("London or Paris", ["Rome", "Paris"], 1.0),
        ("Question: who?\nParis", ["Paris"], 0.0),
        ("\n\n  Paris\nLondon", ["Paris"], 1.0),
        ("Paris", ["the"], 1.0),
        ("not Paris", ["Paris"], 1.0),
    ],
)
def test_containment_in_the_first_line_decides(answer: str, references: list[str], score: float) -> None:
    # "the" normalises to nothing, which every line contains: the published rule, which no reference of theirs meets.
    assert best_subspan_em(answer, references) == score


def test_a_row_s_distractors_are_its_other_passages_without_the_answer(tmp_path: Path) -> None:
    passages = [
        {"title": "B", "text": "second best", "isgold": False, "hasanswer": False},
        {"title": "Gold", "text": "gold text", "isgold": True, "hasanswer": True},
        {"title": "C", "text": "gives it away", "isgold": False, "hasanswer": True},
        {"title": "Copy", "text": "gold text", "isgold": False},
        {"title": "A", "text": "third best"},
    ]
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": "q", "answers": ["x"], "ctxs": passages}))
    question = questions.read(str(tmp_path / "q.jsonl"))[0]
    assert (question.title, question.passage) == ("Gold", "gold text")
    assert question.distractors == (("B", "second best"), ("A", "third best"))


def test_a_fifth_is_for_training_by_the_question_alone() -> None:
    asked = [Question(f"{n * 2654435761 % 2**48:012x}", "", ("x",)) for n in range(2000)]
    train = sum(in_split(question.id, "train") for question in asked)
    assert 320 < train < 480
    assert all(in_split(question.id, "train") != in_split(question.id, "test") for question in asked)
