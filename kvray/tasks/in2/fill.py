"""From a question and its segments to a prompt of a given length: filled up with other segments, all shuffled.

FILM's layout (An et al. 2024, appendix I; FILM-7B's card), except that segments stand on lines of their own (ours).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from kvray.errors import InputError
from kvray.tasks import prompts
from kvray.tasks.base import CountTokens
from kvray.tasks.rng import Draws
from kvray.tasks.rows import Example

TEXTS = prompts.load("in2/texts.toml")
LAYOUT: str = TEXTS["layout"]


@dataclass(frozen=True)
class Segment:
    """A segment of the corpus, one line; ``tokens`` may be a little high (sentences counted one by one)."""

    text: str
    tokens: int


@dataclass(frozen=True)
class Draft:
    """One example before its context is filled; an answer must contain all ``references``, found in ``gold`` segments.

    ``fillers`` are taken in order, as far as there is room. All segments stand in the order of ``places``, one random
    draw per segment, ``gold`` first.
    """

    question: str
    answer: str
    references: tuple[str, ...]
    gold: tuple[Segment, ...]
    fillers: Iterable[Segment]
    places: Draws


def fill(draft: Draft, length: int | None, count_tokens: CountTokens) -> Example:
    """Return an example whose prompt is the longest of at most ``length`` tokens; None: the gold segments alone.

    Its ``units`` are the segments. A segment's place among the others does not depend on how many follow it, so gold
    ones are anywhere alike. Raises InputError if the gold segments alone are longer, or the fillers run out.
    """
    filled = _filled(draft, [], length, count_tokens)
    if length is None:
        return filled
    if filled.prompt_tokens > length:
        raise InputError(
            f"length_min: a prompt of {length} tokens was drawn, but the segments of its question and the wording take "
            f"{filled.prompt_tokens}; raise length_min, or lower segment_tokens"
        )
    fillers = iter(draft.fillers)
    taken: list[Segment] = []
    expected = filled.prompt_tokens
    while expected <= length and (segment := next(fillers, None)) is not None:
        taken.append(segment)
        expected += segment.tokens
    # One by one, segments may be more or fewer tokens than they are in a prompt, and the prompt decides.
    filled = _filled(draft, taken, length, count_tokens)
    if filled.prompt_tokens > length:
        while filled.prompt_tokens > length:
            taken.pop()
            filled = _filled(draft, taken, length, count_tokens)
        return filled
    for segment in fillers:
        taken.append(segment)
        longer = _filled(draft, taken, length, count_tokens)
        if longer.prompt_tokens > length:
            return filled
        filled = longer
    raise InputError(
        f"length_max: a prompt of {length} tokens was drawn, but all segments that do not give its answer away make "
        f"one of {filled.prompt_tokens}; give a longer source, or lower length_max"
    )


def _filled(draft: Draft, taken: Sequence[Segment], length: int | None, count_tokens: CountTokens) -> Example:
    segments = [*draft.gold, *taken]
    order = np.argsort(draft.places[: len(segments)], kind="stable")
    prompt = LAYOUT.format(context="\n".join(segments[at].text for at in order.tolist()), question=draft.question)
    tokens = int(count_tokens([prompt])[0])
    return Example(prompt, draft.answer, draft.references, units=len(segments), length=length, prompt_tokens=tokens)
