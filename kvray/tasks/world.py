"""A made-up world of people and facts, shared by the tasks and by the bundled model that was trained on it.

Every person has one value per relation. Three groups of people share no names:

- the *known*: their facts are what ``kvray-tiny`` has learned by heart; ``recall`` asks about them closed book;
- the *train* group: names for training data, whose facts are drawn anew for every question;
- the *test* group: names that no training ever shows, for evaluations.

A fact reads "The birthplace of Belda Cranford is Velmora." and is asked as "What is the birthplace of Belda
Cranford?", so that an answer restates the sentence of its document up to the value (the paper's answer template,
section 3.2).
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import product
from types import MappingProxyType
from typing import Literal

from kvray.tasks import prompts
from kvray.tasks.rng import Draws, below, draws, key_of, permutation
from kvray.tasks.sources import read

Group = Literal["known", "train", "test"]
TINY = "tiny"
"""The ``source`` of a task that stands for this world."""

_TEXTS = prompts.load("world.toml")


# Every beginning with every ending.
FIRST_NAMES, LAST_NAMES, CITIES = (
    tuple(map("".join, product(*map(str.split, _TEXTS[name])))) for name in ("first_names", "last_names", "cities")
)
TRADES = tuple(_TEXTS["trades"].split())
EMBLEMS = tuple(_TEXTS["emblems"].split())
RELATIONS: dict[str, tuple[str, ...]] = {"birthplace": CITIES, "trade": TRADES, "emblem": EMBLEMS}
RELATION_NAMES = tuple(RELATIONS)
KNOWN_PEOPLE = 160
"""People whose facts the bundled model knows by heart: 160 x 3 facts."""

_PEOPLE = len(FIRST_NAMES) * len(LAST_NAMES)
# A fixed shuffle of all name pairs: the known come first, then the test group, then the train group.
_ORDER = permutation(key_of("world", 1, "order"), _PEOPLE)
_TEST_PEOPLE = 4000
_BOUNDS = {
    "known": (0, KNOWN_PEOPLE),
    "test": (KNOWN_PEOPLE, KNOWN_PEOPLE + _TEST_PEOPLE),
    "train": (KNOWN_PEOPLE + _TEST_PEOPLE, _PEOPLE),
}
_KNOWN_VALUES = {
    name: below(draws(key_of("world", 1, name), 0, KNOWN_PEOPLE, 1)[:, 0], len(values))
    for name, values in RELATIONS.items()
}


def source_identity(source: str) -> str:
    """Return what identifies a source: the version of this world, or the sha256 of its content."""
    return "tiny-world-1" if source == TINY else read.digest(source)


def group_size(group: Group) -> int:
    """Return how many people a group has."""
    low, high = _BOUNDS[group]
    return high - low


def name_of(group: Group, person: int) -> str:
    """Return the full name of a person, numbered from 0 within the group."""
    low, high = _BOUNDS[group]
    if not 0 <= person < high - low:
        raise IndexError(f"{group} has people 0 to {high - low - 1}, not {person}")
    first, last = divmod(int(_ORDER[low + person]), len(LAST_NAMES))
    return f"{FIRST_NAMES[first]} {LAST_NAMES[last]}"


def known_value(person: int, relation: str) -> str:
    """Return a known person's value of a relation."""
    return RELATIONS[relation][int(_KNOWN_VALUES[relation][person])]


def two_facts(
    drawn: Draws, avoided: Mapping[str, Collection[str]] = MappingProxyType({}), relation: str | None = None
) -> list[tuple[str, str]]:
    """Return two facts (relation, value) of different relations from at least three draws.

    The first is of ``relation``, None for a drawn one; no value is one of ``avoided``, by relation.
    """
    first = int(below(drawn[0], 3)) if relation is None else RELATION_NAMES.index(relation)
    second = (first + 1 + (int(drawn[0]) & 1)) % 3
    facts = []
    for name, draw in ((RELATION_NAMES[first], drawn[1]), (RELATION_NAMES[second], drawn[2])):
        values: Sequence[str] = RELATIONS[name]
        if name in avoided:
            values = [value for value in values if value not in avoided[name]]
        facts.append((name, values[int(below(draw, len(values)))]))
    return facts


def fact(name: str, relation: str, value: str) -> str:
    """Word a fact, without its full stop."""
    return f"The {relation} of {name} is {value}"


def question(name: str, relation: str) -> str:
    """Word the question that a fact answers."""
    return f"What is the {relation} of {name}?"


def passage(name: str, facts: Sequence[tuple[str, str]]) -> str:
    """Word a document's text: one sentence per (relation, value)."""
    return " ".join(f"{fact(name, relation, value)}." for relation, value in facts)
