"""Needles in a haystack: Kamradt's prompt and needle, many needles of our own, exact scoring."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import toy_tokenizers

from kvray.errors import InputError, InvalidValueError
from kvray.models.reference import resolve
from kvray.models.tokenizer import TokenCounter, token_counter
from kvray.store.schemas import EXAMPLE_SCHEMA
from kvray.tasks import world
from kvray.tasks.base import CountTokens
from kvray.tasks.needle.needle import FAMILIES, TEXTS, NeedleInHaystack
from kvray.tasks.qa.mdqa import Mdqa
from kvray.tasks.qa.questions import normalise
from kvray.tasks.qa.recall import Recall

GOLDEN = {
    "many": "80f86797f1d2e18541027f7772a388564524a7e4334fdd2d250c5a27031b37bf",
    "classic": "cd2044819c65c27f86d94d002e8171f4ea2a859bac326c06a9d831a01c9e083f",
    "own text": "be6f132a0f0fabcfeedcb8da2b795f0349d5a554fdaf57edc5829385f57fa249",
}
ESSAY = "One day it rained. Nobody minded.\n\nThe river rose. It fell again. So it goes."


def count_words(texts: Sequence[str]) -> np.ndarray:
    return np.array([len(text.split()) for text in texts], dtype=np.int64)


def rows(task: NeedleInHaystack, count: CountTokens = count_words) -> list[dict]:
    context = task.context(count)
    return task.build(0, task.count(context), context).to_pylist()


@pytest.fixture
def essay(tmp_path: Path) -> str:
    path = tmp_path / "essay.txt"
    path.write_text(ESSAY)
    return str(path)


def started(row: dict) -> str:
    """Return the haystack of a row without its needle and question."""
    context = row["prompt"].rpartition("\n\n")[0]
    needle = f"{row['answer'].removesuffix('.')}."
    return " ".join(context.replace(needle, " ").split())


def test_the_prompt_is_kamradts_with_a_needle_of_ours(essay: str) -> None:
    (row,) = rows(NeedleInHaystack(source=essay, rows=1, lengths=60, depths=[0], seed=3))
    fact, value = row["answer"], row["references"][0]
    assert fact.endswith(f" is {value}.")
    question = f"What is {fact[0].lower()}{fact[1:].removesuffix(f' is {value}.')}?"
    assert row["prompt"].startswith(f"{fact} ") or row["prompt"].startswith(f"{fact}\n\n")
    assert row["prompt"].endswith(f"\n\n{question} Don't give information outside the document or repeat your findings")
    assert row["depth"] == 0 and row["length"] == 60 and row["position"] is None


def test_the_classic_needle_is_san_francisco_to_the_letter(essay: str) -> None:
    made = rows(NeedleInHaystack(source=essay, needles="classic", rows=1, lengths=48, depths=[0, 70, 100]))
    needle = "The best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day.\n"
    tail = (
        "\n\nWhat is the best thing to do in San Francisco? "
        "Don't give information outside the document or repeat your findings"
    )
    first = ["One day it rained.", "Nobody minded.", "The river rose.", "It fell again.", "So it goes."]
    begins = next(n for n, sentence in enumerate(first) if made[2]["prompt"].startswith(sentence))
    one, two = first[begins], first[(begins + 1) % 5]
    gap = "\n\n" if two[:3] in ("One", "The") else " "
    before = "\n\n" if one[:3] in ("One", "The") else " "
    assert [row["prompt"] for row in made] == [
        f"{needle}{before}{one}{gap}{two}{tail}",
        f"{one}\n{needle}{gap}{two}{tail}",
        f"{one}{gap}{two}\n{needle}{tail}",
    ]
    assert made[0]["answer"] == needle.strip() and made[0]["references"] == TEXTS["facts"]


def test_answers_restate_the_one_sentence_that_tells_the_fact() -> None:
    for row in rows(NeedleInHaystack(rows=60, lengths=500, split="train")):
        assert row["prompt"].count(row["answer"]) == 1
        name = row["answer"].split(" of ")[1].split(" is ")[0]
        context = row["prompt"].rpartition("\n\n")[0]
        assert context.count(name) == 1, "nothing else is said of the person"
        assert context.count(f" {row['references'][0]}.") == 1, "nobody else has the value"
        assert row["answer"].endswith(row["references"][0])


def test_values_are_told_apart_from_each_other_and_from_every_question() -> None:
    values = [normalise(value) for family in FAMILIES for value in family.values]
    assert len(values) == len(set(values)) == 16 * len(FAMILIES) and all(values)
    for one, other in itertools.permutations(values, 2):
        assert one not in other
    questions = normalise(" ".join(family.question("Ada Lee") for family in FAMILIES))
    assert not [value for value in values if value in questions]
    assert len({family.subject for family in FAMILIES}) == len(FAMILIES)


@pytest.mark.parametrize("own", [False, True])
def test_no_needle_comes_twice(own: bool, essay: str) -> None:
    people = world.group_size("test")
    source = essay if own else "tiny"
    task = NeedleInHaystack(source=source, rows=2 * people, lengths=80)
    context = task.context(count_words)
    made = pa.concat_tables([task.build(0, 300, context), task.build(people, people + 300, context)]).to_pylist()
    questions = [row["prompt"].rpartition("\n\n")[2] for row in made]
    assert len(set(questions)) == 600
    names = [world.name_of("test", person) for person in range(people)]
    assert all(any(name in question for name in names) for question in questions)
    if own:
        assert len({row["answer"].split(" is ")[1] for row in made}) > 100


def test_a_needle_is_asked_about_at_every_length_and_depth_in_the_same_haystack() -> None:
    made = rows(NeedleInHaystack(rows=3, lengths=[80, 200], depths=[0, 37.5, 100]))
    assert len(made) == 18 and len({row["example_id"] for row in made}) == 18
    for number in range(3):
        of_needle = made[6 * number : 6 * number + 6]
        assert len({row["question_id"] for row in of_needle}) == 1
        assert [(row["length"], row["depth"]) for row in of_needle] == [
            (80, 0.0), (80, 37.5), (80, 100.0), (200, 0.0), (200, 37.5), (200, 100.0),
        ]  # fmt: skip
        short, long = ({started(row) for row in of_needle[at : at + 3]} for at in (0, 3))
        assert len(short) == len(long) == 1 and long.pop().startswith(short.pop())
        assert of_needle[0]["prompt"].startswith(of_needle[0]["answer"])
        assert f"{of_needle[2]['answer']}.\n\nWhat" in of_needle[2]["prompt"]


def test_a_random_depth_belongs_to_the_needle_and_is_spread_evenly() -> None:
    made = rows(NeedleInHaystack(rows=400, lengths=[60, 90]))
    assert all(one["depth"] == two["depth"] for one, two in zip(made[::2], made[1::2], strict=True))
    depths = np.array([row["depth"] for row in made[::2]])
    assert np.abs(np.sort(depths) - np.linspace(0, 100, 400)).max() < 100 * 1.63 / 20, "Kolmogorov, 1 %"
    assert np.abs(np.corrcoef(np.arange(400), depths)[0, 1]) < 0.15


@pytest.mark.parametrize("kind", ["digits", "threes", "spaced", "bridging", None])
def test_prompts_keep_to_their_length_by_the_tokenizer(kind: str | None) -> None:
    count = TokenCounter(getattr(toy_tokenizers, kind)()) if kind else token_counter(resolve("kvray-tiny"))
    made = rows(NeedleInHaystack(rows=4, lengths=[512, 1500], depths=[0, 50, 100]), count)
    assert [row["prompt_tokens"] for row in made] == count([row["prompt"] for row in made]).tolist()
    longest = int(count([" The birthplace of Cortha Grisworth is Zannesse."])[0]) + 4
    assert all(0 <= row["length"] - row["prompt_tokens"] < 3 * longest for row in made)
    assert np.mean([row["length"] - row["prompt_tokens"] for row in made]) < longest


def test_a_length_without_room_names_the_knob(essay: str) -> None:
    with pytest.raises(InputError, match="lengths: found 20"):
        rows(NeedleInHaystack(source=essay, lengths=20, rows=1))


def test_a_row_is_a_pure_function_of_recipe_and_index() -> None:
    task = NeedleInHaystack(rows=20, lengths=[60, 100], depths=3)
    context = task.context(count_words)
    whole = task.build(0, 120, context)
    assert whole.schema.equals(EXAMPLE_SCHEMA) and task.count(context) == 120 == task.expected_rows()
    assert pa.concat_tables([task.build(a, b, context) for a, b in ((0, 7), (7, 64), (64, 120))]).equals(whole)
    fewer = NeedleInHaystack(rows=5, lengths=100, depths=[50])
    kept = fewer.build(0, 5, fewer.context(count_words)).to_pylist()
    assert kept == [row for row in whole.to_pylist()[:30] if row["length"] == 100 and row["depth"] == 50]
    assert rows(NeedleInHaystack(rows=1, lengths=60, seed=1)) != rows(NeedleInHaystack(rows=1, lengths=60))


def test_the_grid_can_be_written_as_people_write_it() -> None:
    assert NeedleInHaystack(depths=5).depth_steps() == (0, 25, 50, 75, 100)
    assert NeedleInHaystack(depths="0, 12.5,100").depth_steps() == (0, 12.5, 100)
    assert NeedleInHaystack(depths=[30]).depth_steps() == (30,)
    assert NeedleInHaystack().depth_steps() == (None,)
    assert NeedleInHaystack(lengths="512,1024").lengths == (512, 1024) and NeedleInHaystack(lengths=77).lengths == (77,)
    task = NeedleInHaystack(rows=7, lengths=[60, 100], depths=3)
    assert task.with_rows(13).expected_rows() == 18 and task.distinct_questions(18) == 3
    assert NeedleInHaystack().expected_rows() * NeedleInHaystack().tokens_estimate() > 350 * 3950


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"depths": 1}, r"type \[1\] for one depth"),
        ({"depths": [0, 101]}, r"found \[101.0\], expected percents"),
        ({"depths": [5, 5]}, "each once"),
        ({"depths": []}, "at least one"),
        ({"depths": "deep"}, "random"),
        ({"lengths": []}, "at least one"),
        ({"lengths": [512, 512]}, "each once"),
        ({"needles": "few"}, "many"),
        ({"split": "all"}, "train"),
    ],
)
def test_a_wrong_knob_is_refused(wrong: dict, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        NeedleInHaystack(**wrong)


@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        ("Eat a sandwich, and sit in Dolores Park!", tuple(TEXTS["facts"]), 1.0),
        ("You should eat the sandwich\nand then sit in dolores park", tuple(TEXTS["facts"]), 1.0),
        ("Eat a sandwich on a sunny day", tuple(TEXTS["facts"]), 0.0),
        ("Sit in Dolores Park", tuple(TEXTS["facts"]), 0.0),
        ("eating a sandwich and sitting in Dolores Park", tuple(TEXTS["facts"]), 0.0),
        ("", tuple(TEXTS["facts"]), 0.0),
        ("It is Smoked-Paprika", ["smoked paprika"], 0.0),
        ("It is smoked, paprika.", ["smoked paprika"], 1.0),
        ("the broken radio", ["a broken radio"], 1.0),
    ],
)
def test_every_fact_must_be_in_the_answer(answer: str, references: Sequence[str], score: float) -> None:
    assert NeedleInHaystack().score(answer, references) == score
    assert NeedleInHaystack().outcome(answer, references) == ("right" if score else "wrong")


def test_training_needles_are_never_evaluated(essay: str) -> None:
    train, test = NeedleInHaystack(split="train", seed=1), NeedleInHaystack(seed=2)
    assert train.overlaps(test) is None and train.overlaps(Mdqa()) is None and train.overlaps(Recall()) is None
    assert "split: train" in str(test.overlaps(NeedleInHaystack(source=essay, lengths=300)))
    assert "split: train" in str(test.overlaps(Mdqa())), "the tiny world's test people are shown to no training"
    assert "people" in str(train.overlaps(Mdqa(split="train"))) and train.overlaps(Mdqa(source=essay)) is None
    classic = NeedleInHaystack(needles="classic")
    assert "classic" in str(NeedleInHaystack(needles="classic", split="train").overlaps(classic))
    assert test.overlaps(classic) is None and classic.overlaps(test) is None and classic.overlaps(Mdqa()) is None


def test_identity_is_the_texts_content_not_its_path(essay: str, tmp_path: Path) -> None:
    (tmp_path / "copy.txt").write_text(ESSAY)
    first, second = NeedleInHaystack(source=essay), NeedleInHaystack(source=str(tmp_path / "copy.txt"))
    assert first.recipe() == second.recipe() and "source" not in first.recipe()
    assert first.sources() == second.sources() != NeedleInHaystack().sources()
    with pytest.raises(InputError, match="cannot be read"):
        NeedleInHaystack(source=str(tmp_path / "none.txt")).sources()


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_golden_bytes(name: str, essay: str) -> None:
    # Whoever changes these changes every dataset made so far: raise the task's VERSION.
    task = NeedleInHaystack(
        source=essay if name == "own text" else "tiny",
        needles="classic" if name == "classic" else "many",
        rows=20,
        lengths=[160, 300],
        depths="random" if name == "many" else [0, 50, 100],
    )
    made = json.dumps(rows(task, token_counter(resolve("kvray-tiny"))))
    assert hashlib.sha256(made.encode()).hexdigest() == GOLDEN[name]
