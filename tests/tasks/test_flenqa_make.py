"""FLenQA's generator: texts with one solution, of the asked length and order, in padding that says nothing."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from toy_tokenizers import digits, threes

from kvray.errors import InputError
from kvray.models.reference import resolve
from kvray.models.tokenizer import TokenCounter, token_counter
from kvray.tasks import world
from kvray.tasks.base import CountTokens
from kvray.tasks.flenqa.facts import ATTRIBUTES, FILLERS, PROPERTIES, RELATIONS, WIDTH, Cast, Instance, make, slots
from kvray.tasks.flenqa.flenqa import Flenqa
from kvray.tasks.flenqa.make import Maker, books, split
from kvray.tasks.flenqa.published import Condition, Dispersion, Padding, Subtask
from kvray.tasks.rng import draws, key_of

SUBTASKS: tuple[Subtask, ...] = ("MonoRel", "PIR", "RuleTaker")
PADDINGS = ("books", "same", "identity")
DISPERSIONS = ("first", "middle", "last", "random")
NAME = r"[A-Z][a-z]+ [A-Z][a-z]+"


def count_words(texts: Sequence[str]) -> np.ndarray:
    return np.array([len(text.split()) for text in texts], dtype=np.int64)


def maker(seed: int = 0, shortest: int = 250, count: CountTokens = count_words) -> Maker:
    return Maker(1, seed, shortest, count)


def conditions(
    paddings: Sequence[Padding], dispersions: Sequence[Dispersion], lengths: Sequence[int]
) -> list[Condition]:
    return [Condition(*each) for each in itertools.product(paddings, dispersions, lengths)]


def solve(subtask: Subtask, text: str, question: str, rule: str) -> bool:
    """Answer a question from every fact of a text, as a careful reader would; asserts that no two facts disagree."""
    if subtask == "MonoRel":
        asked = re.fullmatch(rf"Is ({NAME}) (\w+) than ({NAME})\?", question)
        assert asked
        facts = re.findall(rf"({NAME}) is (\w+) than ({NAME})\.", text)
        above = {(x, z) for x, relation, z in facts if relation == asked[2]}
        people = {name for pair in above for name in pair}
        for _ in range(2):
            above |= {(x, z) for x, y in above for w, z in above if y == w}
        assert not {(x, y) for x, y in above if (y, x) in above}
        assert {asked[1], asked[3]} <= people
        first, second = (asked[1], asked[3]) in above, (asked[3], asked[1]) in above
        assert first != second, "one of the two orders follows"
        return first
    if subtask == "PIR":
        asked = re.fullmatch(rf"({NAME}) is in an? (\S+) room\.", question)
        assert asked
        where = {(x, room) for x, room in re.findall(rf"({NAME}) is in ([A-Z][a-z]+'s [a-z ]+)\.", text)}
        looks = {(room, kind) for room, kind in re.findall(r"(?<!to )([A-Z][a-z]+'s [a-z ]+) is (\S+)\.", text)}
        looks = {pair for pair in looks if f"The hallway next to {pair[0]} is {pair[1]}." not in text}
        assert len(dict(where)) == len(where) and len(dict(looks)) == len(looks)
        return dict(looks)[dict(where)[asked[1]]] == asked[2]
    asked = re.fullmatch(rf"({NAME}) is (\w+)\.", question)
    needed = re.fullmatch(r"If someone is (\w+) and (\w+) then they are (\w+)\.", rule)
    assert asked and needed and needed[3] == asked[2]
    has = {attribute for name, attribute in re.findall(rf"({NAME}) is (\w+)\.", text) if name == asked[1]}
    assert len(has) == 2 and asked[2] not in has
    return has >= {needed[1], needed[2]}


def keys_of(instance: Instance, text: str) -> list[str]:
    """Return the text's key paragraphs, in its order."""
    return [line for line in text.split("\n") if any(fact.sentence in line for fact in instance.facts)]


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_every_text_has_one_solution_and_it_is_the_label(subtask: Subtask) -> None:
    asked = conditions(PADDINGS, ("random", "middle"), (250, 900))
    for number in range(16):
        instance, texts = maker().texts(subtask, number, asked)
        for text in texts:
            assert solve(subtask, text, instance.question, instance.rule) == instance.label


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_labels_balance_in_every_pair_and_are_not_told_by_the_number(subtask: Subtask) -> None:
    labels = [maker().texts(subtask, number, [])[0].label for number in range(60)]
    pairs = list(zip(labels[::2], labels[1::2], strict=True))
    assert set(pairs) == {(True, False), (False, True)}


@pytest.mark.parametrize("subtask", ["MonoRel", "PIR"])
def test_the_text_is_the_same_whichever_answer_is_asked_for(subtask: Subtask) -> None:
    for number in range(20):
        words = draws(key_of("test"), number, number + 1, WIDTH)[0]
        true, false = (make(subtask, words, Cast(words[:2]), label) for label in (True, False))
        assert true.facts == false.facts and true.question != false.question
    # So what a question names is in the text for True and for False alike.
    if subtask == "PIR":
        for instance in (true, false):
            kind = instance.question.split()[-2]
            assert any(kind in text for fact in instance.facts for text in fact.paragraph(fact.least))


def test_one_fact_of_ruletaker_is_not_enough() -> None:
    one_given = set()
    for number in range(60):
        instance, _ = maker().texts("RuleTaker", number, [])
        needed = re.findall(r"\w+", instance.rule)[3:6:2]
        given = tuple(fact.sentence.split()[-1].rstrip(".") in needed for fact in instance.facts)
        assert all(given) == instance.label
        one_given.add(given)
    assert one_given == {(True, True), (True, False), (False, True)}


@pytest.mark.parametrize("tokenizer", ["kvray-tiny", "digits", "threes", "words"])
def test_lengths_are_met_by_each_tokenizer(tokenizer: str) -> None:
    counts: dict[str, CountTokens] = {
        "kvray-tiny": token_counter(resolve("kvray-tiny")),
        "digits": TokenCounter(digits()),
        "threes": TokenCounter(threes()),
        "words": count_words,
    }
    count = counts[tokenizer]
    # Toys that know few words need three times the tokens for the same key paragraphs.
    lengths = (250, 500, 1000, 3000) if tokenizer in ("kvray-tiny", "words") else (500, 1000, 3000)
    asked = conditions(PADDINGS, ("random", "first"), lengths)
    off = []
    for subtask, number in itertools.product(SUBTASKS, range(4)):
        _, texts = maker(shortest=lengths[0], count=count).texts(subtask, number, asked)
        off += [int(tokens) - each.length for tokens, each in zip(count(texts), asked, strict=True)]
    assert np.abs(off).max() <= 70
    assert np.abs(off).mean() <= 35, "nearest to half a sentence"


def test_32k_tokens_are_met() -> None:
    count = token_counter(resolve("kvray-tiny"))
    asked = conditions(("books", "same"), ("random",), (32768,))
    for subtask in SUBTASKS:
        instance, texts = maker(shortest=32768, count=count).texts(subtask, 0, asked)
        assert np.abs(count(texts) - 32768).max() <= 40
        assert all(solve(subtask, text, instance.question, instance.rule) == instance.label for text in texts)


@pytest.mark.parametrize("subtask", SUBTASKS)
@pytest.mark.parametrize("padding", ["books", "same"])
def test_key_paragraphs_stand_where_they_are_asked(subtask: Subtask, padding: str) -> None:
    spread = []
    for number in range(12):
        asked = conditions((padding,), DISPERSIONS, (600, 2000))  # type: ignore[arg-type]
        instance, texts = maker().texts(subtask, number, asked)
        at = {}
        for condition, text in zip(asked, texts, strict=True):
            keys = keys_of(instance, text)
            assert len(keys) == 2 and [instance.facts[n].sentence in keys[n] for n in (0, 1)] == [True, True]
            before, _, rest = text.partition(keys[0])
            between, _, after = rest.partition(keys[1])
            gaps = [len(part.split()) for part in (before, between, after)]
            at[condition.dispersion, condition.length] = [gap / sum(gaps) for gap in gaps]
        for length in (600, 2000):
            assert at["first", length] == [0, 0, 1] and at["last", length] == [1, 0, 0]
            assert at["middle", length][1] == 0 and abs(at["middle", length][0] - 0.5) < 0.07
        # The same share of the padding at each length, so that length is all that differs.
        assert np.allclose(at["random", 600], at["random", 2000], atol=0.12)
        spread.append(at["random", 2000])
    assert np.ptp(spread, axis=0).min() > 0.3, "random placements differ between instances"


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_key_paragraphs_stay_and_longer_padding_begins_as_the_shorter(subtask: Subtask) -> None:
    asked = conditions(("books", "same"), ("first",), (500, 1000, 4000))
    for number in range(4):
        instance, texts = maker().texts(subtask, number, asked)
        assert len({tuple(keys_of(instance, text)) for text in texts}) == 1
        for short, long in itertools.pairwise(texts[:3]):
            assert long.startswith(short)
        for short, long in itertools.pairwise(texts[3:]):
            assert long.startswith(short)
    random = conditions(("same",), ("random",), (500, 1000))
    instance, texts = maker().texts(subtask, 0, random)
    short, long = (" ".join(line for line in text.split("\n") if line not in keys_of(instance, text)) for text in texts)
    assert long.startswith(short)


def test_the_shortest_published_length_is_key_paragraphs_alone() -> None:
    count = token_counter(resolve("kvray-tiny"))
    for subtask, number in itertools.product(SUBTASKS, range(10)):
        _, texts = maker(count=count).texts(subtask, number, conditions(PADDINGS, DISPERSIONS, (250,)))
        assert len({*texts}) == 1 and texts[0].count("\n") == 1


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_padding_names_nobody_of_the_question(subtask: Subtask) -> None:
    asked = conditions(("books", "same"), ("random",), (3000,))
    for number in range(6):
        instance, texts = maker().texts(subtask, number, asked)
        for text in texts:
            keys = keys_of(instance, text)
            padding = "\n".join(line for line in text.split("\n") if line not in keys)
            assert len(padding.split()) > 2000
            names = set(re.findall(NAME, " ".join(fact.sentence for fact in instance.facts)))
            rooms = set(re.findall(r"[A-Z][a-z]+'s [a-z ]+?(?= is|\.)", " ".join(f.sentence for f in instance.facts)))
            assert names and not [name for name in names | rooms if name in padding]


def test_prose_and_fillers_hold_no_word_that_a_question_asks_for() -> None:
    telling = {*RELATIONS, *ATTRIBUTES, *itertools.chain(*PROPERTIES), "true", "false"}
    prose = " ".join(" ".join(paragraph) for paragraph in itertools.islice(books(1, 1), 400))
    templates = " ".join(itertools.chain(*FILLERS.values()))
    filled = " ".join(" ".join(slots(words).values()) for words in draws(1, 0, 400, 28))
    for text in (prose, templates, filled):
        assert not telling & set(re.findall(r"[\w-]+", text.lower()))
    assert not [name for name in world.FIRST_NAMES if re.search(rf"\b{name}\b", prose)]


def test_same_padding_is_as_the_key_paragraphs_and_identity_is_they() -> None:
    for subtask in SUBTASKS:
        asked = [Condition("same", "last", 2500), Condition("identity", "last", 2500)]
        instance, (same, identity) = maker().texts(subtask, 1, asked)
        keys = keys_of(instance, same)
        others = [line for line in same.split("\n") if line not in keys]
        assert len(set(others)) == len(others) > 10
        # Sentence counts of whole paragraphs are those of the key paragraphs.
        assert {line.count(". ") for line in others[:-1]} <= {line.count(". ") for line in keys}
        assert set(identity.split("\n")[:-3]) == set(keys)


def test_padding_runs_out_with_a_message() -> None:
    with pytest.raises(InputError, match=r"padding 'same' can fill: the tiny world has no more than \d+ people"):
        maker().texts("MonoRel", 0, [Condition("same", "first", 1_000_000)])


def test_a_text_of_ones_own_pads_books(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("".join(f'Line {n} begins here. "It goes on." It ends with {n}!\n\n' for n in range(300)))
    task = Flenqa(padding_source=str(path), paddings="books", questions=2, lengths=[250, 900], dispersions="first")
    context = task.context(count_words)
    made = task.build(0, 12, context).to_pylist()
    padded = made[1]["prompt"]
    first = int(re.search(r"Line (\d+) begins here\.", padded)[1])  # type: ignore[index]
    assert f'Line {(first + 1) % 300} begins here. "It goes on." It ends with {(first + 1) % 300}!\n' in padded
    assert "Line" not in made[0]["prompt"] or made[0]["prompt"].count("Line") < 4
    assert set(task.sources()) == {"source", "padding_source"} and "padding_source" not in task.recipe()
    assert len({row["prompt"] for row in made}) == 12


def test_texts_are_cut_into_sentences_of_bounded_length() -> None:
    words = " ".join(f"w{n}" for n in range(100))
    assert split(["One. Two? “Three!” Four", words], "x") == [
        ["One.", "Two?", "“Three!”", "Four"],
        [" ".join(f"w{n}" for n in range(low, min(low + 40, 100))) for low in (0, 40, 80)],
    ]
    with pytest.raises(InputError, match="padding_source: x has no text"):
        split(["\n \n"], "x")
