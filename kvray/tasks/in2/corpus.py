"""IN2 over a corpus: texts cut into segments, and questions on them from a file or a language model.

FILM cuts C4 (realnewslike) into segments of 128 tokens and lets GPT-4-Turbo write the questions (An et al. 2024,
section 2.1; its prompts are in appendix I). The training set was never published, so this rebuilds it from the recipe.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np

from kvray.errors import InputError
from kvray.tasks import writing
from kvray.tasks.base import CountTokens
from kvray.tasks.in2.fill import TEXTS, Draft, Segment
from kvray.tasks.qa import questions
from kvray.tasks.rng import below, draws, shuffled
from kvray.tasks.sources import read
from kvray.tasks.sources.records import lacking
from kvray.tasks.sources.sentences import cut_after

FORM = ("Question", "Answer")
ANSWER_TOKENS = 128
"""A written answer of more tokens is not used."""
_OF_THE_TEXT = re.compile(
    r"\b(according to|based on|in) (the|this|these) (given |provided )?(text|context|passage|piece)s?\b", re.IGNORECASE
)
"""Mentions of the text in a question, whose reader would not know which is meant; FILM's prompt forbids them too."""
_SENTENCE_END = re.compile(r"[.!?][\"')\]\u2019\u201d]*\s+|[\u3002\uff01\uff1f]+")
_WORD_END = re.compile(r"\s+")
_PIECES_AT_ONCE = 2048


@dataclass(frozen=True)
class Asked:
    """A question and the numbers of its segments in the pool."""

    segments: tuple[int, ...]
    question: str
    answer: str
    references: tuple[str, ...]


class Corpus:
    """Segments that contexts are filled from, and the questions on them; makes drafts.

    ``asked`` has the questions on several segments (integration) under True, those on one (fine-grained) under False.
    """

    def __init__(self, segments: Sequence[str], asked: Sequence[Asked], key: int, count_tokens: CountTokens) -> None:
        counts = count_tokens(segments).tolist()
        self.asked = {kind: [one for one in asked if (len(one.segments) > 1) == kind] for kind in (False, True)}
        self._segments = [Segment(text, tokens) for text, tokens in zip(segments, counts, strict=True)]
        self._key = key
        self._normal = lru_cache(maxsize=None)(lambda at: f" {questions.normalise(segments[at])} ")

    def draft(self, row: int, integration: bool, number: int) -> Draft:
        """Return the ``number``-th question of a kind, with fillers and places drawn for the row."""
        asked = self.asked[integration][number]
        gold = tuple(self._segments[at] for at in asked.segments)
        order, places = (draws(self._key, row, row + 1, len(self._segments), stream)[0] for stream in (1, 2))
        fillers = self._fillers(asked, np.argsort(order, kind="stable").tolist())
        return Draft(asked.question, asked.answer, asked.references, gold, fillers, places)

    def _fillers(self, asked: Asked, order: Sequence[int]) -> Iterator[Segment]:
        """Yield, in order, the segments that are none of the question's and contain none of its answers."""
        forbidden = [f" {normal} " for text in asked.references if (normal := questions.normalise(text))]
        for at in order:
            if at not in asked.segments and not any(text in self._normal(at) for text in forbidden):
                yield self._segments[at]


def cut(text: str, limit: int, count_tokens: CountTokens) -> Iterator[str]:
    """Yield a text in segments of at most ``limit`` tokens, as many whole sentences as fit in each.

    A longer sentence is cut between words, a longer word between characters. White space becomes single spaces. Nothing
    is left out, however short the last segment.
    """
    line = " ".join(text.split())
    segment, size = "", 0
    for piece, tokens in _counted(cut_after(_SENTENCE_END, line), limit, count_tokens):
        if segment and size + tokens > limit:
            yield from _within(segment, limit, count_tokens)
            segment, size = "", 0
        segment, size = segment + piece, size + tokens
    if segment.strip():
        yield from _within(segment, limit, count_tokens)


def pool(texts: Sequence[str], limit: int, most: int, key: int, count_tokens: CountTokens) -> list[list[str]]:
    """Return segments of texts drawn by the seed, until there are ``most``, text by text; no segment twice.

    A rest of less than half a segment is left out, unless it is all of its text.
    """
    seen: set[str] = set()
    by_text: list[list[str]] = []
    for text in shuffled(texts, key):
        segments: list[str] = []
        for segment in cut(text, limit, count_tokens):
            if segment not in seen:
                seen.add(segment)
                segments.append(segment)
            if len(seen) == most:
                break
        if len(segments) > 1 and 2 * int(count_tokens(segments[-1:])[0]) < limit:
            segments.pop()
        by_text.append(segments)
        if len(seen) == most:
            break
    return by_text


def windows(by_text: Sequence[Sequence[str]], most: int, key: int) -> list[tuple[int, ...]]:
    """Return runs of 2 to ``most`` neighbouring segments of one text, numbered through all texts; none overlap."""
    runs: list[tuple[int, ...]] = []
    first = 0
    for number, segments in enumerate(by_text):
        at, end = first, first + len(segments)
        for drawn in draws(key, number * 2**32, number * 2**32 + len(segments), 1)[:, 0]:
            width = min(2 + int(below(drawn, most - 1)), end - at)
            if width < 2:
                break
            runs.append(tuple(range(at, at + width)))
            at += width
        first = end
    return runs


def prompt_of(segments: Sequence[str]) -> str:
    """Return the prompt that asks a writer for a question on one segment, or on several."""
    if len(segments) == 1:
        return str(TEXTS["writer"]["fine_grained"]).format(segment=segments[0])
    pieces = "\n\n".join(f"Piece {number}:\n{segment}" for number, segment in enumerate(segments, start=1))
    return str(TEXTS["writer"]["integration"]).format(segments=pieces)


def read_reply(asked_on: Sequence[tuple[int, ...]], count_tokens: CountTokens, number: int, reply: str) -> Asked | None:
    """Return the question that a writer wrote on ``asked_on[number]``, None if it cannot be used."""
    question, answer = writing.fields(reply, FORM) or ("", "")
    if not answer or _OF_THE_TEXT.search(question) or int(count_tokens([answer])[0]) > ANSWER_TOKENS:
        return None
    return Asked(asked_on[number], question, answer, (answer,))


def from_rows(source: str, limit: int, count_tokens: CountTokens) -> tuple[list[str], list[Asked]]:
    """Read a file with its own questions; return the segments and the questions.

    A row has ``question``, ``answer``, and ``segments`` (a list of texts) or ``text``; optionally ``references`` (what
    an answer must contain, all of it; default the answer). A text longer than a segment is cut into several, each of
    which may hold a part of the answer. A row without a question only adds its segments to those that fill contexts.

    Raises:
        InputError: the source cannot be read, or a row lacks something; names it.
    """
    numbers: dict[str, int] = {}
    asked: list[Asked] = []
    for where, row in read.rows(source):
        texts = row.get("segments", row.get("text", row.get("context")))
        texts = [texts] if isinstance(texts, str) else texts
        if not _is_texts(texts) or not texts:
            raise lacking(row, "'text' or 'segments'", where)
        segments = [segment for text in texts for segment in cut(text, limit, count_tokens)]
        at = tuple(dict.fromkeys(numbers.setdefault(segment, len(numbers)) for segment in segments))
        question, answer = row.get("question"), row.get("answer")
        if question is None and answer is None:
            continue
        if not _is_texts([question, answer]):
            raise InputError(
                f"{where}: 'question' and 'answer' must be texts; found {question!r:.60} and {answer!r:.60}"
            )
        references = row.get("references") or [answer]
        if not _is_texts(references):
            raise InputError(f"{where}: 'references' must be a list of texts; found {references!r:.60}")
        asked.append(Asked(at, str(question), str(answer), tuple(references)))
    return list(numbers), asked


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) and one.strip() for one in value)


def _counted(pieces: Iterator[str], limit: int, count_tokens: CountTokens) -> Iterator[tuple[str, int]]:
    """Yield pieces with their tokens; one of more than ``limit`` in pieces of its own."""
    while batch := list(islice(pieces, _PIECES_AT_ONCE)):
        for piece, tokens in zip(batch, count_tokens(batch).tolist(), strict=True):
            if tokens <= limit or len(piece) < 2:
                yield piece, tokens
            elif _WORD_END.search(piece.strip()):
                yield from _counted(cut_after(_WORD_END, piece), limit, count_tokens)
            else:
                half = len(piece) // 2
                yield from _counted(iter((piece[:half], piece[half:])), limit, count_tokens)


def _within(text: str, limit: int, count_tokens: CountTokens) -> Iterator[str]:
    """Yield a segment whose pieces were counted one by one, cut again if together they have more tokens."""
    text = text.strip()
    if int(count_tokens([text])[0]) <= limit or limit < 2:
        yield text
    else:
        yield from cut(text, limit // 2, count_tokens)
