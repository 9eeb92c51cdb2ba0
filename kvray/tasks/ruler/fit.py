"""Filling a haystack to a length in tokens, by the tokenizer: the most units of it, within a tolerance."""

from collections.abc import Sequence
from itertools import count

from kvray.errors import InputError
from kvray.tasks.base import CountTokens
from kvray.tasks.needle.haystack import Search, together
from kvray.tasks.ruler.subtasks import Draft

TOLERANCE = 256
"""A prompt may be shorter than it could be by one part in so many: RULER's own haystacks grow in coarser steps."""
_BLOCK_TOKENS = 2**21  # tokens of the prompts counted side by side
_PROBE = 64  # units from which a first estimate is made
_BISECTED = 8  # prompts after which the search halves the range


def fill(
    drafts: Sequence[Draft], rooms: Sequence[int], names: Sequence[str], count_tokens: CountTokens
) -> tuple[list[str], list[int]]:
    """Return prompts of at most ``rooms`` tokens and the tokens of each; an InputError names one that has no room."""
    block = max(1, _BLOCK_TOKENS // max(1, *rooms))
    searches = [_search(*each) for each in zip(drafts, rooms, names, strict=True)]
    found = []
    for start in range(0, len(searches), block):
        found += together(searches[start : start + block], count_tokens)
    return [prompt for prompt, _ in found], [tokens for _, tokens in found]


def _search(draft: Draft, room: int, name: str) -> Search:
    """Search between a size that fits and one that does not, where tokens grow about evenly with the size."""
    fits, prompt = draft.least, draft.worded(draft.least)
    tokens = yield prompt
    if tokens > room:
        raise InputError(
            f"lengths: found {max(0, room)} tokens for a prompt of {name}, beside answer, answer prefix and chat "
            f"template; expected {tokens} at least, which the smallest haystack takes"
        )
    size, exceeds = fits + _PROBE, draft.most + 1 if draft.most is not None else None
    over = 0  # tokens at ``exceeds``, once counted
    for step in count(1):
        size = max(size, fits + 1)
        size = size if exceeds is None else min(size, exceeds - 1)
        if size <= fits:
            return prompt, tokens
        tried = draft.worded(size)
        counted = yield tried
        growth = (counted - tokens) / (size - fits)
        if counted <= room:
            fits, prompt, tokens = size, tried, counted
            if room - tokens <= room // TOLERANCE:
                return prompt, tokens
        else:
            exceeds, over = size, counted
        if over and exceeds is not None:
            growth = (over - tokens) / (exceeds - fits)
            size = (fits + exceeds) // 2 if step > _BISECTED else fits + int((room - tokens) / growth)
        else:
            size = fits + int((room - tokens) / max(growth, 0.01))
    raise AssertionError
