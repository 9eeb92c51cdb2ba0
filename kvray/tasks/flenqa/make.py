"""FLenQA at any length, offline: key paragraphs of our instances within padding, as many tokens long as asked.

As in Levy et al. (2024), an instance keeps its two key paragraphs at every length, and they fill the shortest text (250
tokens) by themselves; longer texts add padding around them: after them (first), on both sides (middle), before them
(last), or before, between and after them at random. The length is that of the text without the question and the
instructions, so that direct and chain-of-thought prompts share their texts. The padding of a longer text begins with
that of the shorter one, and "random" stands at the same share of the padding at every length.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Literal

from kvray.errors import InputError
from kvray.tasks.base import CountTokens
from kvray.tasks.flenqa import padding
from kvray.tasks.flenqa.facts import WIDTH, Cast, Fact, Instance, make
from kvray.tasks.flenqa.padding import Padding, Paragraphs
from kvray.tasks.flenqa.prompts import Subtask
from kvray.tasks.rng import draws, key_of, unit

Dispersion = Literal["first", "middle", "last", "random"]
SHORTEST = 250
"""Tokens of the shortest published texts: key paragraphs without padding."""
OFF = 70
"""Tokens by which a published text may miss its nominal length; under 250 tokens in proportion."""
_AT_ONCE = 12
_ROUNDS = 5


@dataclass(frozen=True)
class Condition:
    """One text of an instance: how it is padded, where the key paragraphs stand, and its nominal length in tokens."""

    padding: Padding
    dispersion: Dispersion
    length: int


@dataclass(frozen=True)
class Maker:
    """Makes texts; a pure function of its fields.

    Attributes:
        law: version of the family's law.
        seed: of the recipe.
        shortest: nominal length of the recipe's shortest text.
        count_tokens: the base model's tokenizer as a counter.
        prose: paragraphs of sentences to pad "books" with; None for our own.
    """

    law: int
    seed: int
    shortest: int
    count_tokens: CountTokens
    prose: Sequence[list[str]] | None = None

    def texts(self, subtask: Subtask, number: int, wanted: Sequence[Condition]) -> tuple[Instance, list[str]]:
        """Return base instance ``number`` of a task and its text under each condition.

        Raises:
            InputError: a length is less than the key paragraphs have, or more than the padding.
        """
        instance, _ = self._instance(subtask, number)
        fillers = self._fillers(instance.facts)
        keys = [fact.paragraph(most) for fact, most in zip(instance.facts, fillers, strict=True)]
        streams: dict[Padding, _Stream] = {}
        for kind in dict.fromkeys(condition.padding for condition in wanted):
            streams[kind] = _Stream(self._padding(kind, subtask, number, keys, fillers), self.count_tokens)
        spots = sorted(unit(draws(self._key(subtask, "spots"), number, number + 1, 2)[0]).tolist())
        return instance, self._fitted(keys, streams, (spots[0], spots[1]), wanted)

    def _instance(self, subtask: Subtask, number: int) -> tuple[Instance, Cast]:
        key = self._key(subtask, "instance")
        # Of two neighbours one is true and one false, so that labels balance and more instances change no earlier one.
        first = int(draws(self._key(subtask, "label"), number // 2, number // 2 + 1, 1)[0, 0]) & 1
        cast = Cast(draws(self._key(subtask, "cast"), number, number + 1, 2)[0])
        words = draws(key, number, number + 1, WIDTH)[0]
        return make(subtask, words, cast, bool(first ^ (number & 1))), cast

    def _key(self, subtask: Subtask, purpose: str) -> int:
        return key_of("flenqa", self.law, self.seed, subtask, purpose)

    def _fillers(self, facts: tuple[Fact, Fact]) -> tuple[int, int]:
        """Return how many fillers the key paragraphs have, so that together they are nearest to the shortest text."""
        costs = [self.count_tokens([f" {text}" for text in (fact.sentence, *fact.fillers)]).tolist() for fact in facts]
        shown = [fact.least for fact in facts]
        sizes = [sum(cost[: 1 + least]) for cost, least in zip(costs, shown, strict=True)]
        floor = self._floor()
        while True:
            short = min((0, 1), key=lambda side: (shown[side] >= len(facts[side].fillers), sizes[side]))
            if shown[short] >= len(facts[short].fillers):
                break
            added = costs[short][1 + shown[short]]
            if abs(sum(sizes) + added - floor) >= abs(sum(sizes) - floor):
                break
            shown[short] += 1
            sizes[short] += added
        return shown[0], shown[1]

    def _padding(
        self, kind: Padding, subtask: Subtask, number: int, keys: Sequence[list[str]], fillers: tuple[int, int]
    ) -> Paragraphs:
        key = self._key(subtask, kind)
        if kind == "identity":
            return padding.identity(keys)
        if kind == "same":
            return padding.same(subtask, key, number, self._instance(subtask, number)[1], fillers)
        return padding.books(key, number) if self.prose is None else padding.text(self.prose, key, number)

    def _fitted(
        self,
        keys: Sequence[list[str]],
        streams: dict[Padding, _Stream],
        spots: tuple[float, float],
        wanted: Sequence[Condition],
    ) -> list[str]:
        """Return the texts: sums over sentences say about how much padding each takes, the tokenizer decides."""
        paragraphs = (" ".join(keys[0]), " ".join(keys[1]))
        bare = int(self.count_tokens(["\n".join(paragraphs)])[0])
        unpadded = {
            row
            for row, each in enumerate(wanted)
            if each.length <= self._floor() and abs(each.length - bare) <= _allowed(each.length)
        }
        takes = [
            0 if row in unpadded else streams[each.padding].nearest(each.length - bare)
            for row, each in enumerate(wanted)
        ]
        best: list[tuple[int, str]] = [(-1, "")] * len(wanted)
        open_rows = list(range(len(wanted)))
        for _ in range(_ROUNDS):
            asked = [wanted[row] for row in open_rows]
            texts = [
                streams[each.padding].around(paragraphs, takes[row], each, spots)
                for row, each in zip(open_rows, asked, strict=True)
            ]
            counts = self.count_tokens(texts).tolist()
            still = []
            for row, text, tokens in zip(open_rows, texts, counts, strict=True):
                off = tokens - wanted[row].length
                if best[row][0] < 0 or abs(off) < best[row][0]:
                    best[row] = (abs(off), text)
                take = 0 if row in unpadded else streams[wanted[row].padding].moved(takes[row], -off)
                if take != takes[row]:
                    takes[row] = take
                    still.append(row)
            open_rows = still
            if not open_rows:
                break
        for each, (off, _) in zip(wanted, best, strict=True):
            if off > max(_allowed(each.length), streams[each.padding].longest):
                raise InputError(
                    f"lengths: found {each.length}, but the nearest text differs from it by {off} tokens of this "
                    f"tokenizer (the key paragraphs alone have {bare}); expected at least {bare}"
                )
        return [text for _, text in best]

    def _floor(self) -> int:
        """Return the length that the key paragraphs fill by themselves."""
        return min(SHORTEST, self.shortest)


class _Stream:
    """Padding as sentences with the separator before each, and the sum of their tokens."""

    def __init__(self, paragraphs: Paragraphs, count_tokens: CountTokens) -> None:
        self._paragraphs = paragraphs
        self._count = count_tokens
        self._pieces: list[str] = []
        self._ends = [0]
        self.longest = 0

    def nearest(self, tokens: int) -> int:
        """Return how many sentences come nearest to a number of tokens."""
        while self._ends[-1] < tokens:
            self._grow()
        at = bisect_left(self._ends, tokens)
        return at if at == 0 or self._ends[at] - tokens < tokens - self._ends[at - 1] else at - 1

    def moved(self, take: int, tokens: int) -> int:
        """Return how many sentences are that many tokens more (or less) than the first ``take``."""
        return self.nearest(self._ends[take] + tokens)

    def around(self, keys: tuple[str, str], take: int, condition: Condition, spots: tuple[float, float]) -> str:
        """Put the key paragraphs where a condition wants them among the first ``take`` sentences."""
        places = {"first": (0.0, 0.0), "middle": (0.5, 0.5), "last": (1.0, 1.0), "random": spots}
        first, second = (self._cut(take, share) for share in places[condition.dispersion])
        parts = self._pieces[:first], self._pieces[first:second], self._pieces[second:take]
        before, between, after = ("".join(pieces)[1:] for pieces in parts)
        return "\n".join(part for part in (before, keys[0], between, keys[1], after) if part)

    def _cut(self, take: int, share: float) -> int:
        """Return after how many of the first ``take`` sentences that share of their tokens has passed."""
        return min(self.nearest(round(share * self._ends[take])), take)

    def _grow(self) -> None:
        made = list(islice(self._paragraphs, _AT_ONCE))
        pieces = [("\n" if index == 0 else " ") + text for paragraph in made for index, text in enumerate(paragraph)]
        counts = [max(1, count) for count in self._count(pieces).tolist()]
        self._pieces += pieces
        self._ends += list(accumulate(counts, initial=self._ends[-1]))[1:]
        self.longest = max(self.longest, *counts)


def _allowed(length: int) -> int:
    return min(OFF, length * OFF // SHORTEST)


def conditions(
    paddings: Sequence[Padding], dispersions: Sequence[Dispersion], lengths: Sequence[int]
) -> Iterator[Condition]:
    """Yield every combination, lengths fastest."""
    for kind in paddings:
        for dispersion in dispersions:
            for length in lengths:
                yield Condition(kind, dispersion, length)
