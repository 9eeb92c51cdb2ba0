"""Haystacks: whole sentences, needles at sentence breaks, prompts of an exact length by any tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import toy_tokenizers

from kvray.errors import InputError
from kvray.models.reference import resolve
from kvray.models.tokenizer import TokenCounter, token_counter
from kvray.tasks import world
from kvray.tasks.base import CountTokens
from kvray.tasks.needle import haystack
from kvray.tasks.needle.haystack import Frame, Haystack, added, fill, insert, tiny
from kvray.tasks.qa.questions import normalise
from kvray.tasks.sources.sentences import LONGEST, split_sentences

TEXT = (
    'Dr. Ada met J. K. Lee at 3.5 miles.  "Stop!" she said.\nWhy? (He knew.) No one\nelse did\n\nA new day. '
    "It cost 2.50 e.g. that... And so on!"
)
TAIL = "\n\nWhat is the value of key 12?"


def count_words(texts: Sequence[str]) -> np.ndarray:
    return np.array([len(text.split()) for text in texts], dtype=np.int64)


def count_oddly(texts: Sequence[str]) -> np.ndarray:
    """Count as no sum of sentences does: long texts pack better, and the end of a text matters."""
    return np.array([int(len(text) ** 0.9) + (hash_free(text) % 7) for text in texts], dtype=np.int64)


def hash_free(text: str) -> int:
    return sum(map(ord, text[-5:]))


def counters() -> dict[str, CountTokens]:
    toys = {name: TokenCounter(getattr(toy_tokenizers, name)()) for name in ("digits", "threes", "spaced", "bridging")}
    return {**toys, "kvray-tiny": token_counter(resolve("kvray-tiny")), "words": count_words, "oddly": count_oddly}


def numbered(sentences: int) -> list[str]:
    return [f" The value {n} of key {n * 37 % 1000} is in it{', and so on' * (n % 4)}." for n in range(sentences)]


def test_sentences_keep_the_white_space_before_them() -> None:
    assert split_sentences(TEXT) == [
        "\n\nDr. Ada met J. K. Lee at 3.5 miles.",
        ' "Stop!"',
        " she said.",
        " Why?",
        " (He knew.)",
        " No one else did",
        "\n\nA new day.",
        " It cost 2.50 e.g. that...",
        " And so on!",
    ]
    assert "".join(split_sentences(TEXT)).split() == TEXT.split(), "nothing is lost"
    assert split_sentences("\u4f60\u597d\u3002\u518d\u89c1\u3002") == ["\n\n\u4f60\u597d\u3002", "\u518d\u89c1\u3002"]


def test_a_table_is_no_sentence() -> None:
    assert split_sentences("One. " + "cell " * LONGEST + "end.\n\nTwo.") == ["\n\nOne.", "\n\nTwo."]
    assert split_sentences(" \n\n ") == []


@pytest.mark.parametrize(
    ("depth", "at"), [(0, 0), (9.9, 0), (10, 1), (29.9, 1), (30, 2), (50, 2), (59.9, 2), (60, 3), (99.9, 3), (100, 4)]
)
def test_a_needle_goes_in_at_the_last_break_before_its_depth(depth: float, at: int) -> None:
    pieces = ["\n\nA.", " B b.", " C c c.", " D d d d."]
    until = np.array([0, 1, 3, 6, 10])
    expected = "".join([*pieces[:at], " NEEDLE.", *pieces[at:]]).lstrip()
    assert insert(pieces, until, [(depth, " NEEDLE.")]) == expected


def test_several_needles_stand_in_the_order_of_their_depths() -> None:
    pieces, until = [" A.", " B.", " C."], np.array([0, 5, 10, 15])
    made = insert(pieces, until, [(100, " four."), (40, " three."), (0, " one."), (35, " two.")])
    assert made == "one. A. two. three. B. C. four."


@pytest.mark.parametrize("name", sorted(counters()))
def test_every_prompt_is_within_one_sentence_of_its_length(name: str) -> None:
    count = counters()[name]
    pieces = numbered(60)
    hay = Haystack(pieces, count)
    needles = ((33.0, " Key 12 is 34567."), (100.0, " Key 13 is 9."))
    frames = [
        Frame(hay.supply(start), needles, "Text:\n\n", TAIL, length)
        for start in (0, 17, 59)
        for length in (150, 151, 157, 333, 1000)
    ]
    prompts, tokens = fill(frames, count)
    assert tokens == count(prompts).tolist(), "the tokenizer has counted the very prompts"
    cost = added(count, pieces)
    for frame, prompt, counted in zip(frames, prompts, tokens, strict=True):
        assert counted <= frame.length
        context = prompt.removeprefix("Text:\n\n").removesuffix(TAIL)
        bare = context.replace(" Key 12 is 34567.", "", 1).replace("Key 12 is 34567.", "", 1)
        bare = bare.replace(" Key 13 is 9.", "")
        used = sum(bare.count(piece.strip()) for piece in pieces)
        start = next(n for n, piece in enumerate(pieces) if bare.strip().startswith(piece.strip()))
        order = [pieces[(start + n) % 60] for n in range(used + 1)]
        assert bare.strip() == "".join(order[:-1]).strip(), "whole sentences, in order, wrapped round"
        following = cost[(start + used) % 60]
        longer = insert(order, np.concatenate(([0], np.cumsum(added(count, order)))), needles)
        room = frame.length - counted
        assert room < following or count([f"Text:\n\n{longer}{TAIL}"])[0] > frame.length, "no other sentence has room"


def test_the_haystack_is_the_same_at_every_depth_and_a_shorter_one_its_beginning() -> None:
    count = token_counter(resolve("kvray-tiny"))
    hay = Haystack(numbered(40), count)
    frames = [
        Frame(hay.supply(7), ((depth, " NEEDLE."),), "", "", size) for size in (200, 500) for depth in (0, 40, 100)
    ]
    prompts, _ = fill(frames, count)
    bare = [prompt.replace(" NEEDLE.", "").replace("NEEDLE. ", "") for prompt in prompts]
    assert bare[0] == bare[1] == bare[2] and bare[3] == bare[4] == bare[5]
    assert bare[3].startswith(bare[0]) and len(bare[3]) > 2 * len(bare[0])


def test_sentences_that_tell_the_fact_are_passed_by() -> None:
    pieces = [" Rome is old.", " The ROME, of all!", " Oslo is cold.", " Bern is small."]
    hay = Haystack(pieces, count_words)
    (prompt,), _ = fill([Frame(hay.supply(1, [normalise("the Rome")]), (), "", "", 14)], count_words)
    assert prompt == "Oslo is cold. Bern is small. Oslo is cold. Bern is small."
    with pytest.raises(InputError, match="every sentence of it holds 'is' or 'rome'"):
        fill([Frame(hay.supply(1, ["is", "rome"]), (), "", "", 10)], count_words)


@pytest.mark.parametrize("length", [1, 9, 11])
def test_a_length_without_room_for_a_sentence_is_refused(length: int) -> None:
    hay = Haystack([" four words of text."], count_words)
    frame = Frame(hay.supply(0), ((50.0, " the needle."),), "", TAIL, length)
    with pytest.raises(InputError, match=rf"lengths: found {length}; expected more: .* take \d+ tokens"):
        fill([frame], count_words)
    (prompt,), tokens = fill([Frame(frame.supply, frame.needles, "", TAIL, 13)], count_words)
    assert tokens == [13] and prompt == f"the needle. four words of text.{TAIL}"


def test_the_tiny_world_says_two_things_of_everyone_in_a_group() -> None:
    pieces = tiny("test", 0)
    assert len(pieces) == len(set(pieces)) == 2 * world.group_size("test")
    names = {world.name_of("test", person) for person in range(world.group_size("test"))}
    told = [piece.split(" of ")[1].split(" is ")[0] for piece in pieces]
    assert set(told) == names and told[::2] == told[1::2]
    relations = [piece.split()[1] for piece in pieces]
    assert all(first != second for first, second in zip(relations[::2], relations[1::2], strict=True))
    assert all(relations.count(kind) > 2000 for kind in world.RELATION_NAMES)
    assert tiny("test", 1)[:2] != pieces[:2] and tiny("train", 0)[0].split(" of ")[1].split(" is ")[0] not in names


def test_text_of_ones_own_is_read_from_files_and_rows(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("Third. Fourth.")
    (tmp_path / "a.txt").write_text("First. Second.\n")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"text": text}) for text in ("One. Two.", "Three.")))
    assert haystack.read(str(tmp_path), count_words, "test", 0).pieces == [
        "\n\nFirst.", " Second.", "\n\nThird.", " Fourth.",
    ]  # fmt: skip
    assert haystack.read(str(rows), count_words, "test", 0).pieces == ["\n\nOne.", " Two.", "\n\nThree."]
    assert world.source_identity(str(rows)) != world.source_identity(str(tmp_path / "a.txt"))


def test_a_text_without_sentences_is_refused(tmp_path: Path) -> None:
    (tmp_path / "table.txt").write_text("cell " * LONGEST)
    with pytest.raises(InputError, match=f"no sentence of at most {LONGEST} characters"):
        haystack.read(str(tmp_path / "table.txt"), count_words, "test", 0)
    with pytest.raises(InputError, match="cannot be read"):
        haystack.read(str(tmp_path / "none.txt"), count_words, "test", 0)
