"""The text around FLenQA's key paragraphs: endless streams of sentences, of which a context takes the first so many.

Levy et al. (2024) pad with paragraphs of other instances ("same"), with prose of the Books Corpus ("books"), or with
copies of the key paragraphs ("identity"). Our prose is written from a small grammar; its people have no names, so
nothing in it bears on a question.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Literal

from kvray.errors import InputError
from kvray.tasks.flenqa.facts import WIDTH, Cast, make
from kvray.tasks.flenqa.prompts import Subtask
from kvray.tasks.rng import below, draws

Padding = Literal["same", "books", "identity"]
Paragraphs = Iterator[list[str]]
"""Paragraphs of sentences, without end."""
_AT_ONCE = 16
_LONGEST = 40
_END = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"'”’)]))\s+")  # noqa: RUF001

_WHO = (
    "ferryman", "widow", "clockmaker", "captain", "schoolmistress", "baker", "night watchman", "surveyor", "organist",
    "innkeeper", "gardener", "printer", "coachman", "midwife", "lamplighter", "bookseller",
)  # fmt: skip
_WHERE = (
    "the harbour", "the old mill", "the railway bridge", "the churchyard", "the customs house", "the upper meadow",
    "the lighthouse", "the market hall", "the ford", "the quarry", "the long lane", "the boathouse",
)  # fmt: skip
_WHAT = (
    "a lantern", "a sealed letter", "a birdcage", "a brass key", "a bundle of firewood", "a silver spoon", "a ledger",
    "a coil of rope", "a painted box", "a bottle of ink", "a sack of flour", "a pocket watch",
)  # fmt: skip
_WHEN = (
    "before dawn", "towards evening", "after the second bell", "late in the autumn", "on the first warm day",
    "during the thaw", "in the middle of the night", "shortly after noon", "when the fog lifted", "as the tide turned",
)  # fmt: skip
_SKY = (
    "Rain had been falling since the morning.", "A thin mist lay over the fields.", "The wind had dropped at last.",
    "Snow lay on the roofs and muffled every step.", "The moon came out from behind the hill.",
    "It was so hot that even the dogs kept to the shade.", "Thunder rolled somewhere beyond the river.",
    "The first leaves had begun to turn.", "Smoke rose straight up from the chimneys.",
    "Far away a train whistled and was gone.",
)  # fmt: skip
_TOLD = (
    "{When} the {who} came down to {where} with {what} under one arm.",
    "The {other} was already waiting there and said nothing for a long while.",
    '"You ought to have written," said the {other}, looking towards {place}.',
    "Nobody had expected to see {what} again, least of all the {who}.",
    "They walked as far as {place} without meeting a soul.",
    "The {who} thought of the years at sea and of the house behind {place}.",
    '"There is nothing to be done about it tonight," the {who} answered.',
    "A cart went by, loaded with hay, and its driver lifted his hat to the {other}.",
    "In the end the {other} took {what} and put it on the wall by {where}.",
    "The {who} counted the steps up to the door, as always, and knocked.",
    "Somewhere a window was opened, and a song could be heard for a moment.",
    "The {other} told a story about {thing} that had been lost near {place}.",
    "It seemed to the {who} that the road had never been so long.",
    "{When} they parted, and the {other} went back to {where} alone.",
    "On the table lay {thing}, a heel of bread and the newspaper of the day before.",
    "The {who} laughed, shook the water from a sleeve and sat down.",
)


def same(subtask: Subtask, key: int, row: int, cast: Cast, fillers: tuple[int, int]) -> Paragraphs:
    """Yield the key paragraphs of other instances of the task.

    Args:
        subtask: the task.
        key: of :mod:`kvray.tasks.rng`, for this purpose.
        row: the instance that is padded; its paddings are drawn for it alone.
        cast: its people and rooms; those of the padding come from the same supply, so that nobody is met twice.
        fillers: sentences beside the fact, per paragraph of an instance: as in the padded one.
    """
    for start in count(0, _AT_ONCE):
        for words in draws(key, start, start + _AT_ONCE, WIDTH, stream=row):
            facts = make(subtask, words, cast, bool(below(words[2], 2))).facts
            for fact, most in zip(facts, fillers, strict=True):
                yield fact.paragraph(max(most, fact.least))


def books(key: int, row: int) -> Paragraphs:
    """Yield paragraphs of made-up prose, four to seven sentences each."""
    for start in count(0, _AT_ONCE):
        for words in draws(key, start, start + _AT_ONCE, 16, stream=row):
            who = int(below(words[0], len(_WHO)))
            other = (who + 1 + int(below(words[1], len(_WHO) - 1))) % len(_WHO)
            where = int(below(words[2], len(_WHERE)))
            what = int(below(words[3], len(_WHAT)))
            filled = {
                "who": _WHO[who],
                "other": _WHO[other],
                "where": _WHERE[where],
                "place": _WHERE[(where + 1 + int(below(words[4], len(_WHERE) - 1))) % len(_WHERE)],
                "what": _WHAT[what],
                "thing": _WHAT[(what + 1 + int(below(words[5], len(_WHAT) - 1))) % len(_WHAT)],
                "When": _WHEN[int(below(words[6], len(_WHEN)))].capitalize(),
            }
            picked = sorted({int(below(word, len(_TOLD))) for word in words[8 : 11 + int(below(words[7], 4))]})
            yield [_SKY[int(below(words[15], len(_SKY)))], *(_TOLD[index].format(**filled) for index in picked)]


def text(paragraphs: Sequence[list[str]], key: int, row: int) -> Paragraphs:
    """Yield a text of the user's from a drawn paragraph on, and from its start again after its end."""
    first = int(below(draws(key, row, row + 1, 1)[0, 0], len(paragraphs)))
    for index in count(first):
        yield paragraphs[index % len(paragraphs)]


def identity(paragraphs: Sequence[list[str]]) -> Paragraphs:
    """Yield the key paragraphs again and again."""
    while True:
        yield from paragraphs


def split(texts: Sequence[str], source: str) -> list[list[str]]:
    """Cut texts into paragraphs of sentences: paragraphs at line ends, sentences at most 40 words long.

    Raises:
        InputError: there is no word in them.
    """
    found = []
    for paragraph in (line for whole in texts for line in whole.splitlines()):
        sentences = [words for sentence in _END.split(paragraph) if (words := sentence.split())]
        pieces = [words[at : at + _LONGEST] for words in sentences for at in range(0, len(words), _LONGEST)]
        if pieces:
            found.append([" ".join(piece) for piece in pieces])
    if not found:
        raise InputError(f"padding_source: {source} has no text in it")
    return found
