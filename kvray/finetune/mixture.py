"""Blends of datasets by weight, and the order in which a finetune sees its rows. Pure numpy.

Both are functions of (seed, sizes) through counter-based draws, so every worker, on any number of machines and after
any restart, computes the same order instead of being told it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kvray.errors import InputError
from kvray.tasks.counter import draws, key_of

BLANK = -1
"""Stands for no row in a schedule: it fills the last batch of an epoch and carries no loss."""


def permutation(seed: int, purpose: str, count: int) -> NDArray[np.int64]:
    """Return ``0 … count - 1`` in an order that depends on (seed, purpose) alone."""
    words = draws(key_of("kvray.finetune", purpose, seed), 0, count, 1)[:, 0]
    return np.argsort(words, kind="stable").astype(np.int64)


def blend(
    tokens: Sequence[NDArray[np.integer]], weights: Sequence[float], match: Literal["rows", "tokens"], seed: int
) -> list[NDArray[np.int64]]:
    """Choose which rows of each dataset make up a mixture.

    Shares are as large as the weights allow without repeating a row: the dataset that would run out first is taken
    whole and the others are cut to it. One dataset alone is taken whole, whatever its weight.

    Args:
        tokens: for each dataset the tokens of each of its rows; shape ``(rows,)`` each.
        weights: positive, one per dataset, in any unit.
        match: whether weights are shares of rows or of tokens.
        seed: draws which rows a cut dataset keeps.

    Returns:
        For each dataset the chosen row indices, ascending.

    Raises:
        InputError: a weight is not positive, a dataset is empty, or a share is less than one row.
    """
    for at, (rows, weight) in enumerate(zip(tokens, weights, strict=True)):
        if not weight > 0:
            raise InputError(f"mixture: weight {weight} of dataset {at + 1}; expected a number above 0")
        if len(rows) == 0:
            raise InputError(f"mixture: dataset {at + 1} has no rows")
    amounts = [float(len(rows)) if match == "rows" else float(rows.sum()) for rows in tokens]
    scale = min(amount / weight for amount, weight in zip(amounts, weights, strict=True))
    chosen = []
    for at, (rows, weight) in enumerate(zip(tokens, weights, strict=True)):
        order = permutation(seed, f"blend/{at}", len(rows))
        if match == "rows":
            # The tolerance keeps a share that is whole but for a rounding error.
            count = int(np.floor(scale * weight + 1e-9))
        else:
            count = int(np.searchsorted(np.cumsum(rows[order]), scale * weight * (1 + 1e-12), side="right"))
        if count == 0:
            raise InputError(
                f"mixture: dataset {at + 1} has less than one row at weight {weight} (matched by {match}); "
                "make the other datasets larger or this weight greater"
            )
        chosen.append(np.sort(order[:count]))
    return chosen


def schedule(lengths: NDArray[np.integer], batch_size: int, epochs: float, seed: int) -> NDArray[np.int64]:
    """Return which rows each optimizer step takes.

    Each epoch is a fresh shuffle; its last batch is filled with :data:`BLANK`, so that the rows of a step never depend
    on the number of workers. Within a step rows go from long to short: the sum of gradients is the same, and the
    micro-batches cut from it hold rows of like lengths, so less padding.

    Args:
        lengths: tokens per row, shape ``(rows,)``.
        batch_size: rows per step over all workers.
        epochs: passes over the rows; a fraction stops within one.
        seed: draws the shuffles.

    Returns:
        Row indices, shape ``(steps, batch_size)``.
    """
    count = len(lengths)
    per_epoch = -(-count // batch_size)
    steps = max(1, round(epochs * per_epoch))
    batches = []
    for epoch in range(-(-steps // per_epoch)):
        order = np.full(per_epoch * batch_size, BLANK, np.int64)
        order[:count] = permutation(seed, f"epoch/{epoch}", count)
        batches.append(order.reshape(per_epoch, batch_size))
    table = np.concatenate(batches)[:steps]
    size = np.where(table == BLANK, 0, lengths[table])
    return np.take_along_axis(table, np.argsort(-size, axis=1, kind="stable"), axis=1)
