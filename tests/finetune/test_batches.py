"""Every epoch sees every row once, in an order that is a function of the seed alone."""

from __future__ import annotations

import numpy as np
import pytest

from kvray.finetune.batches import BLANK, schedule


def test_every_epoch_sees_every_row_once_in_another_order():
    table = schedule(np.arange(1, 23), 8, 2, seed=3)
    assert table.shape == (6, 8)
    first, second = table[:3].ravel(), table[3:].ravel()
    for epoch in (first, second):
        assert sorted(epoch[epoch != BLANK].tolist()) == list(range(22))
    assert first.tolist() != second.tolist()
    assert (table[[0, 1, 3, 4]] != BLANK).all()


def test_within_a_step_rows_go_from_long_to_short_and_blanks_come_last():
    lengths = np.random.default_rng(0).integers(5, 90, 22)
    table = schedule(lengths, 8, 1, seed=3)
    size = np.where(table == BLANK, 0, lengths[table])
    assert (np.diff(size, axis=1) <= 0).all()


@pytest.mark.parametrize(("epochs", "steps"), [(1, 3), (0.5, 2), (0.01, 1), (2.34, 7)])
def test_a_fraction_of_an_epoch_is_a_number_of_steps(epochs, steps):
    assert len(schedule(np.ones(22), 8, epochs, 0)) == steps
