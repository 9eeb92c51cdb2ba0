"""Sentences that answer Natural Questions: by kind of question, always with the answer."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from kvray.tasks.qa.mdqa import Mdqa
from kvray.tasks.qa.questions import best_subspan_em
from kvray.tasks.qa.sentences import worded

REAL = Path(__file__).parents[3] / "shared" / "data" / "nq-open-oracle.jsonl.gz"


@pytest.mark.parametrize(
    ("question", "answer", "sentence"),
    [
        # Who, as a subject.
        ("who got the first nobel prize in physics", "Wilhelm Conrad Röntgen",
         "Wilhelm Conrad Röntgen got the first nobel prize in physics."),
        ("who sings the wire season 5 theme song?", "Steve Earle", "Steve Earle sings the wire season 5 theme song."),
        ("who is the owner of reading fc", "Xiu Li Dai", "Xiu Li Dai is the owner of reading fc."),
        ("who will take the throne", "planner iT", "Planner iT will take the throne."),
        ("who's the dwarf", "Tyrion", "Tyrion is the dwarf."),
        ("who has the most points", "from Ohio", "It is from Ohio."),
        # Who, as an object, or unsafe to tell.
        ("who did dwight howard play for last year", "Atlanta Hawks", "It was Atlanta Hawks."),
        ("who was the temple of vesta built for", "Vesta", "It was Vesta."),
        ("who is emma dating in once upon a time", "Hook", "It is Hook."),
        ("who invented the printing press and what year", "circa 1439", "The answer is circa 1439."),
        # What and which.
        ("what is the capital of france", "Paris", "The capital of france is Paris."),
        ("what are the main gases", "nitrogen", "The main gases are nitrogen."),
        ("what's the dogs name in wizard of oz", "Toto", "The dogs name in wizard of oz is Toto."),
        ("what is the cross on a letter t called", "arm", "It is arm."),
        ("what year did the price is right first air", "November 26, 1956", "It was on November 26, 1956."),
        ("what song did the band play when it sank", '"Autumn"', 'The song was "Autumn".'),
        ("what does sip stand for", "Session Initiation Protocol", "The answer is Session Initiation Protocol."),
        ("which apostle spoke at the council", "Paul", "It is Paul."),
        ("name the longest river", "the Nile", "The longest river is the Nile."),
        # When.
        ("when did american idol end the first time", "April 7, 2016", "It was on April 7, 2016."),
        ("when was national service abolished in the uk", "1960", "National service was abolished in the uk in 1960."),
        ("when was the letter j introduced to the alphabet", "in Middle High German",
         "The letter j was introduced to the alphabet in Middle High German."),
        ("when was the statue of liberty built", "Paris", "It was Paris."),
        ("when is the bridge going to be finished", "by June 15, 2018", "It is by June 15, 2018."),
        ("when does season 8 start", "2019", "It is in 2019."),
        ("when will it end", "the 1930s", "It will be in the 1930s."),
        # Where.
        ("where was the remake of dirty dancing filmed", "High Hampton Inn",
         "The remake of dirty dancing was filmed in High Hampton Inn."),
        ("where is dakar located on the world map", "Senegal", "Dakar is in Senegal."),
        ("where does iron ore come from in australia", "Western Australia", "It comes from Western Australia."),
        ("where does the coral sea meet the pacific ocean", "in the east", "It is in the east."),
        # How and why.
        ("how many episodes are there in modern family", "201", "There are 201 episodes in modern family."),
        ("how many stores does lowes have in canada", "62", "The number is 62."),
        ("how many runs were in the book", "a few", "The number was a few."),
        ("how long is one full rotation of the earth", "about 24 hours", "It is about 24 hours."),
        ("why was hong kong important", "trade", "The reason was trade."),
        # No question at all.
        ("the elements in each period have the same number of", "electron shells",
         "The elements in each period have the same number of electron shells."),
        ("mount everest is part of what mountain range", "Himalayas", "Mount everest is part of Himalayas."),
        ("latest season of the show", "fourteen,", "The answer is fourteen."),
        ("who plays in washington", "the D.C.\nUnited Jr.", "The D.C. United Jr. plays in washington."),
        ("", "iPods {", "The answer is iPods {."),
        ("who bought it", "iPods", "iPods bought it."),
    ],
)  # fmt: skip
def test_a_sentence_fits_its_question(question: str, answer: str, sentence: str) -> None:
    assert worded(question, answer) == sentence


@pytest.mark.skipif(not REAL.exists(), reason="the real questions are not beside this checkout")
def test_every_real_question_gets_one_line_that_scores_and_most_say_what_was_asked() -> None:
    with gzip.open(REAL, "rt", encoding="utf-8") as file:
        asked = [(row["question"], row["answers"]) for row in map(json.loads, file)]
    made = [(question, answers, worded(question, answers[0])) for question, answers in asked]
    for question, answers, sentence in made:
        assert best_subspan_em(sentence, answers[:1]) == 1.0, question
        assert "\n" not in sentence and sentence.endswith((".", "!", "?")) and not sentence.endswith(".."), sentence
        assert sentence != answers[0] and len(sentence.split()) < 60
    frames = ("It is ", "It was ", "The answer is ", "The number is ")
    assert sum(not sentence.startswith(frames) for _, _, sentence in made) > 0.5 * len(made) == 0.5 * 2655


def test_sentences_by_rules_have_an_identity_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": "who wrote it", "answers": ["Ann"], "text": "Ann did."}')
    source = str(tmp_path / "q.jsonl")
    assert Mdqa(source=source, answers="sentence").recipe()["sentences"] == 2
    for other in ({"answers": "short"}, {}, {"answers": "sentence", "answer_writer": "m"}):
        assert "sentences" not in Mdqa(source=source, **other).recipe()
    assert "sentences" not in Mdqa(answers="sentence").recipe(), "the tiny world's are what they were"
