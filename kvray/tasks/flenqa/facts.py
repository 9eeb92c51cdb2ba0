"""Base instances of FLenQA's three tasks, made by us: two key facts, a question over both, and what surrounds them.

The published instances (Levy et al. 2024) state each key fact in a sentence that GPT-4 expanded to a paragraph; ours
expands it by templates. The people are the tiny world's test group, so no training data names them. What can be read
off one paragraph tells nothing:

- MonoRel: "A is older than B", "B is older than C"; asked is "Is A older than C?" or "Is C older than A?".
- PIR: "P is in R", "R is marble-floored"; asked is the property of R, or, for False, that of the hallway next to it,
  which excludes it and which the room's paragraph always gives. (The hallway is ours: without it the words of the
  question are in the text for True alone.)
- RuleTaker: "If someone is A and B then they are C", and of a person A and B, or, for False, only one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from typing import Any

import numpy as np

from kvray.errors import InputError
from kvray.tasks import world
from kvray.tasks.flenqa.fillers import FILLERS, slots
from kvray.tasks.flenqa.prompts import Subtask
from kvray.tasks.rng import Draws, below, unit

_HEAD, _SIDE = 32, 28
WIDTH = _HEAD + 2 * _SIDE
"""Random words of an instance: some for what it says, some for the surroundings of each fact."""

RELATIONS = tuple("older younger taller shorter faster slower stronger weaker richer poorer heavier lighter".split())
PROPERTIES = (
    ("marble-floored", "slate-floored", "cork-floored", "brick-floored", "tile-floored", "pine-floored"),
    ("blue-walled", "red-walled", "green-walled", "white-walled", "yellow-walled", "grey-walled"),
    ("oak-ceilinged", "tin-ceilinged", "glass-ceilinged", "plaster-ceilinged", "copper-ceilinged", "cedar-ceilinged"),
)
"""What rooms can be; those of one row exclude each other."""
ROOMS = (
    "study", "kitchen", "bedroom", "library", "workshop", "pantry", "attic", "cellar", "parlour", "nursery", "laundry",
    "office", "gallery", "studio", "greenhouse", "storeroom", "dining room", "living room", "playroom", "guest room",
    "tea room", "smithy", "brewhouse", "dairy",
)  # fmt: skip
ATTRIBUTES = tuple(
    "quiet brave patient curious stern cheerful frugal witty loyal nimble gentle tidy shy proud modest thrifty "
    "stubborn clever polite sturdy honest calm eager generous".split()
)


@dataclass(frozen=True)
class Fact:
    """A key fact and the sentences that can surround it, in the order in which they are taken.

    Attributes:
        sentence: the fact itself.
        fillers: sentences that neither give nor contradict an answer.
        least: how many of the fillers must be there.
        depth: where among its fillers the fact stands, in [0, 1).
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
class Instance:
    """A base instance, the same at every length. ``facts`` are in the order in which the text has them.

    Attributes:
        facts: the two key facts.
        question: the question or statement.
        label: its answer.
        steps: what leads to it, for a worked answer.
        rule: RuleTaker's rule, else "".
    """

    facts: tuple[Fact, Fact]
    question: str
    label: bool
    steps: tuple[str, ...]
    rule: str = ""


class Cast:
    """Endless supply of people and rooms that are used once each; a pure function of two random words."""

    def __init__(self, words: Draws) -> None:
        self._people = _walk(words[0], world.group_size("test"), "people")
        self._rooms = _walk(words[1], len(world.FIRST_NAMES) * len(ROOMS), "rooms")

    def person(self) -> str:
        """Return the full name of somebody new."""
        return world.name_of("test", next(self._people))

    def room(self, occupant: str) -> str:
        """Return a new room that does not belong to its occupant's namesake."""
        while True:
            owner, kind = divmod(next(self._rooms), len(ROOMS))
            if world.FIRST_NAMES[owner] != occupant.split(maxsplit=1)[0]:
                return f"{world.FIRST_NAMES[owner]}'s {ROOMS[kind]}"


def make(subtask: Subtask, words: Draws, cast: Cast, label: bool) -> Instance:
    """Make a base instance.

    Args:
        subtask: which of the three tasks.
        words: random words, shape ``(WIDTH,)``.
        cast: the people and rooms of one example; the paddings' instances take theirs from the same.
        label: the answer that it shall have.

    Raises:
        InputError: the cast is used up.
    """
    return _MAKERS[subtask](words, cast, label)


def _monorel(words: Draws, cast: Cast, label: bool) -> Instance:
    relation = RELATIONS[int(below(words[1], len(RELATIONS)))]
    top, middle, bottom = cast.person(), cast.person(), cast.person()
    said = [f"{x} is {relation} than {y}" for x, y in ((top, middle), (middle, bottom))]
    first, second = (top, bottom) if label else (bottom, top)
    facts = (
        _fact(f"{said[0]}.", "pair", words, 0, {"x": top, "y": middle}),
        _fact(f"{said[1]}.", "pair", words, 1, {"x": middle, "y": bottom}),
    )
    steps = (f"{said[0]}.", f"{said[1]}.", f"So {top} is {relation} than {bottom}.")
    return Instance(_ordered(facts, words), f"Is {first} {relation} than {second}?", label, steps)


def _pir(words: Draws, cast: Cast, label: bool) -> Instance:
    kinds = PROPERTIES[int(below(words[1], len(PROPERTIES)))]
    chosen = int(below(words[2], len(kinds)))
    other = (chosen + 1 + int(below(words[3], len(kinds) - 1))) % len(kinds)
    person = cast.person()
    room = cast.room(person)
    inside, looks = f"{person} is in {room}.", f"{room} is {kinds[chosen]}."
    facts = (
        _fact(inside, "occupant", words, 0, {"x": person}),
        _fact(looks, "room", words, 1, {"r": room, "other": kinds[other]}, least=1),
    )
    asked = kinds[chosen if label else other]
    steps = (inside, looks, f"So {person} is in {_article(kinds[chosen])} {kinds[chosen]} room.")
    return Instance(_ordered(facts, words), f"{person} is in {_article(asked)} {asked} room.", label, steps)


def _ruletaker(words: Draws, cast: Cast, label: bool) -> Instance:
    drawn = np.argsort(words[4 : 4 + len(ATTRIBUTES)], kind="stable")[:4].tolist()
    one, two, then, beside = (ATTRIBUTES[index] for index in drawn)
    has = [one, two]
    if not label:
        has[int(below(words[1], 2))] = beside
    person = cast.person()
    said = [f"{person} is {attribute}." for attribute in has]
    facts = (
        _fact(said[0], "person", words, 0, {"x": person}),
        _fact(said[1], "person", words, 1, {"x": person}),
    )
    rule = f"If someone is {one} and {two} then they are {then}."
    missing = next((attribute for attribute in (one, two) if attribute not in has), "")
    so = f"So {person} is {then}." if label else f"Nothing says that {person} is {missing}."
    return Instance(_ordered(facts, words), f"{person} is {then}.", label, (*said, rule, so), rule)


_MAKERS: dict[Subtask, Callable[[Draws, Cast, bool], Instance]] = {
    "MonoRel": _monorel,
    "PIR": _pir,
    "RuleTaker": _ruletaker,
}


def _fact(sentence: str, kind: str, words: Draws, side: int, names: dict[str, str], least: int = 0) -> Fact:
    """Surround a fact; the two facts of an instance that share a kind of filler share none of its sentences."""
    own = words[_HEAD + side * _SIDE : _HEAD + (side + 1) * _SIDE]
    shared, always = FILLERS[kind], FILLERS["always"] if least else ()
    if kind in ("pair", "person"):
        order = np.argsort(words[_HEAD : _HEAD + len(shared)], kind="stable")[side::2]
    else:
        order = np.argsort(own[: len(shared)], kind="stable")
    filled = {**names, **slots(own)}
    chosen = [*always, *(shared[index] for index in order.tolist())]
    return Fact(sentence, tuple(template.format(**filled) for template in chosen), least, float(unit(own[_SIDE - 1])))


def _ordered(facts: tuple[Fact, Fact], words: Draws) -> tuple[Fact, Fact]:
    return facts if int(below(words[0], 2)) else (facts[1], facts[0])


def _article(adjective: str) -> str:
    return "an" if adjective[0] in "aeiou" else "a"


@lru_cache(maxsize=4)
def _strides(size: int) -> tuple[int, ...]:
    """Return steps that reach every number below ``size`` before any comes again."""
    return tuple(stride for stride in range(size // 3, size // 2) if gcd(stride, size) == 1)


def _walk(word: Any, size: int, what: str) -> Iterator[int]:
    """Yield every number below ``size`` once, in an order that the word draws."""
    strides = _strides(size)
    start, stride = int(word % np.uint64(size)), strides[int(below(word, len(strides)))]
    for step in range(size):
        yield (start + step * stride) % size
    raise InputError(f"lengths: found more than padding 'same' can fill: the tiny world has no more than {size} {what}")
