"""FLenQA at any length, offline: key paragraphs of our instances within padding.

As in Levy et al. (2024), an instance keeps its two key paragraphs at every length, and they alone fill the shortest
text (250 tokens); longer texts add padding after them (first), on both sides (middle), before them (last), or before,
between and after them at random. The length leaves out the question and the instructions, so that direct and
chain-of-thought prompts share their texts. The padding of a longer text begins with that of the shorter one, and
"random" stands at the same share of the padding at every length.

They pad with paragraphs of other instances ("same"), with prose of the Books Corpus ("books"), or with copies of the
key paragraphs ("identity"). Our prose comes from a small grammar; its people have no names, so nothing in it bears on
a question.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, count, cycle, islice

from kvray.errors import InputError
from kvray.tasks.base import CountTokens
from kvray.tasks.flenqa.facts import WIDTH, Cast, Fact, Instance, make
from kvray.tasks.flenqa.published import TEXTS, Condition, Padding, Question, Subtask
from kvray.tasks.rng import Draws, below, draws, key_of, unit
from kvray.tasks.sources.sentences import cut_after

SHORTEST = 250
"""Tokens of the shortest published texts: key paragraphs without padding."""
OFF = 70
"""Tokens by which a published text may miss its nominal length; under 250 tokens in proportion."""
_AT_ONCE = 12
_ROUNDS = 5
Paragraphs = Iterator[list[str]]
"""Paragraphs of sentences, without end."""
_DRAWN = 16
_LONGEST = 40
_END = re.compile(r"[.!?][\"'”’)]?\s+")  # noqa: RUF001
_PROSE: dict[str, list[str]] = TEXTS["prose"]


def same(subtask: Subtask, key: int, row: int, cast: Cast, fillers: tuple[int, int]) -> Paragraphs:
    """Yield the key paragraphs of other instances of the task, with as many ``fillers``, drawn for ``row`` alone.

    Their people and rooms come from the padded instance's ``cast``, so that nobody is met twice.
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


def endless(paragraphs: Sequence[list[str]], key: int, row: int) -> Paragraphs:
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
    for start in count(0, _DRAWN):
        yield from draws(key, start, start + _DRAWN, width, stream=row)


def _two(choices: list[str], first: Draws, second: Draws) -> tuple[str, str]:
    at = int(below(first, len(choices)))
    return choices[at], choices[(at + 1 + int(below(second, len(choices) - 1))) % len(choices)]


def instance(version: int, seed: int, subtask: Subtask, number: int) -> tuple[Instance, Cast]:
    """Return base instance ``number`` of a task, and the cast that its padding draws on."""
    # Of two neighbours one is true and one false, so that labels balance and more instances change no earlier one.
    first = int(draws(_key(version, seed, subtask, "label"), number // 2, number // 2 + 1, 1)[0, 0]) & 1
    cast = Cast(draws(_key(version, seed, subtask, "cast"), number, number + 1, 2)[0])
    drawn = draws(_key(version, seed, subtask, "instance"), number, number + 1, WIDTH)[0]
    return make(subtask, drawn, cast, bool(first ^ (number & 1))), cast


def _key(version: int, seed: int, subtask: Subtask, purpose: str) -> int:
    return key_of("flenqa", version, seed, subtask, purpose)


@dataclass(frozen=True)
class Maker:
    """Makes texts, a pure function of its fields; ``prose`` has paragraphs to pad "books" with, None for our own.

    The key paragraphs alone fill ``shortest``, the recipe's shortest length in tokens, or :data:`SHORTEST` if less.
    """

    version: int
    seed: int
    shortest: int
    count_tokens: CountTokens
    prose: Sequence[list[str]] | None = None

    def asked(self, subtask: Subtask, number: int, conditions: Sequence[Condition]) -> list[tuple[str, Question, str]]:
        made, texts = self.texts(subtask, number, conditions)
        return [(f"{subtask}-{number:05d}", made, text) for text in texts]

    def texts(self, subtask: Subtask, number: int, conditions: Sequence[Condition]) -> tuple[Instance, list[str]]:
        """Return base instance ``number`` of a task and its text under each condition.

        Raises InputError if a length is shorter than the key paragraphs, or longer than the padding can fill.
        """
        made, cast = instance(self.version, self.seed, subtask, number)
        fillers = self._fillers(made.facts)
        keys = [fact.paragraph(most) for fact, most in zip(made.facts, fillers, strict=True)]

        def paragraphs(kind: Padding) -> Paragraphs:
            key = self._key(subtask, kind)
            if kind == "identity":
                return cycle(keys)
            if kind == "same":
                return same(subtask, key, number, cast, fillers)
            return books(key, number) if self.prose is None else endless(self.prose, key, number)

        kinds = dict.fromkeys(condition.padding for condition in conditions)
        streams = {kind: _Stream(paragraphs(kind), self.count_tokens) for kind in kinds}
        first_spot, second_spot = sorted(unit(draws(self._key(subtask, "spots"), number, number + 1, 2)[0]).tolist())
        joined = (" ".join(keys[0]), " ".join(keys[1]))
        return made, self._fitted(joined, streams, (first_spot, second_spot), conditions)

    def _key(self, subtask: Subtask, purpose: str) -> int:
        return _key(self.version, self.seed, subtask, purpose)

    def _fillers(self, facts: tuple[Fact, Fact]) -> tuple[int, int]:
        """Return the fillers per key paragraph that bring both together nearest to the shortest text."""
        costs = [self.count_tokens([f" {text}" for text in (fact.sentence, *fact.fillers)]).tolist() for fact in facts]
        shown = [fact.least for fact in facts]
        sizes = [sum(cost[: 1 + least]) for cost, least in zip(costs, shown, strict=True)]
        floor = min(SHORTEST, self.shortest)
        while open_sides := [side for side in (0, 1) if shown[side] < len(facts[side].fillers)]:
            short = min(open_sides, key=lambda side: sizes[side])
            added = costs[short][1 + shown[short]]
            if abs(sum(sizes) + added - floor) >= abs(sum(sizes) - floor):
                break
            shown[short] += 1
            sizes[short] += added
        return shown[0], shown[1]

    def _fitted(
        self,
        keys: tuple[str, str],
        streams: dict[Padding, _Stream],
        spots: tuple[float, float],
        conditions: Sequence[Condition],
    ) -> list[str]:
        """Return the texts: sums over sentences suggest how much padding each takes, the tokenizer decides."""
        bare = int(self.count_tokens(["\n".join(keys)])[0])
        floor = min(SHORTEST, self.shortest)
        fits = [_Fit(condition, streams[condition.padding], bare, floor) for condition in conditions]
        for _ in range(_ROUNDS):
            unsettled = [fit for fit in fits if not fit.settled]
            texts = [fit.stream.around(keys, fit.take, fit.condition, spots) for fit in unsettled]
            for fit, text, tokens in zip(unsettled, texts, self.count_tokens(texts).tolist(), strict=True):
                fit.learn(text, tokens)
        for fit in fits:
            if fit.off > max(_allowed(fit.condition.length), fit.stream.longest):
                raise InputError(
                    f"lengths: found {fit.condition.length}, but the nearest text differs from it by {fit.off} tokens "
                    f"of this tokenizer (the key paragraphs alone have {bare}); expected at least {bare}"
                )
        return [fit.best for fit in fits]


class _Stream:
    """Padding as sentences with the separator before each, and the sums of their tokens."""

    def __init__(self, paragraphs: Paragraphs, count_tokens: CountTokens) -> None:
        self._paragraphs = paragraphs
        self._count = count_tokens
        self._pieces: list[str] = []
        self.ends = [0]
        self.longest = 0

    def nearest(self, tokens: int) -> int:
        """Return how many sentences come nearest to a number of tokens."""
        while self.ends[-1] < tokens:
            self._grow()
        at = bisect_left(self.ends, tokens)
        return at if at == 0 or self.ends[at] - tokens < tokens - self.ends[at - 1] else at - 1

    def around(self, keys: tuple[str, str], take: int, condition: Condition, spots: tuple[float, float]) -> str:
        """Put the key paragraphs where a condition wants them among the first ``take`` sentences."""
        places = {"first": (0.0, 0.0), "middle": (0.5, 0.5), "last": (1.0, 1.0), "random": spots}
        # The number of sentences after which that share of their tokens has passed.
        first, second = (
            min(self.nearest(round(share * self.ends[take])), take) for share in places[condition.dispersion]
        )
        parts = self._pieces[:first], self._pieces[first:second], self._pieces[second:take]
        before, between, after = ("".join(pieces)[1:] for pieces in parts)
        return "\n".join(part for part in (before, keys[0], between, keys[1], after) if part)

    def _grow(self) -> None:
        paragraphs = islice(self._paragraphs, _AT_ONCE)
        pieces = [
            ("\n" if index == 0 else " ") + text for sentences in paragraphs for index, text in enumerate(sentences)
        ]
        counts = [max(1, count) for count in self._count(pieces).tolist()]
        self._pieces += pieces
        self.ends += list(accumulate(counts, initial=self.ends[-1]))[1:]
        self.longest = max(self.longest, *counts)


class _Fit:
    """The search for how many sentences of padding bring a text nearest to its length.

    ``take`` is the number to try next; ``best`` misses its length by ``off`` tokens, and once ``settled`` it stays.
    """

    def __init__(self, condition: Condition, stream: _Stream, bare: int, floor: int) -> None:
        self.condition = condition
        self.stream = stream
        length = condition.length
        self.settled = False
        self._unpadded = length <= floor and abs(length - bare) <= _allowed(length)
        self.take = 0 if self._unpadded else stream.nearest(length - bare)
        self.off, self.best = float("inf"), ""

    def learn(self, text: str, tokens: int) -> None:
        off = tokens - self.condition.length
        if abs(off) < self.off:
            self.off, self.best = abs(off), text
        take = self.take if self._unpadded else self.stream.nearest(self.stream.ends[self.take] - off)
        self.settled, self.take = take == self.take, take


def _allowed(length: int) -> int:
    return min(OFF, length * OFF // SHORTEST)
