"""several_kv: simple_kv with several keys asked at once, each in another dictionary.

What reviewers of arXiv 2406.19292 asked for: whether what is learned on one key carries to several, and the other way
round. Nothing of it is published, so examples, wording and scorer are ours: all keys of a prompt differ, the asked ones
lie in different dictionaries, uniform over all of them, and are asked in random order; no other pair has one of their
values. The answer has the paper's sentence once per key; 80 dictionaries instead of its 85 leave room for three such
sentences within 4,096 tokens.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from pydantic import model_validator

from kvray.tasks.base import Context, CountTokens, recipe, register
from kvray.tasks.kv.base import Draft
from kvray.tasks.kv.draws import Ints, Mask, copies, repeats
from kvray.tasks.kv.simple import IntegersBuilder, IntegersTask
from kvray.tasks.kv.text import Parts, fill_in, listed
from kvray.tasks.prompts import KV_ANSWER, TEXTS
from kvray.tasks.rng import Draws, below

_STATED = re.compile(r"\bkey\s+(\d+)\s+is\s+(\d+)\b(?:(?!\bkey\b)[^\n])*?\bDictionary\s*\[(\d+)\]", re.IGNORECASE)


def stated(answer: str) -> dict[str, tuple[str, str]]:
    """Return (value, dictionary) by key as an answer's sentences state them; the first statement about a key counts."""
    statements: dict[str, tuple[str, str]] = {}
    for key, value, dictionary in _STATED.findall(answer):
        statements.setdefault(key, (value, dictionary))
    return statements


@register("several_kv")
class SeveralKV(IntegersTask):
    """Dictionary key-value retrieval of several keys at once (ours; paper section 2 asks for one)."""

    MAX_OUTPUT_TOKENS = 320
    SAME_EXAMPLES = frozenset({"rows", "template", "max_tokens", "count_bos"})

    task: Literal["several_kv"] = recipe("several_kv")
    keys_asked: int = recipe(3, ge=2, le=8, description="keys asked for, each in another dictionary")
    dictionaries: int = recipe(80, ge=2, le=99_999, description="per prompt")
    template: bool = recipe(True, description="ask for the answer in a template, a sentence per key")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.keys_asked > self.dictionaries:
            raise ValueError(
                f"keys_asked: found {self.keys_asked}, expected at most dictionaries = {self.dictionaries}, since each "
                "key is asked of another dictionary"
            )
        self.refuse_more_keys_than_integers(self.dictionaries)
        return self

    def tokens_estimate(self) -> int:
        asked = 50 + self.keys_asked * (30 if self.template else 4)
        return min(self.max_tokens, asked + round(self.dictionaries * self.dictionary_tokens()))

    def context(self, count_tokens: CountTokens, written: Sequence[str] | None = None) -> Context:
        return Context(count_tokens, SeveralBuilder(self, count_tokens))

    def score(self, answer: str, references: Sequence[str]) -> float:
        """Return the share of the asked keys for which a sentence has the right value and the right dictionary.

        A sentence is "key K is V … Dictionary [N]", in any order; the first about a key counts.
        Nothing is stripped and every line counts. The rule is ours.
        """
        answered = stated(answer)
        shares = [0.0]
        for reference in references:
            asked = stated(reference)
            shares.append(sum(answered.get(key) == right for key, right in asked.items()) / max(1, len(asked)))
        return max(shares)


@dataclass(kw_only=True)
class SeveralDraft(Draft):
    """A draft with ``holders``, the 0-based dictionary of each key asked for. Shape ``(rows, keys)``."""

    holders: Ints


class SeveralBuilder(IntegersBuilder):
    """Makes several_kv's examples; every prompt is tokenized."""

    task: SeveralKV

    def __init__(self, task: SeveralKV, count_tokens: CountTokens) -> None:
        super().__init__(task, count_tokens, task.keys_max)
        self.dictionaries = task.dictionaries
        # A size and a rank per dictionary, a slot per asked key, one draw per pair.
        self.width = task.dictionaries * (2 + task.keys_max) + task.keys_asked

    def _draft(self, drawn: Draws) -> Draft:
        count, most, asked = self.dictionaries, self.task.keys_max, self.task.keys_asked
        each = np.arange(len(drawn))[:, None]
        sizes = self.task.keys_min + below(drawn[:, :count], most - self.task.keys_min + 1)
        # In the order of random draws: which dictionaries are asked for, and in which order.
        holders = np.argsort(drawn[:, count : 2 * count], axis=1, kind="stable")[:, :asked]
        at = holders * most + below(drawn[:, 2 * count : 2 * count + asked], sizes[each, holders])

        def spoiled(touched: Ints, keys: Ints, values: Ints) -> Mask:
            marked = repeats(keys)
            for slots in at[touched].T:
                marked |= copies(values, slots)
            return marked

        keys, values = self._pairs(drawn[:, 2 * count + asked :], spoiled)
        key, value = keys[each, at], values[each, at]
        return SeveralDraft(index=self._index(keys, values, sizes), query=key, key=key, value=value, holders=holders)

    def _question(self, draft: Draft) -> Parts:
        question = fill_in(TEXTS["several_kv"]["tail"].removeprefix("\n"), keys=listed(self.numbers(draft.query)))
        if self.task.template:
            blanks = {"value": "<fill-in-value>", "dictionary": "<fill-in-dictionary-name>"}
            sentences = [fill_in(KV_ANSWER, key=key, **blanks) for key in self.numbers(draft.query).T]
            question += fill_in(TEXTS["several_kv"]["template"], sentences=_lines(sentences))
        return question

    def _answer(self, draft: Draft, gold: Ints) -> Parts:
        assert isinstance(draft, SeveralDraft)
        columns = (self.numbers(part).T for part in (draft.key, draft.value, draft.holders + 1))
        return _lines(
            [
                fill_in(KV_ANSWER, key=key, value=value, dictionary=label)
                for key, value, label in zip(*columns, strict=True)
            ]
        )


def _lines(sentences: Sequence[Parts]) -> Parts:
    return [part for sentence in sentences for part in ("\n", *sentence)][1:]
