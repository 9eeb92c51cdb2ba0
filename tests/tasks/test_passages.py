"""Distractors of so many words, of other questions' passages or of a corpus; lost-in-the-middle's random order."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import mistral_common
import numpy as np
import pytest
import sentencepiece

from kvray.errors import InputError, InvalidValueError
from kvray.tasks.qa.mdqa import Mdqa
from kvray.tasks.qa.passages import pieces
from kvray.tasks.qa.questions import normalise
from kvray.tasks.qa.recall import Recall

REAL = Path(__file__).parents[3] / "shared" / "data" / "nq-open-oracle.jsonl.gz"
MISTRAL = os.path.join(os.path.dirname(mistral_common.__file__), "data", "tokenizer.model.v1")
DOCUMENT = re.compile(r"(?:^|\n)Document \[\d+\]\(Title: ")


def count_words(texts: Sequence[str]) -> np.ndarray:
    return np.array([len(text.split()) for text in texts], dtype=np.int64)


def rows(task: Mdqa) -> list[dict]:
    context = task.context(count_words)
    return task.build(0, task.count(context), context).to_pylist()


def documents(row: dict) -> list[str]:
    """Return the prompt's documents as "title) text"."""
    return DOCUMENT.split(row["prompt"].rpartition("\n\nQuestion:")[0])[1:]


def text_of(article: int, words: int) -> str:
    return " ".join(f"a{article}w{word}" for word in range(words))


def write_questions(path: Path, lengths: Sequence[int]) -> str:
    with path.open("w") as file:
        for n, words in enumerate(lengths):
            text = f"Author{n:03d} {text_of(n, words)}"
            row = {"question": f"who wrote {n}", "answers": [f"Author{n:03d}"], "title": f"Title {n:03d}", "text": text}
            file.write(json.dumps(row) + "\n")
    return str(path)


def test_pieces_are_of_one_article_and_short_articles_are_joined_under_their_titles() -> None:
    passages = [("A", "1 2 3"), ("B", "4 5"), ("B", "6 7 8 9 10 11"), ("C", "12"), ("", "13"), ("", "14 15 16 17 18")]
    assert list(pieces(passages, 4)) == [
        ("B", "4 5 6 7"),
        ("B", "8 9 10 11"),
        ("A; C", "1 2 3 12"),
        ("", "14 15 16 17"),
    ]
    assert list(pieces([("", "1 2"), ("", "3 4")], 3)) == [("", "1 2 3")], "passages without a title are joined too"
    assert list(pieces([("A", "1 2")], 3)) == []


def test_every_distractor_has_the_words_asked_for_and_the_gold_passage_is_whole(tmp_path: Path) -> None:
    source = write_questions(tmp_path / "q.jsonl", [5, 24, 50, 90] * 12)
    made = rows(Mdqa(source=source, split="all", documents=9, positions=[1, 5, 9], questions=30, passage_words=20))
    for row in made:
        shown = documents(row)
        gold = shown.pop(row["position"] - 1)
        answer = row["references"][0]
        number = int(answer.removeprefix("Author"))
        assert gold == f"Title {number:03d}) {answer} {text_of(number, [5, 24, 50, 90][number % 4])}"
        assert [len(text.partition(") ")[2].split()) for text in shown] == [20] * 8
        assert len(set(shown)) == 8
        assert not any(f"Title {number:03d}" in text or answer in text for text in shown), "nothing of its own article"
    by_question = [[text.split(") ")[1] for text in documents(row)[1:]] for row in made if row["position"] == 1]
    assert len({tuple(texts) for texts in by_question}) == 30


def test_a_piece_does_not_depend_on_how_many_are_asked_or_how_the_file_is_ordered(tmp_path: Path) -> None:
    source = write_questions(tmp_path / "q.jsonl", [30] * 40)
    lines = Path(source).read_text().splitlines()
    (tmp_path / "back.jsonl").write_text("\n".join(reversed(lines)))
    knobs: dict = {"split": "all", "documents": 6, "positions": [2], "passage_words": 25}
    whole = rows(Mdqa(source=source, questions=20, **knobs))
    assert rows(Mdqa(source=str(tmp_path / "back.jsonl"), questions=7, **knobs)) == whole[:7]
    task = Mdqa(source=source, questions=20, **knobs)
    assert task.build(3, 5, task.context(count_words)).to_pylist() == whole[3:5]


@pytest.mark.parametrize("words", [None, 10])
def test_distractors_of_a_corpus_of_one_s_own(tmp_path: Path, words: int | None) -> None:
    source = write_questions(tmp_path / "q.jsonl", [12] * 5)
    corpus = tmp_path / "corpus.jsonl"
    articles = [{"title": f"Article {n}", "text": f"{text_of(1000 + n, 22)} Author{n:03d}"} for n in range(30)]
    corpus.write_text("\n".join(json.dumps(article) for article in [*articles, {"text": " "}]))
    task = Mdqa(source=source, split="all", documents=8, position=1, questions=5, corpus=str(corpus),
                passage_words=words)  # fmt: skip
    for row in rows(task):
        number = int(row["references"][0].removeprefix("Author"))
        for text in documents(row)[1:]:
            title, _, words_of = text.partition(") ")
            article = int(title.removeprefix("Article "))
            assert words_of in articles[article]["text"] and (words is not None or article != number)
            assert len(words_of.split()) == (words or 23)
    bare = task.model_copy(update={"corpus": None})
    assert task.sources().keys() - bare.sources().keys() == {"corpus"}
    assert bare.sources() == Recall(source=source).sources()
    assert "split: train" in str(task.overlaps(bare)), "the questions are the same, whatever stands around them"
    with pytest.raises(InputError, match=r"only 60 of 60|only 29 of 30"):
        rows(task.model_copy(update={"documents": 80}))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    source = write_questions(tmp_path / "q.jsonl", [30] * 8)
    with pytest.raises(InvalidValueError, match="passage_words is about the random distractors"):
        Mdqa(passage_words=100)
    with pytest.raises(InvalidValueError, match="distractors: retrieved; leave corpus out"):
        Mdqa(source=source, distractors="retrieved", corpus="c.jsonl")
    with pytest.raises(InputError, match="only 0 of 0 passages"):
        rows(Mdqa(source=source, split="all", documents=2, questions=1, passage_words=1000))
    for content, message in (('{"title": "t"}', "row 1: no 'text'"), ('{"title": 3, "text": "x"}', "row 1: 'title'")):
        (tmp_path / "c.jsonl").write_text(content)
        with pytest.raises(InputError, match=message):
            rows(Mdqa(source=source, split="all", documents=2, questions=1, corpus=str(tmp_path / "c.jsonl")))
    # Without documents there are none to draw.
    assert len(rows(Mdqa(source=source, split="all", documents=1, questions=8, passage_words=1000))) == 8


def test_an_answer_of_one_letter_is_told_from_words_that_hold_it(tmp_path: Path) -> None:
    rows_of = [{"question": f"q{n}", "answers": [f"s{n}"], "text": f"s{n} is here"} for n in range(9)]
    rows_of += [{"question": "which letter", "answers": ["S"], "text": "it is S"}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows_of)))
    made = rows(Mdqa(source=str(tmp_path / "q.jsonl"), split="all", documents=4, position=1, questions=None))
    assert len(made) == 10
    (row,) = [row for row in made if row["references"] == ["S"]]
    assert len(documents(row)) == 4


def test_random_order_is_said_and_the_gold_document_keeps_its_place(tmp_path: Path) -> None:
    path = tmp_path / "retrieved.jsonl"
    with path.open("w") as file:
        for n in range(30):
            others = [{"title": f"{n}.{rank}", "text": f"text {n}.{rank}", "isgold": False} for rank in range(6)]
            gold = {"title": "gold", "text": f"It was author{n:02d}.", "isgold": True}
            file.write(
                json.dumps({"question": f"who {n}", "answers": [f"author{n:02d}"], "ctxs": [gold, *others]}) + "\n"
            )
    knobs: dict = {
        "source": str(path),
        "split": "all",
        "questions": 30,
        "positions": [1, 4],
        "distractors": "retrieved",
    }
    given, drawn = (rows(Mdqa(documents=5, order=order, **knobs)) for order in ("given", "random"))
    orders = set()
    for plain, row in zip(given, drawn, strict=True):
        ranked, shown = documents(plain), documents(row)
        at = row["position"] - 1
        assert ranked.pop(at) == shown.pop(at)
        assert sorted(shown) == sorted(ranked), "the best ranked are kept"
        orders.add(tuple(ranked.index(text) for text in shown))
        assert (row["example_id"], row["answer"]) == (plain["example_id"], plain["answer"])
    assert len(orders) > 10
    pairs = zip(drawn[::2], drawn[1::2], strict=True)
    assert all(documents(one)[1:] == [*documents(two)[:3], documents(two)[4]] for one, two in pairs), "they pair"


def test_the_prompt_of_a_random_order_is_lost_in_the_middles_to_the_letter() -> None:
    plain, drawn = (rows(Mdqa(documents=3, position=2, questions=1, order=order))[0] for order in ("given", "random"))
    head = (
        "Write a high-quality answer for the given question using only the provided search results "
        "(some of which might be irrelevant)."
    )
    assert plain["prompt"].startswith(f"{head}\n\nDocument [1]")
    assert drawn["prompt"] == plain["prompt"].replace(head, f"{head} The search results are ordered randomly.")
    with pytest.raises(InvalidValueError, match="without query_aware"):
        Mdqa(order="random", query_aware=True)


@pytest.mark.skipif(not REAL.exists(), reason="the real questions are not beside this checkout")
@pytest.mark.parametrize(("shown", "words", "tokens"), [(20, 100, 3465), (120, 118, 24_300)])
def test_pieces_make_prompts_of_the_published_length(shown: int, words: int, tokens: int) -> None:
    # 3,465 by LLaMA's tokenizer (Liu et al., appendix E), whose counts Mistral's first one comes near.
    tokenizer = sentencepiece.SentencePieceProcessor(MISTRAL)
    task = Mdqa(source=str(REAL), split="all", documents=shown, positions="random", questions=40, passage_words=words)
    made = rows(task)
    lengths = [len(tokenizer.encode(row["prompt"])) for row in made]
    assert np.mean(lengths) == pytest.approx(tokens, rel=0.03)
    assert task.tokens_estimate() == pytest.approx(np.mean(lengths), rel=0.04)
    for row in made:
        texts = documents(row)
        assert len(texts) == shown
        texts.pop(row["position"] - 1)
        answers = [normalise(answer) for answer in row["references"]]
        assert not any(answer in normalise(text) for text in texts for answer in answers)
