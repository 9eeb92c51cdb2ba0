"""IN2 over the made-up world: segments are passages about people, questions are templates, answers restate the facts.

Every person stands in one passage of the context, and a value that an answer needs stands in no other: facts are drawn
anew for every row, those of the others from what is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from kvray.errors import InputError
from kvray.tasks import world
from kvray.tasks.base import CountTokens
from kvray.tasks.in2.fill import Draft, Segment
from kvray.tasks.rng import Draws, below, draws

BOTH = "What is the {first} of {a} and the {second} of {b}?"
SAME = (
    "Is the {relation} of {a} the same as the {relation} of {b}? "
    'Conclude with "They are the same" or "They are different".'
)
WHO = 'Who has the {relation} {value}, {a} or {b}? Conclude with "It is" and the name.'
"""Questions that take two segments; ours. Those with a conclusion say how it is to be put, so that it can be scored."""
_PEOPLE_AT_ONCE = 64
_SMALLEST_PASSAGE = 8
"""Tokens: two sentences of at least six words."""

Fact = tuple[str, str]


@dataclass(frozen=True)
class _Passage:
    text: str
    tokens: int
    place: int


class Tiny:
    """Drafts of any row, by (key, row) alone."""

    def __init__(self, key: int, group: world.Group, limit: int, longest: int, count_tokens: CountTokens) -> None:
        """Take the parameters; nothing is drawn yet.

        Args:
            key: of the random numbers.
            group: the people that it is about.
            limit: most tokens of a segment.
            longest: tokens of the longest prompt.
            count_tokens: the base model's tokenizer.
        """
        self.group: world.Group = group
        self.people = world.group_size(group)
        self.limit = limit
        self.most = longest // _SMALLEST_PASSAGE + 2
        self.key = key
        self.count_tokens = count_tokens

    def draft(self, row: int, integration: bool) -> Draft:
        """Return the question of a row: on one relation of one person, or on two people of two segments."""
        words = draws(self.key, row, row + 1, 12)[0]
        a = int(below(words[0], self.people))
        b = (a + 1 + int(below(words[1], self.people - 1))) % self.people
        names = [world.name_of(self.group, person) for person in (a, b)]
        told = [_facts(words[2:5], {})]
        references: tuple[str, ...]
        asked: list[Fact]
        if integration:
            question, answer, references, asked = self._two(words[5:], names, told)
        else:
            relation, value = told[0][0]
            question, answer = world.question(names[0], relation), world.fact(names[0], relation, value)
            references, asked = (value,), told[0][:1]
        # The asked fact comes first or second by the draw, so that its place in the passage tells nothing.
        for number, facts in enumerate(told):
            if int(words[11] >> np.uint64(number)) & 1:
                facts.reverse()
        avoided: dict[str, set[str]] = {}
        for relation, value in asked:
            avoided.setdefault(relation, set()).add(value)
        others = self._others(row, {a, b} if integration else {a}, avoided)
        first = [world.passage(name, facts) for name, facts in zip(names, told, strict=False)]
        segments = self._segments([self._passage(text, words[11]) for text in first], others)
        gold = tuple(next(segments) for _ in first)
        return Draft(question, answer, references, gold, segments, draws(self.key, row, row + 1, self.most, 1)[0])

    def _two(
        self, words: Draws, names: list[str], told: list[list[Fact]]
    ) -> tuple[str, str, tuple[str, ...], list[Fact]]:
        """Draw the second person's facts into ``told`` and ask about both; also returns the facts that are asked."""
        a, b = names
        relation, value = told[0][0]
        alike = {name: {said} for name, said in told[0]}
        kind = int(below(words[0], 3))
        references: tuple[str, ...]
        if kind == 0:
            told.append(_facts(words[1:4], alike))
            other, second = told[1][0]
            question = BOTH.format(first=relation, a=a, second=other, b=b)
            conclusion, references = "", (value, second)
        else:
            told.append(_facts(words[1:4], alike, relation))
            if kind == 1:
                if same := bool(words[4] & np.uint64(1)):
                    told[1][0] = (relation, value)
                question = SAME.format(relation=relation, a=a, b=b)
                conclusion = "They are the same" if same else "They are different"
            else:
                who = int(words[4] & np.uint64(1))
                question = WHO.format(relation=relation, value=told[who][0][1], a=a, b=b)
                conclusion = f"It is {names[who]}"
            references = (conclusion,)
        asked = [told[0][0], told[1][0]]
        restated = [world.fact(name, *fact) for name, fact in zip(names, asked, strict=True)]
        return question, ". ".join([*restated, *([conclusion] if conclusion else [])]), references, asked

    def _others(self, row: int, taken: set[int], avoided: Mapping[str, set[str]]) -> Iterator[_Passage]:
        """Yield passages about further people, none twice, without the values that are asked for."""
        taken = set(taken)
        for start in range(0, 4 * self.people, _PEOPLE_AT_ONCE):
            first = row * 4 * self.people + start
            texts, places = [], []
            for words in draws(self.key, first, first + _PEOPLE_AT_ONCE, 8, 2):
                person = int(below(words[3], self.people))
                if person not in taken:
                    taken.add(person)
                    texts.append(world.passage(world.name_of(self.group, person), _facts(words, avoided)))
                    places.append(int(words[4]))
            for text, tokens, place in zip(texts, self._counts(texts), places, strict=True):
                yield _Passage(text, tokens, place)

    def _segments(self, gold: list[_Passage], others: Iterator[_Passage]) -> Iterator[Segment]:
        """Yield segments of as many passages as fit; each of the first ones holds one of ``gold``, at any place."""
        beginnings = iter(gold)
        passage = next(others, None)
        while passage is not None or gold:
            held = []
            if (begun := next(beginnings, None)) is not None:
                held.append(begun)
            elif passage is None:
                return
            while passage is not None and sum(one.tokens for one in held) + passage.tokens <= self.limit:
                held.append(passage)
                passage = next(others, None)
            held.sort(key=lambda one: one.place)
            yield Segment(" ".join(one.text for one in held), sum(one.tokens for one in held))

    def _passage(self, text: str, place: Draws) -> _Passage:
        return _Passage(text, self._counts([text])[0], int(place))

    def _counts(self, texts: list[str]) -> list[int]:
        counts: list[int] = self.count_tokens([f" {text}" for text in texts]).tolist() if texts else []
        if counts and max(counts) > self.limit:
            raise InputError(
                f"segment_tokens: found {self.limit}; a passage about one person of the tiny world takes {max(counts)} "
                "by this tokenizer, so expected at least that"
            )
        return counts


def _facts(words: Draws, avoided: Mapping[str, set[str]], relation: str | None = None) -> list[Fact]:
    """Return two facts of different relations by three words; the first is the one that a question may ask."""
    first = int(below(words[0], 3)) if relation is None else world.RELATION_NAMES.index(relation)
    second = (first + 1 + int(words[0] & np.uint64(1))) % 3
    made = []
    for name, word in ((world.RELATION_NAMES[first], words[1]), (world.RELATION_NAMES[second], words[2])):
        values = [value for value in world.RELATIONS[name] if value not in avoided.get(name, ())]
        made.append((name, values[int(below(word, len(values)))]))
    return made
