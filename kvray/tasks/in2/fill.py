"""From a question and its segments to a prompt of a given length: filled up with other segments, all shuffled.

FILM's layout (An et al. 2024, appendix I, and the model card of FILM-7B). That segments stand on lines of their own is
ours: the paper only says that they are concatenated.
"""

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from kvray.errors import InputError
from kvray.tasks.base import CountTokens
from kvray.tasks.rng import Draws

TEXTS: dict[str, Any] = tomllib.loads(resources.files("kvray.tasks.in2").joinpath("texts.toml").read_text("utf-8"))
LAYOUT: str = TEXTS["layout"]


@dataclass(frozen=True)
class Segment:
    """A segment of the corpus, one line; ``tokens`` may be a little high (sentences counted one by one)."""

    text: str
    tokens: int


@dataclass(frozen=True)
class Draft:
    """One example before its context is filled.

    Attributes:
        references: what an answer must contain, all of it.
        gold: the segments that hold the answer.
        fillers: segments that do not, in the order in which they are taken; read as far as there is room.
        places: one random draw per segment, ``gold`` first: segments stand in the order of their draws.
    """

    question: str
    answer: str
    references: tuple[str, ...]
    gold: tuple[Segment, ...]
    fillers: Iterable[Segment]
    places: Draws


@dataclass(frozen=True)
class Filled:
    """A prompt, its tokens and the number of its segments."""

    prompt: str
    tokens: int
    segments: int


def fill(draft: Draft, length: int | None, count_tokens: CountTokens) -> Filled:
    """Return the longest prompt of at most ``length`` tokens; None stands for the gold segments alone.

    A segment's place among the others does not depend on how many follow it, so gold ones are anywhere alike.

    Raises:
        InputError: the gold segments alone are longer, or the fillers run out.
    """
    taken: list[Segment] = []
    filled = _filled(draft, taken, count_tokens)
    if length is None:
        return filled
    if filled.tokens > length:
        raise InputError(
            f"length_min: a prompt of {length} tokens was drawn, but the segments of its question and the wording take "
            f"{filled.tokens}; raise length_min, or lower segment_tokens"
        )
    fillers = iter(draft.fillers)
    expected = filled.tokens
    while expected <= length and (segment := next(fillers, None)) is not None:
        taken.append(segment)
        expected += segment.tokens
    # One by one, segments may be more or fewer tokens than they are in a prompt, and the prompt decides.
    filled = _filled(draft, taken, count_tokens)
    full = filled.tokens > length
    while filled.tokens > length:
        taken.pop()
        filled = _filled(draft, taken, count_tokens)
    while not full:
        segment = next(fillers, None)
        if segment is None:
            raise InputError(
                f"length_max: a prompt of {length} tokens was drawn, but all segments that do not give its answer away "
                f"make one of {filled.tokens}; give a longer source, or lower length_max"
            )
        taken.append(segment)
        longer = _filled(draft, taken, count_tokens)
        full = longer.tokens > length
        filled = filled if full else longer
    return filled


def _filled(draft: Draft, taken: Sequence[Segment], count_tokens: CountTokens) -> Filled:
    segments = [*draft.gold, *taken]
    order = np.argsort(draft.places[: len(segments)], kind="stable")
    prompt = LAYOUT.format(context="\n".join(segments[at].text for at in order.tolist()), question=draft.question)
    return Filled(prompt, int(count_tokens([prompt])[0]), len(segments))
