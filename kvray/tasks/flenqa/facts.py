"""Base instances of FLenQA's three tasks, made by us: two key facts, a question over both, and what surrounds them.

The published instances (Levy et al. 2024) state each key fact in a sentence that GPT-4 expanded to a paragraph; ours
expands it by templates. The people are the made-up world's test group, so no training data names them. One paragraph
alone never gives the answer away:

- MonoRel: "A is older than B", "B is older than C"; asked is "Is A older than C?" or "Is C older than A?".
- PIR: "P is in R", "R is marble-floored"; asked is the property of R, or, for False, that of the hallway next to it,
  which excludes it and which the room's paragraph always gives. (The hallway is ours: without it the words of the
  question are in the text for True alone.)
- RuleTaker: "If someone is A and B then they are C", and of a person A and B, or, for False, only one of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from typing import Any

import numpy as np

from kvray.errors import InputError
from kvray.tasks import world
from kvray.tasks.flenqa.published import TEXTS, Question, Subtask
from kvray.tasks.rng import Draws, below, unit

_HEAD, _SIDE = 32, 28
WIDTH = _HEAD + 2 * _SIDE
"""Random draws of an instance: some for its facts and question, some for the surroundings of each fact."""

RELATIONS: list[str] = TEXTS["facts"]["relations"]
PROPERTIES: list[list[str]] = TEXTS["facts"]["properties"]
ROOMS: list[str] = TEXTS["facts"]["rooms"]
ATTRIBUTES: list[str] = TEXTS["facts"]["attributes"]
FILLERS: dict[str, list[str]] = TEXTS["fillers"]
_SLOTS: dict[str, Sequence[str]] = {
    "city": world.CITIES[::2],
    "town": world.CITIES[1::2],
    "topic": [f"the history of {trade}" for trade in world.TRADES],
    **TEXTS["slots"],
}
_Key = tuple[str, str, dict[str, str]]
"""The sentence of a fact, the kind of its fillers, and the names that stand in them."""


@dataclass(frozen=True)
class Fact:
    """A key fact and the sentences (``fillers``) that can surround it; they neither give nor contradict an answer.

    The first ``least`` fillers are always present; ``depth`` is where the fact stands among them, in [0, 1).
    """

    sentence: str
    fillers: tuple[str, ...]
    least: int
    depth: float

    def paragraph(self, fillers: int) -> list[str]:
        """Return the sentences of the paragraph with the first ``fillers`` fillers."""
        at = int(self.depth * (fillers + 1))
        return [*self.fillers[:at], self.sentence, *self.fillers[at:fillers]]


@dataclass(frozen=True)
class Instance(Question):
    """A base instance, the same at every length; its two key facts are in the order of the text."""

    facts: tuple[Fact, Fact]


class Cast:
    """Supply of people and rooms that are used once each; a pure function of two random draws."""

    def __init__(self, drawn: Draws) -> None:
        self._people = _walk(drawn[0], world.group_size("test"), "people")
        self._rooms = _walk(drawn[1], len(world.FIRST_NAMES) * len(ROOMS), "rooms")

    def person(self) -> str:
        return world.name_of("test", next(self._people))

    def room(self, occupant: str) -> str:
        """Return a new room that does not belong to its occupant's namesake."""
        while True:
            owner, kind = divmod(next(self._rooms), len(ROOMS))
            if world.FIRST_NAMES[owner] != occupant.split(maxsplit=1)[0]:
                return f"{world.FIRST_NAMES[owner]}'s {ROOMS[kind]}"


def make(subtask: Subtask, drawn: Draws, cast: Cast, label: bool) -> Instance:
    """Make a base instance with the answer ``label`` from ``drawn``, shape ``(WIDTH,)``.

    The paddings' instances of an example take their people and rooms from the same ``cast``; an InputError if it is
    used up.
    """
    makers = {"MonoRel": _monorel, "PIR": _people_in_rooms, "RuleTaker": _ruletaker}
    return makers[subtask](drawn, cast, label)


def slots(drawn: Draws) -> dict[str, str]:
    """Fill the slots of one paragraph's templates, each from a draw of its own."""
    return {
        name: values[int(below(drawn[-2 - index], len(values)))] for index, (name, values) in enumerate(_SLOTS.items())
    }


def _monorel(drawn: Draws, cast: Cast, label: bool) -> Instance:
    relation = RELATIONS[int(below(drawn[1], len(RELATIONS)))]
    top, middle, bottom = cast.person(), cast.person(), cast.person()
    pairs = ((top, middle), (middle, bottom), (top, bottom))
    upper, lower, conclusion = (f"{x} is {relation} than {y}." for x, y in pairs)
    first, second = (top, bottom) if label else (bottom, top)
    keys = ((upper, "pair", {"x": top, "y": middle}), (lower, "pair", {"x": middle, "y": bottom}))
    question = f"Is {first} {relation} than {second}?"
    return _instance(drawn, keys, question, label, (upper, lower, f"So {conclusion}"))


def _people_in_rooms(drawn: Draws, cast: Cast, label: bool) -> Instance:
    kinds = PROPERTIES[int(below(drawn[1], len(PROPERTIES)))]
    at = int(below(drawn[2], len(kinds)))
    own, other = kinds[at], kinds[(at + 1 + int(below(drawn[3], len(kinds) - 1))) % len(kinds)]
    person = cast.person()
    room = cast.room(person)
    inside, looks = f"{person} is in {room}.", f"{room} is {own}."
    true, false = (f"{person} is in {'an' if kind[0] in 'aeiou' else 'a'} {kind} room." for kind in (own, other))
    keys = ((inside, "occupant", {"x": person}), (looks, "room", {"r": room, "other": other}))
    return _instance(drawn, keys, true if label else false, label, (inside, looks, f"So {true}"))


def _ruletaker(drawn: Draws, cast: Cast, label: bool) -> Instance:
    order = np.argsort(drawn[4 : 4 + len(ATTRIBUTES)], kind="stable")[:4].tolist()
    one, two, then, beside = (ATTRIBUTES[index] for index in order)
    has = [one, two]
    missing = int(below(drawn[1], 2))
    if not label:
        has[missing] = beside
    person = cast.person()
    first, second, question = (f"{person} is {attribute}." for attribute in (*has, then))
    keys = ((first, "person", {"x": person}), (second, "person", {"x": person}))
    rule = f"If someone is {one} and {two} then they are {then}."
    so = f"So {question}" if label else f"Nothing says that {person} is {(one, two)[missing]}."
    return _instance(drawn, keys, question, label, (first, second, rule, so), rule)


def _instance(
    drawn: Draws, keys: Sequence[_Key], question: str, label: bool, steps: tuple[str, ...], rule: str = ""
) -> Instance:
    """Return an instance with its facts in drawn order."""
    one, other = (_fact(drawn, side, *key) for side, key in enumerate(keys))
    return Instance(question, label, steps, rule, (one, other) if int(below(drawn[0], 2)) else (other, one))


def _fact(drawn: Draws, side: int, sentence: str, kind: str, names: dict[str, str]) -> Fact:
    """Surround a fact; the two facts of an instance that share a kind of filler share none of its sentences."""
    own = drawn[_HEAD + side * _SIDE : _HEAD + (side + 1) * _SIDE]
    shared, always = FILLERS[kind], FILLERS["always"] if kind == "room" else []
    if kind in ("pair", "person"):
        order = np.argsort(drawn[_HEAD : _HEAD + len(shared)], kind="stable")[side::2]
    else:
        order = np.argsort(own[: len(shared)], kind="stable")
    filled = {**names, **slots(own)}
    fillers = tuple(template.format(**filled) for template in (*always, *(shared[at] for at in order.tolist())))
    return Fact(sentence, fillers, len(always), float(unit(own[_SIDE - 1])))


@lru_cache(maxsize=4)
def _strides(size: int) -> tuple[int, ...]:
    """Return steps that reach every number below ``size`` before any comes again."""
    return tuple(stride for stride in range(size // 3, size // 2) if gcd(stride, size) == 1)


def _walk(draw: Any, size: int, what: str) -> Iterator[int]:
    """Yield every number below ``size`` once, in a drawn order."""
    strides = _strides(size)
    start, stride = int(draw % np.uint64(size)), strides[int(below(draw, len(strides)))]
    for step in range(size):
        yield (start + step * stride) % size
    raise InputError(f"lengths: found more than padding 'same' can fill: the tiny world has no more than {size} {what}")
