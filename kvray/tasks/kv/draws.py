"""Random integers of dictionaries, each redrawn alone until it clashes with no other."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from kvray.tasks.rng import Draws, below, draws

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

_SLOT_BITS = np.int64(20)


def redraw(drawn: Draws) -> Draws:
    """Return the next draw after each, by splitmix64 (Steele et al. 2014): endless, and no row depends on its batch."""
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


def choose(drawn: Draws, pool: Ints) -> Ints:
    """Draw from ``pool`` by the upper halves of the draws."""
    return pool.take(below(drawn, pool.size))


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
    runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    drawn = [draws(key, int(run[0]), int(run[-1]) + 1, width, stream) for run in runs]
    return drawn[0] if len(drawn) == 1 else np.concatenate(drawn)


def copies(values: Ints, at: Ints) -> Mask:
    """Mark every entry that equals the one at slot ``at`` of its row, which is not marked itself.

    Shapes ``(rows, slots)`` and ``(rows,)``.
    """
    each = np.arange(len(values))
    marked: Mask = values == values[each, at][:, None]
    marked[each, at] = False
    return marked


def pick_until(drawn: Draws, picks: Sequence[Callable[[Draws], Ints]], spoiled: Callable[..., Mask]) -> list[Ints]:
    """Return an integer per pick and draw; where they are spoiled, the draw is redrawn until none is.

    ``picks`` map draws of any shape to integers. ``spoiled`` marks the entries of some rows to be redrawn; it takes the
    rows' numbers and, for each pick, their integers. Shape of ``drawn``, of each result and mask: ``(rows, slots)``.
    """
    drawn = drawn.copy()
    picked = [pick(drawn) for pick in picks]
    touched = np.arange(len(drawn))
    row, slot = _places(spoiled(touched, *picked))
    while row.size:
        drawn[row, slot] = redraw(drawn[row, slot])
        for pick, integers in zip(picks, picked, strict=True):
            integers[row, slot] = pick(drawn[row, slot])
        touched = np.unique(row)
        row, slot = _places(spoiled(touched, *(integers[touched] for integers in picked)))
        row = touched[row]
    return picked


def _places(mask: Mask) -> tuple[Ints, Ints]:
    """As ``np.nonzero`` of a matrix, several times as fast where little is marked."""
    return np.divmod(np.flatnonzero(mask), mask.shape[1])
