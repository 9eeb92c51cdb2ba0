"""simple_kv: find a key among numbered dictionaries of integers, and report its value and its dictionary.

The task of "From Artificial Needles to Real Haystacks" (arXiv 2406.19292), under two laws. ``paper`` keeps what the
paper's scripts do, quirks included: the gold dictionary has 3 keys whatever the others have; a key repeated inside a
dictionary overwrites; the early gold positions end at 5 % of the number of *samples*; a draft over the token budget is
drawn again. ``strict`` has no quirk: all keys of a prompt differ, the gold dictionary is drawn like the others, early
positions end at 5 % of the dictionaries, and ``dictionaries: fit`` fills the budget instead of hoping for it.

Under both, no other pair has the gold key or the gold value.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import numpy as np
from pydantic import model_validator

from kvray.errors import InputError
from kvray.models.tokenizer import TokenCounter
from kvray.tasks.base import Context, CountTokens, recipe, register
from kvray.tasks.kv.base import Builder, DictionaryDraft, DictionaryTask, Layout
from kvray.tasks.kv.costs import Costs, measure_costs
from kvray.tasks.kv.drafts import GoldPositions, Ints, Mask, high, integer_pool, low, redraw, repeats
from kvray.tasks.kv.text import CELL_BYTES, Cells, cells, fill_in, integer_cells, squeeze, weave
from kvray.tasks.prompts import KV_ANSWER, KV_HEAD, KV_TAIL, KV_TEMPLATE
from kvray.tasks.rng import Draws, below, key_of

GOLD_KEYS = 3
"""Keys of the gold dictionary under law paper (``gold_dict_size``)."""
DRAFT_MARGIN, PROMPT_MARGIN = 100, 30
"""Law paper: tokens below ``max_tokens`` with the gold dictionary first, and as emitted."""
SECTIONS = (("", ": "), ("", ": "), ("", ", "), ("", "}\n"))
"""The text around an integer: a dictionary's first key, a further key, a value, its last value."""

_VALUE = re.compile(r"\bis\s+(\d+)\b")
_DICTIONARY = re.compile(r"\bDictionary\s*\[(\d+)\]")
_VERIFIED_ROWS = 16
_BLOCK_BYTES = 1 << 20


def answered(answer: str) -> tuple[str, str] | None:
    """Return (value, dictionary) as the first line of an answer states them, or None where it lacks either."""
    line = answer.strip().partition("\n")[0]
    value, dictionary = _VALUE.search(line), _DICTIONARY.search(line)
    return (value[1], dictionary[1]) if value and dictionary else None


def collapse(keys: Ints, values: Ints, sizes: Ints) -> None:
    """Let a repeated key of a dictionary overwrite, as in a Python dict: first place, last value. In place.

    ``keys`` and ``values`` have shape ``(rows, dictionaries, slots)``; ``sizes``, the slots in use, has shape
    ``(rows, dictionaries)`` and is lowered where keys repeat.
    """
    slots = keys.shape[2]
    absent = np.arange(slots) >= sizes[..., None]
    found = np.zeros(sizes.shape, np.bool_)
    for first in range(slots - 1):
        for later in range(first + 1, slots):
            row, dictionary = np.nonzero(keys[:, :, first] == keys[:, :, later])
            used = later < sizes[row, dictionary]
            row, dictionary = row[used], dictionary[used]
            values[row, dictionary, first] = values[row, dictionary, later]
            absent[row, dictionary, later] = True
            found[row, dictionary] = True
    where = np.nonzero(found)
    order = np.argsort(absent[where], axis=1, kind="stable")
    keys[where] = np.take_along_axis(keys[where], order, axis=1)
    values[where] = np.take_along_axis(values[where], order, axis=1)
    sizes[where] = slots - absent[where].sum(axis=1)


@register("simple_kv")
class SimpleKV(DictionaryTask):
    """Simple dictionary key-value retrieval (paper section 2; the defaults are the paper's training set)."""

    VERSION = 1
    MAX_OUTPUT_TOKENS = 64
    SAME_EXAMPLES = frozenset({"rows", "template", "max_tokens", "forced_first", "early"})

    task: Literal["simple_kv"] = recipe("simple_kv")
    rows: int = recipe(350, ge=1, description="examples")
    dictionaries: int | Literal["fit"] = recipe(85, description="per prompt; fit: as many as max_tokens holds")
    keys_min: int = recipe(3, ge=1, le=64, description="fewest keys of a dictionary")
    keys_max: int = recipe(4, ge=1, le=64, description="most keys of a dictionary")
    digits_min: int = recipe(3, ge=1, le=6, description="fewest digits of a key or value")
    digits_max: int = recipe(4, ge=1, le=6, description="most digits of a key or value")
    template: bool = recipe(True, description="ask for the answer in a template")
    law: Literal["paper", "strict"] = recipe("paper", description="with or without the paper's quirks")
    max_tokens: int = recipe(4096, ge=1, description="token budget of the prompt")
    forced_first: float = recipe(0.05, ge=0, le=1, description="share of samples with the gold dictionary first")
    early: float = recipe(0.03, ge=0, le=1, description="share of further samples with an early gold dictionary")

    @model_validator(mode="after")
    def _consistent(self) -> SimpleKV:
        if self.dictionaries == "fit" and self.law == "paper":
            raise ValueError("dictionaries: fit needs law: strict (the paper draws a fixed number within the budget)")
        if self.dictionaries != "fit" and not 1 <= self.dictionaries <= 99_999:
            raise ValueError(f"dictionaries: found {self.dictionaries}, expected 1 to 99999, or fit")
        dictionaries = 1 if self.dictionaries == "fit" else self.dictionaries
        if self.law == "strict" and dictionaries > self.most_dictionaries():
            raise ValueError(
                f"dictionaries: {dictionaries} with up to {self.keys_max} unique keys (law: strict) need more than "
                f"half of the integers of {self.digits_min} to {self.digits_max} digits; raise digits_max"
            )
        return self

    def most_dictionaries(self) -> int:
        """Return how many dictionaries leave room for unique keys, which take at most half of the integers."""
        integers: int = 10**self.digits_max - 10 ** (self.digits_min - 1)
        return integers // (2 * self.keys_max)

    def tokens_estimate(self) -> int:
        """About the tokens of a prompt: between a tokenizer of single digits and one of short pieces."""
        if self.dictionaries == "fit":
            return self.max_tokens
        integer = 0.65 * (self.digits_min + self.digits_max + 0.8) / 2
        pairs = (self.keys_min + self.keys_max) / 2
        return min(self.max_tokens, 90 + round(self.dictionaries * (5 + pairs * (2 * integer + 3.5))))

    def context(self, count_tokens: CountTokens, written: Sequence[str] | None = None) -> Context:
        return Context(count_tokens, SimpleBuilder(self, count_tokens))

    def score(self, answer: str, references: Sequence[str]) -> float:
        """Return 1.0 if the answer's first line names the right value and the right dictionary, else 0.0.

        The value is the integer after the first "is"; the dictionary the one in the first "Dictionary [...]". The
        paper's training task has no published scorer: the rule is ours.
        """
        found = answered(answer)
        return float(found is not None and any(found == answered(reference) for reference in references))


class SimpleBuilder(Builder):
    """Makes simple_kv's examples."""

    def __init__(self, task: SimpleKV, count_tokens: CountTokens) -> None:
        super().__init__(key_of("simple_kv", task.VERSION, task.seed), count_tokens)
        self.task = task
        self.paper = task.law == "paper"
        self.fit = task.dictionaries == "fit"
        self.slots = max(task.keys_max, GOLD_KEYS) if self.paper else task.keys_max
        self.limit = 10**task.digits_max
        self.positions = GoldPositions(self.key, task.rows, task.forced_first, task.early, by_samples=self.paper)
        self.question = KV_TAIL.removeprefix("\n") + (KV_TEMPLATE if task.template else "")
        budget = f"below max_tokens - {DRAFT_MARGIN}" if self.paper else "within max_tokens"
        self.unfit = (
            f"simple_kv: row {{row}}: no draft of {task.dictionaries} dictionaries stayed {budget} (max_tokens: "
            f"{task.max_tokens})"
        )
        self.pool = integer_pool(task.digits_min, task.digits_max)
        self.dictionaries = self._enough_dictionaries() if task.dictionaries == "fit" else task.dictionaries
        # The gold pair's slot, a size per dictionary, one draw per pair.
        self.width = 1 + self.dictionaries * (1 + self.slots)
        self.block_rows = max(1, _BLOCK_BYTES // (CELL_BYTES * self.width))
        self.remedy = "lower dictionaries, keys_max or digits_max, or raise max_tokens"

    def _enough_dictionaries(self) -> int:
        """Return enough to fill every prompt: half as many again as fit at mean length, and eight."""
        task, one = self.task, int(self.pool[self.pool.size // 2])
        line = f"Dictionary [10] {{{', '.join([f'{one}: {one}'] * task.keys_min)}}}\n"
        double, single, longer = self.count_tokens([line * 2, line, line + f"{one}: {one}, " * 16]).tolist()
        mean = (double - single) + (longer - single) / 16 * (task.keys_max - task.keys_min) / 2
        # Unique keys must be left room: with 3 or 4 digits, that is what limits long prompts.
        return min(int(task.max_tokens / max(mean, 1.0) * 1.5) + 8, task.most_dictionaries())

    @cached_property
    def _layout(self) -> Layout:
        sections = [integer_cells(self.limit, left, right) for left, right in SECTIONS]
        return Layout(KV_HEAD, np.concatenate([*sections, cells("", 1)]), self.dictionaries)

    @cached_property
    def _numbers(self) -> Cells:
        return integer_cells(max(self.limit, self.dictionaries + 1))

    @cached_property
    def costs(self) -> Costs | None:
        """Costs of the pieces, None where they do not add up to what the tokenizer counts for real prompts."""
        if not isinstance(self.count_tokens, TokenCounter):
            return None
        integers = (10 ** (self.task.digits_min - 1), self.limit)
        costs = measure_costs(self.count_tokens, self.question, integers, self.slots, self.dictionaries)
        if costs is None:
            return None
        rows = np.arange(_VERIFIED_ROWS)
        draft = self._attempt(rows, 0)
        sums = costs.sums(draft)
        if self.fit:
            draft.units = np.maximum((sums <= self.task.max_tokens).sum(axis=1), 1)
        exact = self._counted(draft, self.positions.of(rows, draft.units))
        return costs if np.array_equal(sums[rows, draft.units - 1], exact) else None

    def _draft(self, drawn: Draws) -> DictionaryDraft:
        task, rows = self.task, len(drawn)
        sizes = task.keys_min + below(drawn[:, 1 : 1 + self.dictionaries], task.keys_max - task.keys_min + 1)
        if self.paper:
            sizes[:, 0] = GOLD_KEYS
        at = below(drawn[:, 0], sizes[:, 0])
        pairs = np.ascontiguousarray(drawn[:, 1 + self.dictionaries :])
        keys, values = high(pairs, self.pool), low(pairs, self.pool)
        touched = np.arange(rows)
        gold_key, gold_value = keys[touched, at], values[touched, at]
        while touched.size:
            some = keys[touched]
            spoiled = (some == gold_key[touched, None]) | (values[touched] == gold_value[touched, None])
            if not self.paper:
                spoiled |= repeats(some)
            # Last: a gold key that repeats an earlier one stays, and the earlier one goes.
            spoiled[np.arange(touched.size), at[touched]] = False
            row, slot = np.nonzero(spoiled)
            row = touched[row]
            fresh = pairs[row, slot] = redraw(pairs[row, slot])
            keys[row, slot], values[row, slot] = high(fresh, self.pool), low(fresh, self.pool)
            touched = np.unique(row)
        shape = (rows, self.dictionaries, self.slots)
        keys, values = keys.reshape(shape), values.reshape(shape)
        if self.paper:
            collapse(keys, values, sizes)
        index = np.empty((*shape, 2), np.int64)
        np.add(keys, self.limit, out=index[..., 0])
        index[:, :, 0, 0] -= self.limit
        np.add(values, 2 * self.limit, out=index[..., 1])
        index.reshape(-1, self.slots, 2)[np.arange(sizes.size), sizes.reshape(-1) - 1, 1] += self.limit
        index[np.arange(self.slots) >= sizes[..., None]] = len(SECTIONS) * self.limit
        return DictionaryDraft(
            index=index.reshape(rows, self.dictionaries, 2 * self.slots),
            query=gold_key[:, None],
            key=gold_key[:, None],
            value=gold_value,
            units=np.full(rows, self.dictionaries),
            tokens=np.zeros(rows, np.int64),
        )

    def _prompts(self, draft: DictionaryDraft, gold: Ints) -> list[bytes]:
        return self._layout.prompts(draft, gold, fill_in(self.question, key=[self._numbers[draft.query[:, 0]]]))

    def _answers(self, draft: DictionaryDraft, gold: Ints) -> list[bytes]:
        key, value, label = (self._numbers[part] for part in (draft.key[:, 0], draft.value, gold + 1))
        return squeeze(weave(len(draft), fill_in(KV_ANSWER, key=[key], value=[value], dictionary=[label])))

    def _measure(self, rows: Ints, draft: DictionaryDraft) -> Mask:
        if self.fit:
            return self._fill(rows, draft)
        if self.costs is not None:
            # A sum does not depend on the order of the dictionaries: gold first and as emitted are the same.
            draft.tokens = first = self.costs.totals(draft)
        else:
            draft.tokens = first = self._counted(draft, self.positions.of(rows, draft.units))
            if self.paper:
                first = self._counted(draft, np.zeros(len(draft), np.int64))
        if not self.paper:
            return draft.tokens <= self.task.max_tokens
        return (first < self.task.max_tokens - DRAFT_MARGIN) & (draft.tokens < self.task.max_tokens - PROMPT_MARGIN)

    def _fill(self, rows: Ints, draft: DictionaryDraft) -> Mask:
        """Use the most dictionaries that stay within the budget."""
        budget = self.task.max_tokens
        if self.costs is not None:
            sums = self.costs.sums(draft)
            units = (sums <= budget).sum(axis=1)
            draft.tokens = sums[np.arange(len(draft)), np.maximum(units, 1) - 1]
        else:
            units, exceeds = np.zeros(len(draft), np.int64), np.full(len(draft), self.dictionaries + 1)
            draft.tokens = np.zeros(len(draft), np.int64)
            while np.any(exceeds - units > 1):
                # Rows that are settled are counted again at their own number, which changes nothing.
                draft.units = np.maximum((units + exceeds) // 2, 1)
                tokens = self._counted(draft, self.positions.of(rows, draft.units))
                within = tokens <= budget
                draft.tokens = np.where(within, tokens, draft.tokens)
                units, exceeds = np.where(within, draft.units, units), np.where(within, exceeds, draft.units)
        draft.units = units
        if units.min() == 0 or units.max() == self.dictionaries:
            remedy = "raise max_tokens" if units.min() == 0 else "lower max_tokens, or raise digits_max"
            raise InputError(
                f"simple_kv: dictionaries: fit found {units.min()} to {units.max()} dictionaries within max_tokens = "
                f"{budget}, of {self.dictionaries} that leave their unique keys room; {remedy}"
            )
        return np.ones(len(draft), np.bool_)
