"""Haystacks: prompts of an exact length in tokens, made of whole sentences, with needles at chosen depths.

A haystack begins at a drawn sentence of its text and wraps round at the end. A needle at depth d goes in at the last
sentence break before d percent of its tokens, as in Kamradt's test (which cuts the text at the length, where ours ends
with a sentence). Sums over sentences suggest how many fit; then the tokenizer counts the whole prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from kvray.errors import InputError
from kvray.tasks import world
from kvray.tasks.base import CountTokens
from kvray.tasks.qa.questions import normalise
from kvray.tasks.rng import below, draws, key_of
from kvray.tasks.sources import read as sources
from kvray.tasks.sources.sentences import LONGEST, split_sentences
from kvray.tasks.world import TINY

Ints = NDArray[np.int64]
Supply = Callable[[int], tuple[list[str], Ints]]
"""Returns the haystack's pieces in order, of at least so many tokens in all, and the tokens each adds to a prompt."""

_BLOCK_TOKENS = 2**21
_ANCHOR = "So it is."


def read(source: str, count_tokens: CountTokens, group: world.Group, seed: int) -> Haystack:
    """Read a haystack: "tiny" (facts about a group, drawn by the seed) or any text (:mod:`kvray.tasks.sources.read`).

    Raises:
        InputError: the source cannot be read, or has no sentence of at most :data:`LONGEST` characters.
    """
    texts = [] if source == TINY else sources.texts(source)
    pieces = tiny(group, seed) if source == TINY else [piece for text in texts for piece in split_sentences(text)]
    if not pieces:
        raise InputError(f"{source}: no sentence of at most {LONGEST} characters in it")
    return Haystack(pieces, count_tokens)


def tiny(group: world.Group, seed: int) -> list[str]:
    """Return sentences of the made-up world: two facts on each person of a group, people in drawn order."""
    people = world.group_size(group)
    drawn = draws(key_of("haystack", 1, seed, group), 0, people, 4)
    order = np.argsort(drawn[:, 3], kind="stable").tolist()
    first = below(drawn[:, 0], 3)
    second = (first + 1 + (drawn[:, 0] & np.uint64(1)).astype(np.int64)) % 3
    pieces = []
    for row, person in enumerate(order):
        for which, draw in ((first[row], drawn[row, 1]), (second[row], drawn[row, 2])):
            relation = world.RELATION_NAMES[int(which)]
            values = world.RELATIONS[relation]
            value = values[int(below(draw, len(values)))]
            pieces.append(f" {world.fact(world.name_of(group, person), relation, value)}.")
    return pieces


def added(count_tokens: CountTokens, pieces: Sequence[str]) -> Ints:
    """Return the tokens that each piece adds to a text that it follows. Shape ``(len(pieces),)``."""
    counts = count_tokens([_ANCHOR, *(_ANCHOR + piece for piece in pieces)])
    more: Ints = np.maximum(counts[1:] - counts[0], 1)
    return more


@dataclass
class Haystack:
    """A text as sentences (each with the white space before it), from any of which a haystack can begin."""

    pieces: Sequence[str]
    count_tokens: CountTokens

    @cached_property
    def costs(self) -> Ints:
        return added(self.count_tokens, self.pieces)

    @cached_property
    def _until(self) -> Ints:
        """Tokens before each sentence, and of all of them."""
        return np.concatenate(([0], np.cumsum(self.costs)))

    @cached_property
    def _normal(self) -> list[str]:
        return [normalise(piece) for piece in self.pieces]

    def supply(self, start: int, forbidden: Sequence[str] = ()) -> Supply:
        """Return the supply that begins at sentence ``start`` and wraps round.

        Sentences that contain one of the ``forbidden`` texts (as :func:`normalise` leaves them) are left out, so that
        nothing but the needle states its fact.
        """

        def take(tokens: int) -> tuple[list[str], Ints]:
            size, reach = len(self.pieces), tokens + tokens // 8 + 64
            while True:
                rounds, rest = divmod(int(self._until[start]) + reach, int(self._until[-1]))
                end = rounds * size + int(np.searchsorted(self._until, rest)) + 1
                window = (np.arange(start, end) % size).tolist()
                kept = [i for i in window if not any(text in self._normal[i] for text in forbidden)]
                if not kept and len(window) >= size:
                    raise InputError(f"source: every sentence of it holds {' or '.join(map(repr, forbidden))}")
                costs = self.costs[kept]
                if int(costs.sum()) >= tokens:
                    return [self.pieces[i] for i in kept], costs
                reach *= 2

        return take


@dataclass(frozen=True)
class Frame:
    """What a prompt is made of; its ``length`` is the most tokens that it may have.

    ``needles`` are (depth in percent, text with its own white space before it), in any order.
    """

    supply: Supply
    needles: tuple[tuple[float, str], ...]
    head: str
    tail: str
    length: int


def fill(frames: Sequence[Frame], count_tokens: CountTokens) -> tuple[list[str], list[int]]:
    """Return the prompts, each with as many sentences as its length allows, and the tokens of each.

    Raises:
        InputError: a length has no room for a single sentence beside the needles and the question.
    """
    prompts: list[str] = []
    tokens: list[int] = []
    longest = max((frame.length for frame in frames), default=1)
    block = max(1, _BLOCK_TOKENS // longest)
    for start in range(0, len(frames), block):
        some = [_Filling(frame) for frame in frames[start : start + block]]
        bare = count_tokens([filling.bare for filling in some])
        for filling, fixed in zip(some, bare.tolist(), strict=True):
            filling.guess(fixed)
        while unsettled := [filling for filling in some if not filling.settled]:
            texts = [filling.text() for filling in unsettled]
            for filling, text, counted in zip(unsettled, texts, count_tokens(texts).tolist(), strict=True):
                filling.learn(text, counted)
        prompts += [filling.best for filling in some]
        tokens += [filling.tokens for filling in some]
    return prompts, tokens


def insert(pieces: Sequence[str], until: Ints, needles: Sequence[tuple[float, str]]) -> str:
    """Return a haystack with its needles, each at the last sentence break before its depth point.

    ``until`` has the tokens before each piece, and of all; shape ``(len(pieces) + 1,)``. Needles are (depth in percent,
    text): 0 comes first, 100 last, and several at one break by depth.
    """
    parts, begun = [], 0
    for depth, text in sorted(needles, key=lambda needle: needle[0]):
        at = int(np.searchsorted(until, depth * int(until[-1]) / 100, side="right")) - 1
        parts += [*pieces[begun:at], text]
        begun = at
    return "".join([*parts, *pieces[begun:]]).lstrip()


class _Filling:
    """The search for how many sentences of a haystack fill a prompt; ``best`` (of ``tokens``) is the longest so far."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.bare = frame.head + "".join(text for _, text in frame.needles) + frame.tail
        self.best, self.tokens = "", 0
        self.settled = False
        self._fits, self._exceeds = 0, 0  # the most sentences known to fit, and the fewest known not to

    def guess(self, fixed: int) -> None:
        """Begin with as many sentences as the sum of their tokens allows beside the ``fixed`` ones."""
        room = self.frame.length - fixed
        if room <= 0:
            raise InputError(self._too_short(fixed))
        self._take(room + room // 16 + 64)
        self._number = max(1, self._within(room))

    def text(self) -> str:
        context = insert(self._pieces[: self._number], self._until[: self._number + 1], self.frame.needles)
        return self.frame.head + context + self.frame.tail

    def learn(self, text: str, counted: int) -> None:
        """Note a prompt's tokens; choose another number of sentences unless this one is final."""
        spare = self.frame.length - counted
        if spare >= 0:
            self._fits, self.best, self.tokens = self._number, text, counted
        else:
            self._exceeds = self._number
        if self._exceeds == 1:
            raise InputError(self._too_short(counted))
        if self._number == len(self._pieces):
            self._take(2 * int(self._until[-1]))
        has_no_next = self._exceeds == self._fits + 1
        if has_no_next or 0 <= spare < self._until[self._number + 1] - self._until[self._number]:
            self.settled = True
            return
        highest = self._exceeds - 1 if self._exceeds else len(self._pieces)
        self._number = min(max(self._within(int(self._until[self._number]) + spare), self._fits + 1), highest)

    def _take(self, tokens: int) -> None:
        self._pieces, costs = self.frame.supply(tokens)
        self._until = np.concatenate(([0], np.cumsum(costs)))

    def _within(self, tokens: int) -> int:
        return max(0, int(np.searchsorted(self._until, tokens, side="right")) - 1)

    def _too_short(self, tokens: int) -> str:
        return (
            f"lengths: found {self.frame.length}; expected more: the needles and the question, with one sentence of "
            f"the haystack at least, take {tokens} tokens or more"
        )
