"""The text around FLenQA's key paragraphs: endless streams of sentences, of which a context takes the first so many.

Levy et al. (2024) pad with paragraphs of other instances ("same"), with prose of the Books Corpus ("books"), or with
copies of the key paragraphs ("identity"). Our prose comes from a small grammar; its people have no names, so nothing
in it bears on a question.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import count

from kvray.errors import InputError
from kvray.tasks.flenqa.facts import WIDTH, Cast, make
from kvray.tasks.flenqa.published import TEXTS, Subtask
from kvray.tasks.rng import Draws, below, draws
from kvray.tasks.sources.sentences import cut_after

Paragraphs = Iterator[list[str]]
"""Paragraphs of sentences, without end."""
_AT_ONCE = 16
_LONGEST = 40
_END = re.compile(r"[.!?][\"'”’)]?\s+")  # noqa: RUF001
_PROSE: dict[str, list[str]] = TEXTS["prose"]


def same(subtask: Subtask, key: int, row: int, cast: Cast, fillers: tuple[int, int]) -> Paragraphs:
    """Yield the key paragraphs of other instances of the task, drawn for the instance ``row`` alone.

    Their people and rooms come from the padded instance's ``cast``, so that nobody is met twice; their paragraphs have
    as many ``fillers`` as its own.
    """
    for drawn in _drawn(key, row, WIDTH):
        facts = make(subtask, drawn, cast, bool(below(drawn[2], 2))).facts
        for fact, most in zip(facts, fillers, strict=True):
            yield fact.paragraph(max(most, fact.least))


def books(key: int, row: int) -> Paragraphs:
    """Yield paragraphs of made-up prose, four to seven sentences each, drawn for the instance ``row`` alone."""
    for drawn in _drawn(key, row, 16):
        who, other = _two(_PROSE["who"], drawn[0], drawn[1])
        where, place = _two(_PROSE["where"], drawn[2], drawn[4])
        what, thing = _two(_PROSE["what"], drawn[3], drawn[5])
        when = _PROSE["when"][int(below(drawn[6], len(_PROSE["when"])))].capitalize()
        slots = {"who": who, "other": other, "where": where, "place": place, "what": what, "thing": thing, "When": when}
        first, then = _PROSE["first"], _PROSE["then"]
        picked = sorted({int(below(draw, len(then))) for draw in drawn[8 : 11 + int(below(drawn[7], 4))]})
        yield [first[int(below(drawn[15], len(first)))], *(then[index].format(**slots) for index in picked)]


def text(paragraphs: Sequence[list[str]], key: int, row: int) -> Paragraphs:
    """Yield a user's text from a drawn paragraph on, again and again."""
    first = int(below(draws(key, row, row + 1, 1)[0, 0], len(paragraphs)))
    for index in count(first):
        yield paragraphs[index % len(paragraphs)]


def split(texts: Sequence[str], source: str) -> list[list[str]]:
    """Cut texts at line ends into paragraphs of sentences of at most 40 words; an InputError if there is no word."""
    paragraphs = []
    for line in (line for text in texts for line in text.splitlines()):
        sentences = [sentence.split() for sentence in cut_after(_END, line)]
        pieces = [words[at : at + _LONGEST] for words in sentences for at in range(0, len(words), _LONGEST)]
        if pieces:
            paragraphs.append([" ".join(piece) for piece in pieces])
    if not paragraphs:
        raise InputError(f"padding_source: {source} has no text in it")
    return paragraphs


def _drawn(key: int, row: int, width: int) -> Iterator[Draws]:
    """Yield random draws of shape ``(width,)`` without end, in the stream of one instance."""
    for start in count(0, _AT_ONCE):
        yield from draws(key, start, start + _AT_ONCE, width, stream=row)


def _two(choices: list[str], first: Draws, second: Draws) -> tuple[str, str]:
    at = int(below(first, len(choices)))
    return choices[at], choices[(at + 1 + int(below(second, len(choices) - 1))) % len(choices)]
