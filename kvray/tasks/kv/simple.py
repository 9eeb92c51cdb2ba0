"""simple_kv: find a key among numbered dictionaries of integers, and report its value and its dictionary.

The task of "From Artificial Needles to Real Haystacks" (arXiv 2406.19292), under two laws. ``paper`` keeps what the
paper's scripts do, quirks included: the gold dictionary has 3 keys whatever the others have; a key repeated inside a
dictionary overwrites; the early gold positions end at 5 % of the number of *samples*; a draft over the token budget is
drawn again. ``strict`` has no quirk: all keys of a prompt differ, the gold dictionary is drawn like the others, early
positions end at 5 % of the dictionaries, and ``dictionaries: fit`` fills the budget instead of hoping for it.

Under both, no other pair has the gold key or the gold value.
"""

import re
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Literal, Self

import numpy as np
from pydantic import model_validator

from kvray.errors import InputError
from kvray.models.tokenizer import TokenCounter
from kvray.tasks.base import Context, CountTokens, recipe, register
from kvray.tasks.kv.base import Builder, DictionaryTask, Draft
from kvray.tasks.kv.costs import Costs, measure_costs
from kvray.tasks.kv.draws import Ints, Mask, choose, copies, integer_pool, pick_until, repeats
from kvray.tasks.kv.paper import BUDGET, GOLD_KEYS, accepted, collapse
from kvray.tasks.kv.text import Numbers, Parts, fill_in
from kvray.tasks.prompts import KV_ANSWER, KV_TAIL, KV_TEMPLATE
from kvray.tasks.rng import Draws, below

AROUND = (("", ": "), ("", ": "), ("", ", "), ("", "}\n"))
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


class IntegersTask(DictionaryTask):
    """Dictionaries whose keys and values are integers of the same numbers of digits."""

    keys_min: int = recipe(3, ge=1, le=64, description="fewest keys of a dictionary")
    keys_max: int = recipe(4, ge=1, le=64, description="most keys of a dictionary")
    digits_min: int = recipe(3, ge=1, le=6, description="fewest digits of a key or value")
    digits_max: int = recipe(4, ge=1, le=6, description="most digits of a key or value")

    def most_dictionaries(self) -> int:
        """Return how many dictionaries leave room for unique keys, which take at most half of the integers."""
        integers: int = 10**self.digits_max - 10 ** (self.digits_min - 1)
        return integers // (2 * self.keys_max)

    def refuse_more_keys_than_integers(self, dictionaries: int, law: str = "") -> None:
        """Raise a ValueError, for pydantic, if the dictionaries leave too little room for unique keys."""
        if dictionaries > self.most_dictionaries():
            raise ValueError(
                f"dictionaries: {dictionaries} with up to {self.keys_max} unique keys{law} need more than half of the "
                f"integers of {self.digits_min} to {self.digits_max} digits; raise digits_max"
            )

    def dictionary_tokens(self) -> float:
        """About the tokens of a dictionary: between a tokenizer of single digits and one of short pieces."""
        integer = 0.65 * (self.digits_min + self.digits_max + 0.8) / 2
        return 5 + (self.keys_min + self.keys_max) / 2 * (2 * integer + 3.5)


class IntegersBuilder(Builder):
    """Makes examples of an :class:`IntegersTask` with at most ``slots`` keys in a dictionary."""

    remedy = "lower dictionaries, keys_max or digits_max"

    def __init__(self, task: IntegersTask, count_tokens: CountTokens, slots: int) -> None:
        super().__init__(task, count_tokens)
        self.slots = slots
        self.limit = 10**task.digits_max
        self.sections = [(self.limit, *around) for around in AROUND]
        self.pool = integer_pool(task.digits_min, task.digits_max)

    def _pairs(self, drawn: Draws, spoiled: Callable[[Ints, Ints, Ints], Mask]) -> list[Ints]:
        def value(drawn: Draws) -> Ints:
            return choose(drawn << np.uint64(32), self.pool)

        # The upper half of a draw makes the key, the lower half the value.
        return pick_until(drawn, (partial(choose, pool=self.pool), value), spoiled)

    def _index(self, keys: Ints, values: Ints, sizes: Ints) -> Numbers:
        """Return the index of a draft with ``sizes`` pairs per dictionary, of shape ``(rows, dictionaries)``."""
        index = np.empty((sizes.size, self.slots, 2), np.int32)
        index[..., 0], index[..., 1] = keys.reshape(-1, self.slots), values.reshape(-1, self.slots)
        in_use, starts = (table.take(sizes.reshape(-1), axis=0) for table in self._layouts)
        index *= in_use
        index += starts
        return index.reshape(*sizes.shape, -1)

    @cached_property
    def _layouts(self) -> tuple[Numbers, Numbers]:
        """By size of a dictionary: whether an entry is in use (1 or 0), and its section's start, or the empty entry.

        Shapes ``(slots + 1, slots, 2)``.
        """
        size, slot = np.arange(self.slots + 1)[:, None], np.arange(self.slots)
        in_use = np.stack([slot < size] * 2, axis=2)
        sections = np.stack([np.broadcast_to(slot > 0, in_use.shape[:2]), 2 + (slot == size - 1)], axis=2)
        starts = np.where(in_use, sections * self.limit, self.empty)
        return in_use.astype(np.int32), starts.astype(np.int32)


@register("simple_kv")
class SimpleKV(IntegersTask):
    """Simple dictionary key-value retrieval (paper section 2; the defaults are the paper's training set)."""

    MAX_OUTPUT_TOKENS = 64
    SAME_EXAMPLES = frozenset({"rows", "template", "max_tokens", "count_bos", "forced_first", "early"})

    task: Literal["simple_kv"] = recipe("simple_kv")
    dictionaries: int | Literal["fit"] = recipe(85, description="per prompt; fit: as many as max_tokens holds")
    template: bool = recipe(True, description="ask for the answer in a template")
    law: Literal["paper", "strict"] = recipe("paper", description="with or without the paper's quirks")
    forced_first: float = recipe(0.05, ge=0, le=1, description="share of samples with the gold dictionary first")
    early: float = recipe(0.03, ge=0, le=1, description="share of further samples with an early gold dictionary")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.dictionaries == "fit" and self.law == "paper":
            raise ValueError("dictionaries: fit needs law: strict (the paper draws a fixed number within the budget)")
        if self.dictionaries != "fit" and not 1 <= self.dictionaries <= 99_999:
            raise ValueError(f"dictionaries: found {self.dictionaries}, expected 1 to 99999, or fit")
        if self.law == "strict":
            self.refuse_more_keys_than_integers(
                1 if self.dictionaries == "fit" else self.dictionaries, " (law: strict)"
            )
        return self

    def tokens_estimate(self) -> int:
        if self.dictionaries == "fit":
            return self.max_tokens
        return min(self.max_tokens, 90 + round(self.dictionaries * self.dictionary_tokens()))

    def context(self, count_tokens: CountTokens, written: Sequence[str] | None = None) -> Context:
        return Context(count_tokens, SimpleBuilder(self, count_tokens))

    def score(self, answer: str, references: Sequence[str]) -> float:
        """Return 1.0 if the answer's first line names the right value and the right dictionary, else 0.0.

        Ends are stripped before the line is taken. The value is the integer after the first "is"; the dictionary the
        one in the first "Dictionary [...]". The paper's training task has no published scorer: the rule is ours.
        """
        found = answered(answer)
        return float(found is not None and any(found == answered(reference) for reference in references))


class SimpleBuilder(IntegersBuilder):
    """Makes simple_kv's examples."""

    task: SimpleKV

    def __init__(self, task: SimpleKV, count_tokens: CountTokens) -> None:
        self.paper = self.early_by_samples = task.law == "paper"
        super().__init__(task, count_tokens, max(task.keys_max, GOLD_KEYS) if self.paper else task.keys_max)
        self.forced = (task.forced_first, task.early)
        self.question = KV_TAIL.removeprefix("\n") + (KV_TEMPLATE if task.template else "")
        if self.paper:
            self.budget = BUDGET
        self.dictionaries = self._enough_dictionaries() if task.dictionaries == "fit" else task.dictionaries
        # The gold pair's slot, a size per dictionary, one draw per pair.
        self.width = 1 + self.dictionaries * (1 + self.slots)
        self.block_rows = max(1, _BLOCK_BYTES // (8 * self.width))

    def _enough_dictionaries(self) -> int:
        """Return enough to fill every prompt: half as many again as fit at mean length, and eight."""
        task, one = self.task, int(self.pool[self.pool.size // 2])
        line = f"Dictionary [10] {{{', '.join([f'{one}: {one}'] * task.keys_min)}}}\n"
        double, single, longer = self.count_tokens([line * 2, line, line + f"{one}: {one}, " * 16]).tolist()
        mean = (double - single) + (longer - single) / 16 * (task.keys_max - task.keys_min) / 2
        # Unique keys must be left room: with 3 or 4 digits, that is what limits long prompts.
        return min(int(self.most_tokens / max(mean, 1.0) * 1.5) + 8, task.most_dictionaries())

    @cached_property
    def costs(self) -> Costs | None:
        """Costs of the pieces, None where they do not add up to what the tokenizer counts for real prompts."""
        if not isinstance(self.count_tokens, TokenCounter):
            return None
        integers = (10 ** (self.task.digits_min - 1), self.limit)
        costs = measure_costs(self.count_tokens, self.question, integers, self.slots, self.dictionaries)
        if costs is None:
            return None
        rows = np.arange(min(_VERIFIED_ROWS, self.task.rows))
        draft = self.attempt(rows, 0)
        sums = costs.sums(draft)
        if self.task.dictionaries == "fit":
            draft.units = np.maximum((sums <= self.most_tokens).sum(axis=1), 1)
        exact = self.count(rows, draft)
        return costs if np.array_equal(sums[rows, draft.units - 1], exact) else None

    def _draft(self, drawn: Draws) -> Draft:
        task, rows = self.task, len(drawn)
        sizes = task.keys_min + below(drawn[:, 1 : 1 + self.dictionaries], task.keys_max - task.keys_min + 1)
        if self.paper:
            sizes[:, 0] = GOLD_KEYS
        at = below(drawn[:, 0], sizes[:, 0])

        def spoiled(touched: Ints, keys: Ints, values: Ints) -> Mask:
            gold = at[touched]
            marked = copies(keys, gold) | copies(values, gold)
            if not self.paper:
                again = repeats(keys)
                # A gold key that repeats an earlier one stays, and the earlier one goes.
                again[np.arange(len(gold)), gold] = False
                marked |= again
            return marked

        keys, values = self._pairs(drawn[:, 1 + self.dictionaries :], spoiled)
        each = np.arange(rows)
        gold_key, gold_value = keys[each, at, None], values[each, at, None]
        if self.paper:
            shape = (rows, self.dictionaries, self.slots)
            collapse(keys.reshape(shape), values.reshape(shape), sizes)
        return Draft(index=self._index(keys, values, sizes), query=gold_key, key=gold_key, value=gold_value)

    def _question(self, draft: Draft) -> Parts:
        return fill_in(self.question, key=self.numbers(draft.query))

    def _answer(self, draft: Draft, gold: Ints) -> Parts:
        key, value, label = (self.numbers(part) for part in (draft.key, draft.value, gold + 1))
        return fill_in(KV_ANSWER, key=key, value=value, dictionary=label)

    def _measure(self, rows: Ints, draft: Draft) -> Mask:
        if self.task.dictionaries == "fit":
            return self._fill(rows, draft)
        if self.costs is not None:
            # A sum does not depend on the order of the dictionaries: gold first and as emitted are the same.
            draft.tokens = first = self.costs.total(draft)
        else:
            draft.tokens = first = self.count(rows, draft)
            if self.paper:
                first = self.count(rows, draft, np.zeros(len(draft), np.int64))
        if not self.paper:
            return draft.tokens <= self.most_tokens
        return accepted(first, draft.tokens, self.most_tokens)

    def _fill(self, rows: Ints, draft: Draft) -> Mask:
        """Use the most dictionaries that stay within the budget."""
        budget = self.most_tokens
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
                tokens = self.count(rows, draft)
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
