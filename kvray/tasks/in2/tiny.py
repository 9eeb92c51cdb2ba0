"""IN2 over the made-up world: segments are passages about people, questions are templates, answers restate the facts.

Every person stands in one passage, and a value that an answer needs in no other; facts are drawn anew for every row.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kvray.errors import InputError
from kvray.tasks import world
from kvray.tasks.base import CountTokens
from kvray.tasks.in2.fill import TEXTS, Draft, Segment
from kvray.tasks.rng import Draws, below, draws

BOTH, SAME, WHO = (str(TEXTS["tiny"][name]) for name in ("both", "same", "who"))
_PEOPLE_AT_ONCE = 64
_SMALLEST_PASSAGE = 8
"""Tokens: two sentences of at least six words."""

Fact = tuple[str, str]
"""A relation and its value."""


@dataclass(frozen=True)
class _Passage:
    text: str
    tokens: int
    place: int


@dataclass(frozen=True)
class Tiny:
    """Makes drafts of any row, by (key, row) alone, about people of ``group``.

    A segment has at most ``limit`` tokens, the longest prompt ``longest``.
    """

    key: int
    group: world.Group
    limit: int
    longest: int
    count_tokens: CountTokens

    def draft(self, row: int, integration: bool, number: int) -> Draft:
        """Return the question of a row: on one relation of one person, or on two people of two segments.

        The row decides what is asked; ``number``, the question's among those of its kind, is for corpora alone.
        """
        drawn = draws(self.key, row, row + 1, 12)[0]
        size = world.group_size(self.group)
        a = int(below(drawn[0], size))
        b = (a + 1 + int(below(drawn[1], size - 1))) % size
        people = (a, b) if integration else (a,)
        names = [world.name_of(self.group, person) for person in people]
        facts = [world.two_facts(drawn[2:5])]
        if integration:
            second, question, conclusion = _second(drawn[5:], names, facts[0])
            facts.append(second)
        else:
            question, conclusion = world.question(names[0], facts[0][0][0]), ""
        asked = [own[0] for own in facts]
        restated = [world.fact(name, *fact) for name, fact in zip(names, asked, strict=True)]
        references = (conclusion,) if conclusion else tuple(value for _, value in asked)
        # The asked fact comes first or second by the draw, so that its place in the passage tells nothing.
        for place, own in enumerate(facts):
            if int(drawn[11] >> np.uint64(place)) & 1:
                own.reverse()
        passages = [
            _Passage(text := world.passage(name, own), self._counts([text])[0], int(drawn[11]))
            for name, own in zip(names, facts, strict=True)
        ]
        avoided: dict[str, set[str]] = defaultdict(set)
        for relation, value in asked:
            avoided[relation].add(value)
        segments = self._segments(passages, self._others(row, set(people), avoided))
        gold = tuple(next(segments) for _ in passages)
        places = draws(self.key, row, row + 1, self.longest // _SMALLEST_PASSAGE + 2, 1)[0]
        answer = ". ".join([*restated, conclusion] if conclusion else restated)
        return Draft(question, answer, references, gold, segments, places)

    def _others(self, row: int, taken: set[int], avoided: Mapping[str, set[str]]) -> Iterator[_Passage]:
        size = world.group_size(self.group)
        for start in range(0, 4 * size, _PEOPLE_AT_ONCE):
            first = row * 4 * size + start
            texts, places = [], []
            for drawn in draws(self.key, first, first + _PEOPLE_AT_ONCE, 8, 2):
                person = int(below(drawn[3], size))
                if person not in taken:
                    taken.add(person)
                    texts.append(world.passage(world.name_of(self.group, person), world.two_facts(drawn, avoided)))
                    places.append(int(drawn[4]))
            for text, tokens, place in zip(texts, self._counts(texts), places, strict=True):
                yield _Passage(text, tokens, place)

    def _segments(self, gold: list[_Passage], others: Iterator[_Passage]) -> Iterator[Segment]:
        """Yield segments of as many passages as fit; each of the first ones holds one of ``gold``, at any place."""
        beginnings = iter(gold)
        passage = next(others, None)
        while True:
            begun = next(beginnings, None)
            if begun is None and passage is None:
                return
            together = [] if begun is None else [begun]
            while passage is not None and sum(one.tokens for one in together) + passage.tokens <= self.limit:
                together.append(passage)
                passage = next(others, None)
            together.sort(key=lambda one: one.place)
            yield Segment(" ".join(one.text for one in together), sum(one.tokens for one in together))

    def _counts(self, texts: list[str]) -> list[int]:
        counts: list[int] = self.count_tokens([f" {text}" for text in texts]).tolist() if texts else []
        if counts and max(counts) > self.limit:
            raise InputError(
                f"segment_tokens: found {self.limit}; a passage about one person of the tiny world takes {max(counts)} "
                "by this tokenizer, so expected at least that"
            )
        return counts


def _second(drawn: Draws, names: Sequence[str], first: list[Fact]) -> tuple[list[Fact], str, str]:
    """Draw the facts of a second person and a question on both; return facts, question, and conclusion (or "")."""
    a, b = names
    relation, value = first[0]
    kind, coin = int(below(drawn[0], 3)), int(drawn[4] & np.uint64(1))
    facts = world.two_facts(drawn[1:4], {name: {known} for name, known in first}, relation if kind else None)
    if kind == 0:
        return facts, BOTH.format(first=relation, a=a, second=facts[0][0], b=b), ""
    if kind == 1:
        if coin:
            facts[0] = first[0]
        question = SAME.format(relation=relation, a=a, b=b)
        return facts, question, "They are the same" if coin else "They are different"
    question = WHO.format(relation=relation, value=facts[0][1] if coin else value, a=a, b=b)
    return facts, question, f"It is {names[coin]}"
