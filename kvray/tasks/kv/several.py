"""several_kv: simple_kv with several keys asked at once, each in another dictionary.

What reviewers of arXiv 2406.19292 asked for: whether what is learned on one key carries to several, and the other way
round. Nothing of it is published, so examples, wording and scorer are ours: all keys of a prompt differ, the asked ones
lie in different dictionaries, uniform over all of them, and are asked in random order; no other pair has one of their
values. The answer has the paper's sentence once per key; 80 dictionaries instead of its 85 leave room for three such
sentences within 4,096 tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import model_validator

from kvray.tasks.base import Context, examples, recipe, register
from kvray.tasks.kv.base import DictionaryTask
from kvray.tasks.kv.drafts import Draft, Ints, Mask, draws_of, high, integer_pool, low, redraw, repeats, settle
from kvray.tasks.prompts import KV_ANSWER, KV_HEAD
from kvray.tasks.rng import Draws, below, key_of

SEVERAL_TAIL = (
    "\n\nAbove is a list of dictionaries such that each key and value is an integer. "
    "Report the values of keys {keys}, in this order, and the dictionary that each of them is in."
)
SEVERAL_TEMPLATE = " Answer in the following template:\n{sentences}"

_STATED = re.compile(r"\bkey\s+(\d+)\s+is\s+(\d+)\b(?:(?!\bkey\b)[^\n])*?\bDictionary\s*\[(\d+)\]", re.IGNORECASE)
_BLOCK_ROWS = 256


def stated(answer: str) -> dict[str, tuple[str, str]]:
    """Return (value, dictionary) by key as an answer's sentences state them; the first statement about a key counts."""
    statements: dict[str, tuple[str, str]] = {}
    for key, value, dictionary in _STATED.findall(answer):
        statements.setdefault(key, (value, dictionary))
    return statements


@register("several_kv")
class SeveralKV(DictionaryTask):
    """Dictionary key-value retrieval of several keys at once (ours; paper section 2 asks for one)."""

    VERSION = 1
    MAX_OUTPUT_TOKENS = 320
    SAME_EXAMPLES = frozenset({"rows", "template", "max_tokens"})

    task: Literal["several_kv"] = recipe("several_kv")
    rows: int = recipe(350, ge=1, description="examples")
    keys_asked: int = recipe(3, ge=2, le=8, description="keys asked for, each in another dictionary")
    dictionaries: int = recipe(80, ge=2, le=99_999, description="per prompt")
    keys_min: int = recipe(3, ge=1, le=64, description="fewest keys of a dictionary")
    keys_max: int = recipe(4, ge=1, le=64, description="most keys of a dictionary")
    digits_min: int = recipe(3, ge=1, le=6, description="fewest digits of a key or value")
    digits_max: int = recipe(4, ge=1, le=6, description="most digits of a key or value")
    template: bool = recipe(True, description="ask for the answer in a template, a sentence per key")
    max_tokens: int = recipe(4096, ge=1, description="token budget of the prompt")

    @model_validator(mode="after")
    def _consistent(self) -> SeveralKV:
        if self.keys_asked > self.dictionaries:
            raise ValueError(
                f"keys_asked: found {self.keys_asked}, expected at most dictionaries = {self.dictionaries}, since each "
                "key is asked of another dictionary"
            )
        integers = 10**self.digits_max - 10 ** (self.digits_min - 1)
        if 2 * self.dictionaries * self.keys_max > integers:
            raise ValueError(
                f"dictionaries: {self.dictionaries} with up to {self.keys_max} unique keys need more than half of the "
                f"{integers} integers of {self.digits_min} to {self.digits_max} digits; raise digits_max"
            )
        return self

    def tokens_estimate(self) -> int:
        integer = 0.65 * (self.digits_min + self.digits_max + 0.8) / 2
        pairs = (self.keys_min + self.keys_max) / 2
        asked = 50 + self.keys_asked * (30 if self.template else 4)
        return min(self.max_tokens, asked + round(self.dictionaries * (5 + pairs * (2 * integer + 3.5))))

    def build(self, start: int, stop: int, context: Context) -> pa.Table:
        """Make examples ``[start, stop)``; an InputError names the knobs if no draft of a row fits the token budget."""
        key, pool = key_of("several_kv", self.VERSION, self.seed), integer_pool(self.digits_min, self.digits_max)

        def attempt(rows: Ints, number: int) -> _Texts:
            pairs = self._draft(draws_of(key, rows, self._width, number), pool)
            prompts, answers = (np.array(texts, object) for texts in zip(*pairs, strict=True))
            return _Texts(prompt=prompts, answer=answers, tokens=context.count_tokens(prompts.tolist()))

        def fits(rows: Ints, draft: _Texts) -> Mask:
            return draft.tokens <= self.max_tokens

        unfit = (
            f"several_kv: row {{row}}: no draft of {self.dictionaries} dictionaries stayed within max_tokens "
            f"(max_tokens: {self.max_tokens})"
        )
        remedy = "lower dictionaries, keys_max or digits_max, or raise max_tokens"
        drafts = [
            settle(np.arange(at, min(at + _BLOCK_ROWS, stop)), attempt, fits, unfit, remedy)
            for at in range(start, stop, _BLOCK_ROWS)
        ]
        ids = [f"row-{row:07d}" for row in range(start, stop)]
        answers = [answer for draft in drafts for answer in draft.answer]
        return examples(
            {
                "example_id": ids,
                "question_id": ids,
                "units": [self.dictionaries] * len(ids),
                "prompt": [prompt for draft in drafts for prompt in draft.prompt],
                "answer": answers,
                "references": [[answer] for answer in answers],
                "prompt_tokens": [tokens for draft in drafts for tokens in draft.tokens],
            }
        )

    def score(self, answer: str, references: Sequence[str]) -> float:
        """Return the share of the asked keys for which a sentence has the right value and the right dictionary.

        A sentence is "key K is V … Dictionary [N]", in any order; the first about a key counts. The rule is ours.
        """
        answered = stated(answer)
        shares = [0.0]
        for reference in references:
            asked = stated(reference)
            shares.append(sum(answered.get(key) == right for key, right in asked.items()) / max(1, len(asked)))
        return max(shares)

    @property
    def _width(self) -> int:
        """Random draws per row: a size and a rank per dictionary, a slot per asked key, one draw per pair."""
        return self.dictionaries * (2 + self.keys_max) + self.keys_asked

    def _draft(self, drawn: Draws, pool: Ints) -> list[tuple[str, str]]:
        """Draw (prompt, answer) for each row of ``drawn``, shape ``(rows, width)``."""
        count, most, asked = self.dictionaries, self.keys_max, self.keys_asked
        each = np.arange(len(drawn))[:, None]
        sizes = self.keys_min + below(drawn[:, :count], most - self.keys_min + 1)
        # In the order of random draws: which dictionaries are asked for, and in which order.
        gold = np.argsort(drawn[:, count : 2 * count], axis=1, kind="stable")[:, :asked]
        slots = below(drawn[:, 2 * count : 2 * count + asked], sizes[each, gold])
        at = gold * most + slots
        pairs = np.ascontiguousarray(drawn[:, 2 * count + asked :])
        keys, values = high(pairs, pool), low(pairs, pool)
        while True:
            # Only spoiled pairs are drawn again, each from its own draw, until none is left.
            spoiled = repeats(keys)
            for one in range(asked):
                same = values == values[each, at[:, one : one + 1]]
                same[each, at[:, one : one + 1]] = False
                spoiled |= same
            row, slot = np.nonzero(spoiled)
            if not row.size:
                break
            fresh = pairs[row, slot] = redraw(pairs[row, slot])
            keys[row, slot], values[row, slot] = high(fresh, pool), low(fresh, pool)
        return [
            self._text(*one)
            for one in zip(keys.tolist(), values.tolist(), sizes.tolist(), gold.tolist(), at.tolist(), strict=True)
        ]

    def _text(
        self, keys: list[int], values: list[int], sizes: list[int], gold: list[int], at: list[int]
    ) -> tuple[str, str]:
        most = self.keys_max
        lines = []
        for index, size in enumerate(sizes):
            span = range(index * most, index * most + size)
            lines.append(f"Dictionary [{index + 1}] {{{', '.join(f'{keys[i]}: {values[i]}' for i in span)}}}")
        listed = ", ".join(str(keys[i]) for i in at)
        prompt = KV_HEAD + "\n".join(lines) + SEVERAL_TAIL.format(keys=listed)
        if self.template:
            blanks = {"value": "<fill-in-value>", "dictionary": "<fill-in-dictionary-name>"}
            sentences = "\n".join(KV_ANSWER.format(key=keys[i], **blanks) for i in at)
            prompt += SEVERAL_TEMPLATE.format(sentences=sentences)
        answer = "\n".join(
            KV_ANSWER.format(key=keys[i], value=values[i], dictionary=index + 1)
            for index, i in zip(gold, at, strict=True)
        )
        return prompt, answer


@dataclass(kw_only=True)
class _Texts(Draft):
    """Prompts and answers as arrays of texts."""

    prompt: NDArray[np.object_]
    answer: NDArray[np.object_]
