"""multi_subkey_kv: keys are tuples of integers, and the question names the gold key's integers in another order.

The harder dictionary task of arXiv 2406.19292. Its generator's knobs are published; its configuration, prompt and
answer files are not. So 49 dictionaries and 150 rows are the paper's, subkeys of 3 digits and values of 4 are its
function defaults, and the wording, the sizes, both probabilities and the number of shared subkeys are ours.

Under law ``strict`` other keys hold at most the *shared* subkeys of the gold key, never its private ones: some have
some of the integers asked for, none has all. No two keys of a prompt are equal, no other value is the gold value.

Law ``paper`` is the published generator's (``data-generation/scripts`` of edixiong/artificial-needles), quirks and all:
the gold dictionary has 3 keys and early positions end at 5 % of the *samples* (:mod:`kvray.tasks.kv.paper`); subkeys of
a key may repeat; another key is drawn again only if it is the gold key to the letter, so that one prompt in about forty
has a second key with all the integers asked for; a repeated key overwrites.
"""

import re
from collections.abc import Sequence
from functools import partial
from typing import Literal, Self

import numpy as np
from pydantic import model_validator

from kvray.tasks.base import Context, CountTokens, added, recipe, register
from kvray.tasks.kv.base import Builder, DictionaryTask, Draft
from kvray.tasks.kv.draws import Ints, Mask, choose, copies, integer_pool, pick_until, redraw, repeats
from kvray.tasks.kv.paper import BUDGET, GOLD_KEYS, accepted, collapse
from kvray.tasks.kv.text import Numbers, Parts, fill_in, listed
from kvray.tasks.prompts import SUBKEY_ANSWER, SUBKEY_TAIL, SUBKEY_TEMPLATE
from kvray.tasks.rng import Draws, below, unit

AROUND = (("(", ", "), ("", ", "), ("", "): "), ("", ", "), ("", "}\n"))
"""The text around an integer: first, further and last subkey of a key, a value, a dictionary's last value."""

_ANSWER = re.compile(r"\bis\s+\(([\d,\s]+)\).*?\bis\s+(\d+)\b.*?\bDictionary\s*\[(\d+)\]")


def answered(answer: str) -> tuple[tuple[int, ...], str, str] | None:
    """Return (key, value, dictionary) as the first line of an answer states them, or None where it lacks one."""
    found = _ANSWER.search(answer.strip().partition("\n")[0])
    return (tuple(int(n) for n in re.findall(r"\d+", found[1])), found[2], found[3]) if found else None


@register("multi_subkey_kv")
class MultiSubkeyKV(DictionaryTask):
    """Multi-subkey dictionary key-value retrieval (paper section 2; the wording and the probabilities are ours)."""

    MAX_OUTPUT_TOKENS = 96
    SAME_EXAMPLES = frozenset({"rows", "template", "shuffle_query", "max_tokens", "count_bos", "forced_first", "early"})

    task: Literal["multi_subkey_kv"] = recipe("multi_subkey_kv")
    rows: int = recipe(150, ge=1, description="examples")
    dictionaries: int = recipe(49, ge=1, le=99_999, description="per prompt")
    keys_min: int = recipe(2, ge=1, le=64, description="fewest keys of a dictionary")
    keys_max: int = recipe(3, ge=1, le=64, description="most keys of a dictionary")
    gold_key_size: int = recipe(3, ge=2, le=8, description="subkeys of the gold key")
    key_size_min: int = recipe(3, ge=2, le=8, description="fewest subkeys of another key")
    key_size_max: int = recipe(4, ge=2, le=8, description="most subkeys of another key")
    common_subkeys: int = recipe(2, ge=0, le=7, description="subkeys of the gold key that others may hold")
    share_probability: float = recipe(0.5, ge=0, le=1, description="that another key holds any of these")
    subkey_probability: float = recipe(0.5, ge=0, le=1, description="that such a key holds each of these")
    common_ordered: bool = recipe(False, description="the shared subkeys stand together, in one order, in every key")
    shuffle_query: bool = recipe(True, description="the question names the gold key's subkeys in a random order")
    subkey_digits: int = recipe(3, ge=1, le=5, description="digits of a subkey")
    value_digits: int = recipe(4, ge=1, le=6, description="digits of a value")
    template: bool = recipe(True, description="ask for the answer in a template")
    forced_first: float = recipe(0.05, ge=0, le=1, description="share of samples with the gold dictionary first")
    early: float = recipe(0.03, ge=0, le=1, description="share of further samples with an early gold dictionary")
    law: Literal["paper", "strict"] = added(
        "strict", description="strict: one key alone has the integers asked for; paper: the published generator's"
    )
    subkey_digits_max: int | None = added(None, ge=1, le=5, description="most digits of a subkey; null: subkey_digits")
    value_digits_max: int | None = added(None, ge=1, le=6, description="most digits of a value; null: value_digits")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.common_subkeys >= min(self.gold_key_size, self.key_size_min):
            raise ValueError(
                f"common_subkeys: found {self.common_subkeys}, expected fewer than gold_key_size and key_size_min, so "
                f"that every key has a subkey of its own"
            )
        if self.common_ordered and self.subkey_probability != 1:
            raise ValueError("common_ordered: true needs subkey_probability: 1 (the shared subkeys stand together)")
        for name, (least, most) in (("subkey", self.digits_of_subkeys()), ("value", self.digits_of_values())):
            if most < least:
                raise ValueError(f"{name}_digits_max: found {most}, expected at least {name}_digits = {least}")
        enough = 2 * (self.gold_key_size + self.key_size_max) <= 9 * 10 ** (self.subkey_digits - 1)
        if self.law == "strict" and not enough:
            raise ValueError("subkey_digits: too few integers for distinct subkeys of these sizes; raise it")
        return self

    def digits_of_subkeys(self) -> tuple[int, int]:
        """Return the fewest and the most digits of a subkey."""
        return self.subkey_digits, self.subkey_digits_max or self.subkey_digits

    def digits_of_values(self) -> tuple[int, int]:
        """Return the fewest and the most digits of a value."""
        return self.value_digits, self.value_digits_max or self.value_digits

    def tokens_estimate(self) -> int:
        subkeys, keys = (self.key_size_min + self.key_size_max) / 2, (self.keys_min + self.keys_max) / 2
        subkey, value = (0.65 * sum(digits) / 2 for digits in (self.digits_of_subkeys(), self.digits_of_values()))
        key = subkeys * (subkey + 1.2) + value + 4
        return min(self.max_tokens, 110 + round(self.dictionaries * (5 + keys * key)))

    def context(self, count_tokens: CountTokens, written: Sequence[str] | None = None) -> Context:
        return Context(count_tokens, SubkeyBuilder(self, count_tokens))

    def score(self, answer: str, references: Sequence[str]) -> float:
        """Return 1.0 if the answer's first line has the key (in its own order), its value and its dictionary, else 0.0.

        Ends are stripped before the line is taken. The rule is ours, as for simple_kv.
        """
        found = answered(answer)
        return float(found is not None and any(found == answered(reference) for reference in references))


class SubkeyBuilder(Builder):
    """Makes multi_subkey_kv's examples; every prompt is tokenized."""

    task: MultiSubkeyKV
    remedy = "lower dictionaries, keys_max, key_size_max or subkey_digits"

    def __init__(self, task: MultiSubkeyKV, count_tokens: CountTokens) -> None:
        self.paper = self.early_by_samples = task.law == "paper"
        self.budget = BUDGET if self.paper else "with distinct keys stayed within max_tokens"
        super().__init__(task, count_tokens)
        self.slots = max(task.keys_max, GOLD_KEYS) if self.paper else task.keys_max
        self.dictionaries = task.dictionaries
        self.forced = (task.forced_first, task.early)
        self.size = max(task.gold_key_size, task.key_size_max)
        subkey_digits, value_digits = task.digits_of_subkeys(), task.digits_of_values()
        self.subkey_limit, self.value_limit = 10 ** subkey_digits[1], 10 ** value_digits[1]
        limits = (self.subkey_limit,) * 3 + (self.value_limit,) * 2
        self.sections = [(limit, *around) for limit, around in zip(limits, AROUND, strict=True)]
        self.pick_subkeys = partial(choose, pool=integer_pool(*subkey_digits))
        self.pick_values = partial(choose, pool=integer_pool(*value_digits))
        self.question = SUBKEY_TAIL.removeprefix("\n") + (SUBKEY_TEMPLATE if task.template else "")
        # Draws: the gold pair's slot; gold subkeys, their order in the key and in the question; sizes; then per pair
        # its size, whether it shares, where a shared run starts, its value; which it shares; its subkeys and slots.
        self.gold_draws = 1 + 3 * task.gold_key_size
        self.pair_draws = 4 + task.common_subkeys + 2 * self.size
        self.width = self.gold_draws + task.dictionaries * (1 + self.slots * self.pair_draws)

    def _draft(self, drawn: Draws) -> Draft:
        task, each = self.task, np.arange(len(drawn))
        shape = (len(drawn), task.dictionaries, self.slots)
        own = drawn[:, 1 : self.gold_draws].reshape(-1, 3, task.gold_key_size)
        rest = drawn[:, self.gold_draws :]
        sizes = task.keys_min + below(rest[:, : task.dictionaries], task.keys_max - task.keys_min + 1)
        if self.paper:
            sizes[:, 0] = GOLD_KEYS
        pairs = rest[:, task.dictionaries :].reshape(*shape, self.pair_draws)
        at = below(drawn[:, 0], sizes[:, 0])

        gold = self._fresh(own[:, 0], np.empty((len(drawn), 0), np.int64))
        common = gold[:, : task.common_subkeys]
        gold_key = self._gold_key(gold, own[:, 1])
        padded = np.pad(gold_key, ((0, 0), (0, self.size - task.gold_key_size)))
        keys = self._keys(pairs, gold, common, padded)
        keys[each, 0, at] = padded
        values = self._values(pairs[..., 3], at)
        value = values[each, 0, at, None]
        if self.paper:
            distinct, numbers = np.unique(keys.reshape(-1, self.size), axis=0, return_inverse=True)
            numbers = numbers.reshape(shape)
            collapse(numbers, values, sizes)
            keys = distinct[numbers]

        index = self._index(keys, values, sizes)
        query = np.take_along_axis(gold_key, own[:, 2].argsort(axis=1), axis=1) if task.shuffle_query else gold_key
        return Draft(index=index, query=query, key=gold_key, value=value)

    def _fresh(self, drawn: Draws, taken: Ints) -> Ints:
        """Draw subkeys, shape ``(keys, size)``; under law strict distinct, and none of ``taken``, ``(keys, any)``."""
        if self.paper:
            return self.pick_subkeys(drawn)

        def spoiled(touched: Ints, subkeys: Ints) -> Mask:
            marked: Mask = repeats(subkeys) | (subkeys[:, :, None] == taken[touched, None, :]).any(axis=2)
            return marked

        return pick_until(drawn, [self.pick_subkeys], spoiled)[0]

    def _gold_key(self, gold: Ints, drawn: Draws) -> Ints:
        """Order the gold subkeys: at random, or with the shared run together in its order."""
        if not self.task.common_ordered:
            return np.take_along_axis(gold, drawn.argsort(axis=1), axis=1)
        run = self.task.common_subkeys
        start = below(drawn[:, 0], gold.shape[1] - run + 1)[:, None]
        slot = np.arange(gold.shape[1])
        inside = (slot >= start) & (slot < start + run)
        source = np.where(inside, slot - start, np.where(slot < start, slot + run, slot))
        return np.take_along_axis(gold, source, axis=1)

    def _keys(self, pairs: Draws, gold: Ints, common: Ints, gold_key: Ints) -> Ints:
        """Draw every key as if it were not gold: its subkeys, 0 where it is shorter; none is ``gold_key``, so padded.

        Shape ``(rows, dictionaries, slots, size)``.
        """
        flat = pairs.reshape(-1, self.pair_draws)
        owner = np.repeat(np.arange(len(pairs)), flat.shape[0] // max(1, len(pairs)))
        keys = self._composed(flat, gold[owner], common[owner])
        if self.paper:
            # Drawn again at the same size, as often as it takes; law strict never draws a whole gold key.
            drawn, again = flat.copy(), np.flatnonzero((keys == gold_key[owner]).all(axis=1))
            while again.size:
                drawn[again, 1:] = redraw(drawn[again, 1:])
                keys[again] = self._composed(drawn[again], gold[owner[again]], common[owner[again]])
                again = again[(keys[again] == gold_key[owner[again]]).all(axis=1)]
        return keys.reshape(*pairs.shape[:3], self.size)

    def _composed(self, flat: Draws, gold: Ints, common: Ints) -> Ints:
        """Compose keys from their draws, shape ``(keys, pair_draws)``, and the gold and the shared subkeys of each."""
        task, run = self.task, self.task.common_subkeys
        size = task.key_size_min + below(flat[:, 0], task.key_size_max - task.key_size_min + 1)
        slot = np.arange(self.size)
        fresh = flat[:, 4 + run : 4 + run + self.size]
        keys = self._fresh(fresh, gold)
        shares = unit(flat[:, 1]) < task.share_probability
        received = (unit(flat[:, 4 : 4 + run]) < task.subkey_probability) & shares[:, None]
        if task.common_ordered:
            place = below(flat[:, 2], size - run + 1)[:, None] + np.arange(run)
        else:
            ranks = flat[:, 4 + run + self.size :].copy()
            ranks[slot >= size[:, None]] = np.iinfo(np.uint64).max
            place = ranks.argsort(axis=1)[:, :run]
        key, which = np.nonzero(received)
        keys[key, place[key, which]] = common[key, which]
        keys[slot >= size[:, None]] = 0
        return keys

    def _values(self, drawn: Draws, at: Ints) -> Ints:
        """Draw the values, shape ``(rows, dictionaries, slots)``; none but the gold one equals it."""

        def spoiled(touched: Ints, values: Ints) -> Mask:
            return copies(values, at[touched])

        return pick_until(drawn.reshape(len(drawn), -1), [self.pick_values], spoiled)[0].reshape(drawn.shape)

    def _index(self, keys: Ints, values: Ints, sizes: Ints) -> Numbers:
        """Return entries of the layout's table: per pair its subkeys, padded, and its value."""
        slot, last = np.arange(self.size), (keys > 0).sum(axis=-1)[..., None] - 1
        section = np.where(slot == last, 2, np.where(slot == 0, 0, 1))
        index = np.empty((*keys.shape[:3], self.size + 1), np.int32)
        index[..., :-1] = np.where(slot > last, self.empty, keys + section * self.subkey_limit)
        pair = np.arange(keys.shape[2])
        ends = pair == sizes[..., None] - 1
        index[..., -1] = values + 3 * self.subkey_limit + ends * self.value_limit
        index[pair >= sizes[..., None]] = self.empty
        return index.reshape(*keys.shape[:2], -1)

    def _question(self, draft: Draft) -> Parts:
        return fill_in(self.question, subkeys=listed(self.numbers(draft.query)))

    def _answer(self, draft: Draft, gold: Ints) -> Parts:
        subkeys, key = (listed(self.numbers(part)) for part in (draft.query, draft.key))
        value, label = self.numbers(draft.value), self.numbers(gold + 1)
        return fill_in(SUBKEY_ANSWER, subkeys=subkeys, key=["(", *key, ")"], value=value, dictionary=label)

    def _measure(self, rows: Ints, draft: Draft) -> Mask:
        within = super()._measure(rows, draft)
        if self.paper:
            return accepted(self.count(rows, draft, np.zeros(len(draft), np.int64)), draft.tokens, self.most_tokens)
        return within & self._keys_differ(draft)

    def _keys_differ(self, draft: Draft) -> Mask:
        """Mark the rows without two equal keys: one prompt in some ten thousands has them, and is drawn again."""
        keys = draft.index.reshape(len(draft), -1, self.size + 1)[:, :, :-1]
        differ = np.ones(len(draft), np.bool_)
        for row, drawn in enumerate(keys):
            used = drawn[drawn[:, 0] < self.empty]
            differ[row] = len(np.unique(used, axis=0)) == len(used)
        return differ
