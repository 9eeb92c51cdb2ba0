"""Haystacks: prompts of an exact length in tokens, made of whole sentences, with needles at chosen depths.

A haystack begins at a drawn sentence of its text and wraps round at the end. A needle at depth d goes in at the last
sentence break before d percent of its tokens, as in Kamradt's test (which cuts the text at the length, where ours ends
with a sentence). Sums over sentences suggest how many fit; then the tokenizer counts the whole prompt.
"""

import sys
from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kvray.errors import InputError
from kvray.tasks import world
from kvray.tasks.base import CountTokens
from kvray.tasks.qa.questions import normalise
from kvray.tasks.rng import draws, key_of
from kvray.tasks.rows import Example, table
from kvray.tasks.sources.read import texts
from kvray.tasks.sources.sentences import LONGEST, split_sentences
from kvray.tasks.world import TINY

Supply = Iterator[tuple[str, int]]
"""The haystack's pieces in order, without end, each with the tokens that it adds to a prompt."""

Search = Generator[str, int, tuple[str, int]]
"""Yields prompts, is sent the tokens of each, and returns the one that fills a length, with its tokens."""

_BLOCK_TOKENS = 2**21
_ANCHOR = "So it is."


def tiny(group: world.Group, seed: int) -> list[str]:
    """Return sentences of the made-up world: two facts on each person of a group, people in drawn order."""
    drawn = draws(key_of("haystack", 1, seed, group), 0, world.group_size(group), 4)
    people = np.argsort(drawn[:, 3], kind="stable").tolist()
    return [
        f" {world.fact(world.name_of(group, person), relation, value)}."
        for person, of_row in zip(people, drawn, strict=True)
        for relation, value in world.two_facts(of_row)
    ]


def added(count_tokens: CountTokens, pieces: Sequence[str]) -> NDArray[np.int64]:
    """Return the tokens that each piece adds to a text that it follows. Shape ``(len(pieces),)``."""
    counts = count_tokens([_ANCHOR, *(_ANCHOR + piece for piece in pieces)])
    more: NDArray[np.int64] = np.maximum(counts[1:] - counts[0], 1)
    return more


@dataclass
class Haystack:
    """A text as sentences (each with the white space before it), from any of which a haystack can begin."""

    pieces: Sequence[str]
    count_tokens: CountTokens

    @cached_property
    def _costs(self) -> list[int]:
        costs: list[int] = added(self.count_tokens, self.pieces).tolist()
        return costs

    @cached_property
    def _normal(self) -> list[str]:
        return [normalise(piece) for piece in self.pieces]

    def supply(self, start: int, forbidden: Sequence[str] = ()) -> Supply:
        """Yield sentences from number ``start`` on, wrapping round; an InputError if none is left.

        Those with one of the ``forbidden`` texts (normalised) are left out, so that only the needle states its fact.
        """
        size, left_out = len(self.pieces), 0
        while left_out < size:
            if any(text in self._normal[start] for text in forbidden):
                left_out += 1
            else:
                left_out = 0
                yield self.pieces[start], self._costs[start]
            start = (start + 1) % size
        raise InputError(f"source: every sentence of it holds {' or '.join(map(repr, forbidden))}")


def read(source: str, count_tokens: CountTokens, group: world.Group, seed: int) -> Haystack:
    """Read a haystack: "tiny" (facts about a group, drawn by the seed) or any text (:mod:`kvray.tasks.sources.read`).

    Raises InputError if the source cannot be read, or has no sentence of at most :data:`LONGEST` characters.
    """
    if source == TINY:
        pieces = tiny(group, seed)
    else:
        pieces = [piece for text in texts(source) for piece in split_sentences(text)]
    if not pieces:
        raise InputError(f"{source}: no sentence of at most {LONGEST} characters in it")
    return Haystack(pieces, count_tokens)


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
    """Return the prompts, with as many sentences as fit, and the tokens of each; an InputError if not one fits."""
    block = max(1, _BLOCK_TOKENS // max((frame.length for frame in frames), default=1))
    found = [
        each
        for start in range(0, len(frames), block)
        for each in together([_search(frame) for frame in frames[start : start + block]], count_tokens)
    ]
    return [prompt for prompt, _ in found], [tokens for _, tokens in found]


def together(searches: Sequence[Search], count_tokens: CountTokens) -> list[tuple[str, int]]:
    """Run searches side by side, so that a tokenizer counts the prompts of all at once; return what each found."""
    filled: dict[int, tuple[str, int]] = {}
    prompts = {number: next(search) for number, search in enumerate(searches)}
    while prompts:
        counts = count_tokens(list(prompts.values())).tolist()
        for number, counted in zip(list(prompts), counts, strict=True):
            try:
                prompts[number] = searches[number].send(counted)
            except StopIteration as found:
                filled[number] = found.value
                del prompts[number]
    return [filled[number] for number in range(len(searches))]


def examples(made: Sequence[Example], frames: Sequence[Frame], count_tokens: CountTokens) -> pa.Table:
    """Return examples as a table, each with the prompt that fills its frame."""
    prompts, tokens = fill(frames, count_tokens)
    complete = [
        replace(each, prompt=prompt, prompt_tokens=counted)
        for each, prompt, counted in zip(made, prompts, tokens, strict=True)
    ]
    return table(complete, count_tokens)


def insert(pieces: Sequence[str], until: Sequence[int], needles: Sequence[tuple[float, str]]) -> str:
    """Return a haystack with its needles, each at the last sentence break before its depth point.

    ``until`` has the tokens before each piece, and of all: ``len(pieces) + 1``. Needles are (depth in percent, text).
    """
    parts, begun = [], 0
    for depth, text in sorted(needles, key=lambda needle: needle[0]):
        at = bisect_right(until, depth * until[-1] / 100) - 1
        parts += [*pieces[begun:at], text]
        begun = at
    return "".join([*parts, *pieces[begun:]]).lstrip()


def _search(frame: Frame) -> Search:
    """Search the number of sentences that fills a prompt."""
    pieces: list[str] = []
    until = [0]  # tokens before each piece, and of all

    def within(tokens: int) -> int:
        """Return how many pieces have at most so many tokens in sum, having read one more."""
        while until[-1] <= tokens:
            piece, cost = next(frame.supply)
            pieces.append(piece)
            until.append(until[-1] + cost)
        return bisect_right(until, tokens) - 1

    counted = yield frame.head + "".join(text for _, text in frame.needles) + frame.tail
    if counted >= frame.length:
        raise _too_short(frame, counted)
    number = max(1, within(frame.length - counted))
    fits, exceeds = 0, sys.maxsize  # the most sentences known to fit, and the fewest known not to
    longest = ("", 0)
    while True:
        prompt = frame.head + insert(pieces[:number], until[: number + 1], frame.needles) + frame.tail
        counted = yield prompt
        spare = frame.length - counted
        if spare >= 0:
            fits, longest = number, (prompt, counted)
        else:
            exceeds = number
        if exceeds == 1:
            raise _too_short(frame, counted)
        within(until[number])  # reads the next piece
        if exceeds == fits + 1 or 0 <= spare < until[number + 1] - until[number]:
            return longest
        number = min(max(within(until[number] + spare), fits + 1), exceeds - 1)


def _too_short(frame: Frame, tokens: int) -> InputError:
    return InputError(
        f"lengths: found {frame.length}; expected more: the needles and the question, with one sentence of "
        f"the haystack at least, take {tokens} tokens or more"
    )
