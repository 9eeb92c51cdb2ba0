"""Drafts of prompts with numbered dictionaries: random integers, redraws until a row is accepted, gold positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from kvray.errors import InputError
from kvray.tasks.rng import Draws, below, draws

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

REDRAWS = 1000
"""Drafts tried after the first before a row is given up (paper.md 1.1)."""
EARLY_BOUND = 0.05
"""Early positions are the first 5 % of the samples (``law: paper``) or of the dictionaries (``law: strict``)."""

_PROBE_AFTER = 8
_POSITIONS, _FORCED = 1 << 20, 2 << 20
_SLOT_BITS = np.int64(20)


def redraw(drawn: Draws) -> Draws:
    """Return the next draw after each one: splitmix64's output function (Steele et al. 2014).

    Each redraw hashes the previous draw, so a row can be redrawn without limit and never depends on its batch.
    """
    mixed = drawn + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def integer_pool(digits_min: int, digits_max: int) -> Ints:
    """Return integers without leading zeros, repeated so that a uniform draw makes the number of digits uniform.

    Length ``(digits_max - digits_min + 1) * 9 * 10 ** (digits_max - 1)``.
    """
    return np.concatenate(
        [
            np.repeat(np.arange(10 ** (digits - 1), 10**digits), 10 ** (digits_max - digits))
            for digits in range(digits_min, digits_max + 1)
        ]
    )


def high(drawn: Draws, pool: Ints) -> Ints:
    """Draw from ``pool`` by the upper halves of the draws."""
    return pool.take((((drawn >> np.uint64(32)) * np.uint64(pool.size)) >> np.uint64(32)).view(np.int64))


def low(drawn: Draws, pool: Ints) -> Ints:
    """Draw from ``pool`` by the lower halves of the draws."""
    return pool.take((((drawn & np.uint64(0xFFFFFFFF)) * np.uint64(pool.size)) >> np.uint64(32)).view(np.int64))


def repeats(keys: Ints) -> Mask:
    """Mark every entry that equals an earlier one of its row. ``keys``: ``(rows, slots)``, in ``[0, 2**43)``."""
    slots = np.arange(keys.shape[1])
    ordered = np.sort((keys << _SLOT_BITS) | slots, axis=1)
    row, place = np.nonzero((ordered[:, 1:] ^ ordered[:, :-1]) < (1 << _SLOT_BITS))
    marked = np.zeros(keys.shape, np.bool_)
    marked[row, ordered[row, place + 1] & ((1 << _SLOT_BITS) - 1)] = True
    return marked


def draws_of(key: int, rows: Ints, width: int, stream: int) -> Draws:
    """Return :func:`kvray.tasks.rng.draws` for any ascending rows. Shape ``(len(rows), width)``."""
    ends = np.flatnonzero(np.diff(rows) != 1) + 1
    runs = [run for run in np.split(rows, ends) if run.size]
    return np.concatenate([draws(key, int(run[0]), int(run[-1]) + 1, width, stream) for run in runs])


def _among(rows: Ints, chosen: Ints) -> Mask:
    """Mark the rows that are in ``chosen``, which is sorted; ``np.isin`` would sort both for every block."""
    among: Mask = np.append(chosen, -1)[np.searchsorted(chosen, rows)] == rows
    return among


@dataclass(kw_only=True)
class Draft:
    """A draft of some rows: every field has an entry per row; ``tokens`` are the prompts', once they are counted."""

    tokens: Ints

    def __len__(self) -> int:
        return len(self.tokens)

    def put(self, at: Ints, other: Draft, chosen: Mask) -> None:
        """Overwrite the rows ``at[chosen]`` with the ``chosen`` rows of another draft."""
        for field in fields(self):
            getattr(self, field.name)[at[chosen]] = getattr(other, field.name)[chosen]


_D = TypeVar("_D", bound=Draft)


def settle(
    rows: Ints, attempt: Callable[[Ints, int], _D], measure: Callable[[Ints, _D], Mask], unfit: str, remedy: str
) -> _D:
    """Draft every row until it is accepted; attempt ``a`` of a row does not depend on the other rows.

    ``attempt`` makes attempt ``a`` of some ascending ``rows``; ``measure`` fills in the tokens and marks accepted rows.
    The error is ``unfit`` (with ``{row}``), the last tokens, and ``remedy`` (which knobs to change).

    Raises:
        InputError: a row was not accepted in 1 + :data:`REDRAWS` attempts.
    """
    settled = attempt(rows, 0)
    pending = np.flatnonzero(~measure(rows, settled))
    last = settled.tokens[pending]
    for number in range(1, REDRAWS + 1):
        if not pending.size:
            return settled
        if number == _PROBE_AFTER and pending.size > 1:
            # Knobs that cannot work show on one row, sooner than on a thousand.
            settle(rows[pending[:1]], attempt, measure, unfit, remedy)
        draft = attempt(rows[pending], number)
        accepted = measure(rows[pending], draft)
        settled.put(pending, draft, accepted)
        pending, last = pending[~accepted], draft.tokens[~accepted]
    if pending.size:
        tokens = f"in {REDRAWS} redraws; the last had {last[0]} tokens"
        raise InputError(f"{unfit.format(row=rows[pending[0]])} {tokens}; {remedy}")
    return settled


@dataclass(frozen=True)
class GoldPositions:
    """Where the gold dictionary goes: uniform, but for the shares of samples forced to be ``first`` or ``early``.

    With ``by_samples`` the early indices end at 5 % of the ``rows`` of the dataset (a quirk of the paper's scripts),
    otherwise of the dictionaries. ``key`` is the Philox key of the recipe.
    """

    key: int
    rows: int
    first: float
    early: float
    by_samples: bool

    def of(self, rows: Ints, units: Ints) -> Ints:
        """Return the 0-based gold index of ascending ``rows`` with ``units`` dictionaries. Shape ``(len(rows),)``."""
        drawn = draws_of(self.key, rows, 4, _POSITIONS)
        index = below(drawn[:, 0], units)
        # Multiplied by the share, then cut: int(350 * 0.05) = 17, as in the paper's scripts.
        bounded = (np.full(len(rows), self.rows) if self.by_samples else units) * EARLY_BOUND
        bound: Ints = np.clip(bounded.astype(np.int64), 1, units)
        first, early = self._forced
        index = np.where(_among(rows, early), below(drawn[:, 1], bound), index)
        return np.where(_among(rows, first), 0, index)

    @cached_property
    def _forced(self) -> tuple[Ints, Ints]:
        """The rows forced first and early; nothing else about a row depends on how many rows there are."""
        drawn = draws(self.key, 0, -(-self.rows // 4), 4, _FORCED).reshape(-1)[: self.rows]
        order = np.argsort(drawn, kind="stable")
        first = int(self.rows * self.first)
        return np.sort(order[:first]), np.sort(order[first : first + int(self.rows * self.early)])
