"""The order in which a finetune sees the rows of its mixture.

A function of (seed, sizes) through counter-based draws, so every worker, on any number of machines and after any
restart, computes the same order instead of being told it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvray.planning.mixture import permutation

BLANK = -1
"""Stands for no row in a schedule: it fills the last batch of an epoch and carries no loss."""


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
