"""What the dictionary tasks share: integers by digits, gold positions, drafts within a token budget, prompts as canvas.

Drafts hold the gold dictionary *first*, as the paper's scripts do while they count tokens; :meth:`Layout.prompts` puts
it at its position. So one draft serves every gold position, and the others keep their order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from string import Formatter

import numpy as np
import pyarrow as pa
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from kvray.errors import InputError
from kvray.tasks.base import examples
from kvray.tasks.kv import text as canvas
from kvray.tasks.rng import Draws, below, draws

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

REDRAWS = 1000
"""Drafts tried after the first before a row is given up (paper.md 1.1)."""
EARLY_BOUND = 0.05
"""The early positions are the first 5 % of the samples (law paper) or of the dictionaries (law strict)."""

_PROBE_AFTER = 8
_POSITIONS, _FORCED = 1 << 20, 2 << 20
_SLOT_BITS = np.int64(20)


def again(words: Draws) -> Draws:
    """Return the next words of a redraw: splitmix64's output function (Steele et al. 2014), one word for each word.

    A redraw that hangs on its own first word needs no reserve of words and no bound, whatever the row or the batch.
    """
    mixed = words + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def integer_law(digits_min: int, digits_max: int) -> Ints:
    """Return a table whose entries, drawn uniformly, have a uniform number of digits and are uniform given that number.

    No leading zeros. Length ``(digits_max - digits_min + 1) * 9 * 10 ** (digits_max - 1)``.
    """
    return np.concatenate(
        [
            np.repeat(np.arange(10 ** (digits - 1), 10**digits), 10 ** (digits_max - digits))
            for digits in range(digits_min, digits_max + 1)
        ]
    )


def high(words: Draws, law: Ints) -> Ints:
    """Draw from ``law`` by the upper halves of the words."""
    return law.take((((words >> np.uint64(32)) * np.uint64(law.size)) >> np.uint64(32)).view(np.int64))


def low(words: Draws, law: Ints) -> Ints:
    """Draw from ``law`` by the lower halves of the words."""
    return law.take((((words & np.uint64(0xFFFFFFFF)) * np.uint64(law.size)) >> np.uint64(32)).view(np.int64))


def repeats(keys: Ints) -> Mask:
    """Mark every entry that equals an earlier one of its row. ``keys``: ``(rows, slots)``, in ``[0, 2**43)``."""
    slots = np.arange(keys.shape[1])
    ordered = np.sort((keys << _SLOT_BITS) | slots, axis=1)
    row, place = np.nonzero((ordered[:, 1:] ^ ordered[:, :-1]) < (1 << _SLOT_BITS))
    marked = np.zeros(keys.shape, np.bool_)
    marked[row, ordered[row, place + 1] & ((1 << _SLOT_BITS) - 1)] = True
    return marked


def words_of(key: int, rows: Ints, width: int, stream: int) -> Draws:
    """Return :func:`kvray.tasks.rng.draws` for any ascending rows. Shape ``(len(rows), width)``."""
    ends = np.flatnonzero(np.diff(rows) != 1) + 1
    runs = [run for run in np.split(rows, ends) if run.size]
    return np.concatenate([draws(key, int(run[0]), int(run[-1]) + 1, width, stream) for run in runs])


def _among(rows: Ints, chosen: Ints) -> Mask:
    """Tell which rows are in ``chosen``, which is sorted."""
    if not chosen.size:
        return np.zeros(len(rows), np.bool_)
    among: Mask = chosen[np.minimum(np.searchsorted(chosen, rows), chosen.size - 1)] == rows
    return among


def examples_table(start: int, stop: int, texts: dict[str, list[bytes]], numbers: dict[str, list[Ints]]) -> pa.Table:
    """Assemble examples ``[start, stop)`` whose only accepted answer is the one to train on.

    Args:
        start: first row.
        stop: one past the last row.
        texts: "prompt" and "answer".
        numbers: "position" (1-based), "units" and "prompt_tokens", in pieces.
    """
    ids = pa.array([f"row-{row:07d}" for row in range(start, stop)], pa.string())
    answer = canvas.strings(texts["answer"])
    columns = {
        "example_id": ids,
        "question_id": ids,
        **{name: pa.array(np.concatenate(parts).astype(np.int32)) for name, parts in numbers.items()},
        "prompt": canvas.strings(texts["prompt"]),
        "answer": answer,
        "references": pa.ListArray.from_arrays(pa.array(np.arange(stop - start + 1, dtype=np.int32)), answer),
    }
    return examples(columns)


def tail(wording: str, **fields: Sequence[str | canvas.Words]) -> list[str | canvas.Words]:
    """Split a wording at its ``{fields}`` and put the parts of each in its place, to be woven."""
    parts: list[str | canvas.Words] = []
    for text, name, _, _ in Formatter().parse(wording):
        parts += [text] if text else []
        parts += fields[name] if name else []
    return parts


@dataclass
class Draft:
    """Prompts to be, for some rows.

    Attributes:
        index: entries of :attr:`Layout.table`, gold dictionary first. Shape ``(rows, dictionaries, entries)``.
        query: the gold key in the order in which the prompt asks for it. Shape ``(rows, integers)``.
        key: the gold key as it stands in its dictionary. Shape ``(rows, integers)``.
        value: the gold value. Shape ``(rows,)``.
        units: how many of the dictionaries are used. Shape ``(rows,)``.
        tokens: of the prompt; filled in by whoever measures. Shape ``(rows,)``.
    """

    index: Ints
    query: Ints
    key: Ints
    value: Ints
    units: Ints
    tokens: Ints

    def __len__(self) -> int:
        return len(self.value)

    def put(self, at: Ints, other: Draft, chosen: Mask) -> None:
        """Overwrite the rows ``at[chosen]`` by the ``chosen`` rows of another draft."""
        for name in ("index", "query", "key", "value", "units", "tokens"):
            getattr(self, name)[at[chosen]] = getattr(other, name)[chosen]


def settle(
    rows: Ints,
    attempt: Callable[[Ints, int], Draft],
    measure: Callable[[Ints, Draft], Mask],
    hopeless: Callable[[int, int], str],
) -> Draft:
    """Draft every row until it is accepted; attempt ``a`` of a row does not depend on the other rows.

    Args:
        rows: ascending row numbers.
        attempt: makes attempt ``a`` of some rows.
        measure: fills in tokens (and units) and tells which drafts are accepted.
        hopeless: words the error for a row, given the tokens of its last draft.

    Raises:
        InputError: a row was not accepted in 1 + :data:`REDRAWS` attempts.
    """
    settled = attempt(rows, 0)
    pending = np.flatnonzero(~measure(rows, settled))
    for number in range(1, REDRAWS + 1):
        if not pending.size:
            return settled
        if number == _PROBE_AFTER and pending.size > 1:
            # Knobs that cannot work are found out on one row, not on a thousand.
            settle(rows[pending[:1]], attempt, measure, hopeless)
        draft = attempt(rows[pending], number)
        accepted = measure(rows[pending], draft)
        settled.put(pending, draft, accepted)
        pending, last = pending[~accepted], draft.tokens[~accepted]
    if pending.size:
        raise InputError(hopeless(int(rows[pending[0]]), int(last[0])))
    return settled


@dataclass(frozen=True)
class GoldPositions:
    """Where the gold dictionary goes: uniform, but for a share of the samples forced to be first and a share early.

    Attributes:
        key: Philox key of the recipe.
        rows: samples in the dataset.
        first: share of the samples at index 0.
        early: share of the samples, others than these, at a random early index.
        by_samples: the early indices end at 5 % of the *samples* (the paper's quirk), else of the dictionaries.
    """

    key: int
    rows: int
    first: float
    early: float
    by_samples: bool

    def of(self, rows: Ints, units: Ints) -> Ints:
        """Return the 0-based gold index of ascending ``rows``, given their dictionaries. Shape ``(len(rows),)``."""
        words = words_of(self.key, rows, 4, _POSITIONS)
        index = below(words[:, 0], units)
        # Multiplied by the share, then cut: int(350 * 0.05) = 17, as in the paper's scripts.
        bounded = (np.full(len(rows), self.rows) if self.by_samples else units) * EARLY_BOUND
        bound: Ints = np.clip(bounded.astype(np.int64), 1, units)
        first, early = self._forced
        index = np.where(_among(rows, early), below(words[:, 1], bound), index)
        return np.where(_among(rows, first), 0, index)

    @cached_property
    def _forced(self) -> tuple[Ints, Ints]:
        """Which rows are forced; the only thing about a row that hangs on how many rows there are."""
        words = draws(self.key, 0, -(-self.rows // 4), 4, _FORCED).reshape(-1)[: self.rows]
        order = np.argsort(words, kind="stable")
        first = int(self.rows * self.first)
        return np.sort(order[:first]), np.sort(order[first : first + int(self.rows * self.early)])


@dataclass(frozen=True)
class Layout:
    """How drafts become text.

    Attributes:
        head: before the dictionaries.
        table: a word for every entry that a draft can name, the last one empty. Shape ``(entries,)``.
        dictionaries: the most that a prompt can have.
    """

    head: str
    table: canvas.Words
    dictionaries: int

    @cached_property
    def _labels(self) -> canvas.Words:
        width = canvas.words(f"Dictionary [{self.dictionaries}] {{").size
        return np.stack([canvas.words(f"Dictionary [{i + 1}] {{", width) for i in range(self.dictionaries)])

    def prompts(self, draft: Draft, gold: Ints, tail: Sequence[str | canvas.Words]) -> list[bytes]:
        """Return the prompts with the gold dictionary at 0-based index ``gold``; ``tail`` is woven after them."""
        rows, dictionaries, entries = draft.index.shape
        place = np.arange(dictionaries)
        order = np.where(place < gold[:, None], place + 1, np.where(place == gold[:, None], 0, place))
        head = canvas.words(self.head)
        end = canvas.weave(rows, tail)
        width = self._labels.shape[1]
        body = dictionaries * (width + entries)
        page = np.empty((rows, head.size + body + end.shape[1]), np.uint64)
        page[:, : head.size] = head
        page[:, head.size + body :] = end
        # A view of the middle columns line by line, which reshape() would copy.
        lines = as_strided(
            page[:, head.size :], (rows, dictionaries, width + entries), (page.strides[0], 8 * (width + entries), 8)
        )
        lines[:, :, :width] = self._labels
        lines[:, :, width:] = self.table.take(draft.index[np.arange(rows)[:, None], order])
        if int(draft.units.min(initial=dictionaries)) < dictionaries:
            lines[place >= draft.units[:, None]] = 0
        return canvas.squeeze(page)
