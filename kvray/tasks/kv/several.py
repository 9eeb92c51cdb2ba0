"""several_kv: simple_kv with several keys asked at once, each in another dictionary.

What reviewers of arXiv 2406.19292 asked for: whether what is learned on one key carries to several, and the other way
round. Nothing of it is published, so law, wording and scorer are ours: all keys of a prompt differ, the asked ones lie
in different dictionaries, uniform over all of them, and are asked in random order; no other pair has one of their
values. The sentence of the answer is the paper's, once per key; 80 dictionaries instead of its 85 leave room for three
such sentences within 4,096 tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import model_validator

from kvray.errors import InputError
from kvray.tasks.base import Context, CountTokens, Task, examples, recipe, register
from kvray.tasks.kv.drafts import REDRAWS, Ints, again, high, integer_law, low, repeats, words_of
from kvray.tasks.prompts import KV_ANSWER, KV_HEAD
from kvray.tasks.rng import Draws, below, key_of

SEVERAL_TAIL = (
    "\n\nAbove is a list of dictionaries such that each key and value is an integer. "
    "Report the values of keys {keys}, in this order, and the dictionary that each of them is in."
)
SEVERAL_TEMPLATE = " Answer in the following template:\n{sentences}"

_STATED = re.compile(r"\bkey\s+(\d+)\s+is\s+(\d+)\b(?:(?!\bkey\b)[^\n])*?\bDictionary\s*\[(\d+)\]", re.IGNORECASE)
_BLOCK_ROWS = 256
_PROBE_AFTER = 8


def stated(answer: str) -> dict[str, tuple[str, str]]:
    """Return (value, dictionary) by key as an answer's sentences state them; the first statement about a key counts."""
    found: dict[str, tuple[str, str]] = {}
    for key, value, dictionary in _STATED.findall(answer):
        found.setdefault(key, (value, dictionary))
    return found


@register("several_kv")
class SeveralKV(Task):
    """Dictionary key-value retrieval of several keys at once (ours; paper section 2 asks for one)."""

    VERSION = 1
    UNIT = "dictionaries"
    MEASURES = "retrieval"
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
        for name in ("keys", "digits"):
            if (least := getattr(self, f"{name}_min")) > (most := getattr(self, f"{name}_max")):
                raise ValueError(f"{name}_min: found {least}, expected at most {name}_max = {most}")
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
        """Prompt tokens of one example, roughly: between a tokenizer of single digits and one of short pieces."""
        integer = 0.65 * (self.digits_min + self.digits_max + 0.8) / 2
        pairs = (self.keys_min + self.keys_max) / 2
        asked = 50 + self.keys_asked * (30 if self.template else 4)
        return min(self.max_tokens, asked + round(self.dictionaries * (5 + pairs * (2 * integer + 3.5))))

    def build(self, start: int, stop: int, context: Context) -> pa.Table:
        """Make examples ``[start, stop)``; every prompt is tokenized.

        Raises:
            InputError: a row finds no draft within the token budget; the message names the knobs.
        """
        key = key_of("several_kv", self.VERSION, self.seed)
        law = integer_law(self.digits_min, self.digits_max)
        made: list[_Made] = []
        for at in range(start, stop, _BLOCK_ROWS):
            made += self._settle(np.arange(at, min(at + _BLOCK_ROWS, stop)), key, law, context.count_tokens)
        ids = [f"row-{row:07d}" for row in range(start, stop)]
        return examples(
            {
                "example_id": ids,
                "question_id": ids,
                "units": [self.dictionaries] * len(ids),
                "prompt": [each.prompt for each in made],
                "answer": [each.answer for each in made],
                "references": [[each.answer] for each in made],
                "prompt_tokens": [each.tokens for each in made],
            }
        )

    def score(self, answer: str, references: Sequence[str]) -> float:
        """Return the share of the asked keys for which a sentence has the right value and the right dictionary.

        A sentence is "key K is V … Dictionary [N]", in any order; the first about a key counts. The rule is ours.
        """
        found = stated(answer)
        shares = [0.0]
        for reference in references:
            asked = stated(reference)
            shares.append(sum(found.get(key) == right for key, right in asked.items()) / max(1, len(asked)))
        return max(shares)

    def _settle(self, rows: Ints, key: int, law: Ints, count_tokens: CountTokens) -> list[_Made]:
        """Draft every row until it fits the budget; attempt ``a`` of a row does not depend on the other rows."""
        settled: dict[int, _Made] = {}
        pending, tokens = rows, 0
        for attempt in range(1 + REDRAWS):
            words = words_of(key, pending, self._width, attempt)
            drafts = self._draft(words, law)
            for row, (prompt, answer), tokens in zip(
                pending.tolist(), drafts, count_tokens([prompt for prompt, _ in drafts]).tolist(), strict=True
            ):
                if tokens <= self.max_tokens:
                    settled[row] = _Made(prompt, answer, tokens)
            pending = np.array([row for row in pending.tolist() if row not in settled], np.int64)
            if not pending.size:
                return [settled[row] for row in rows.tolist()]
            if attempt == _PROBE_AFTER and pending.size > 1:
                # Knobs that cannot work are found out on one row, not on hundreds.
                self._settle(pending[:1], key, law, count_tokens)
        raise InputError(
            f"several_kv: row {pending[0]}: no draft of {self.dictionaries} dictionaries stayed within max_tokens "
            f"(max_tokens: {self.max_tokens}) in {REDRAWS} redraws; the last had {tokens} tokens; lower dictionaries, "
            "keys_max or digits_max, or raise max_tokens"
        )

    @property
    def _width(self) -> int:
        """Random words per row: a size and a rank per dictionary, a slot per asked key, a word per pair."""
        return self.dictionaries * (2 + self.keys_max) + self.keys_asked

    def _draft(self, words: Draws, law: Ints) -> list[tuple[str, str]]:
        """Draw (prompt, answer) for each row of ``words``, shape ``(rows, width)``."""
        count, most, asked = self.dictionaries, self.keys_max, self.keys_asked
        each = np.arange(len(words))[:, None]
        sizes = self.keys_min + below(words[:, :count], most - self.keys_min + 1)
        # In the order of random words: which dictionaries are asked for, and in which order.
        gold = np.argsort(words[:, count : 2 * count], axis=1, kind="stable")[:, :asked]
        slots = below(words[:, 2 * count : 2 * count + asked], sizes[each, gold])
        at = gold * most + slots
        pairs = np.ascontiguousarray(words[:, 2 * count + asked :])
        keys, values = high(pairs, law), low(pairs, law)
        while True:
            # Only what is spoiled is drawn again, from its own word, until nothing is.
            spoiled = repeats(keys)
            for one in range(asked):
                same = values == values[each, at[:, one : one + 1]]
                same[each, at[:, one : one + 1]] = False
                spoiled |= same
            row, slot = np.nonzero(spoiled)
            if not row.size:
                break
            fresh = pairs[row, slot] = again(pairs[row, slot])
            keys[row, slot], values[row, slot] = high(fresh, law), low(fresh, law)
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


@dataclass(frozen=True)
class _Made:
    prompt: str
    answer: str
    tokens: int
