"""Mixtures match their weights without repeating a row; the order is a function of the seed alone."""

from __future__ import annotations

import numpy as np
import pytest

from kvray.errors import InputError
from kvray.finetune.mixture import BLANK, blend, permutation, schedule

LONG = np.full(100, 50)
SHORT = np.full(300, 10)
PINNED = [1, 0, 7, 2, 5, 3, 6, 4]


def test_one_dataset_alone_is_taken_whole_whatever_its_weight():
    for match in ("rows", "tokens"):
        for weight in (1.0, 0.3, 7.0):
            assert blend([LONG], [weight], match, 0)[0].tolist() == list(range(100))


def test_rows_are_shared_by_weight_and_the_scarcer_dataset_is_used_up():
    counts = [len(part) for part in blend([LONG, SHORT], [1, 1], "rows", 0)]
    assert counts == [100, 100]
    assert [len(part) for part in blend([LONG, SHORT], [1, 4], "rows", 0)] == [75, 300]


def test_tokens_are_shared_by_weight_within_one_row():
    rng = np.random.default_rng(0)
    tokens = [rng.integers(20, 80, 200), rng.integers(400, 900, 60)]
    first, second = blend(tokens, [1, 3], "tokens", 0)
    amounts = tokens[0][first].sum(), tokens[1][second].sum()
    assert 3 * amounts[0] == pytest.approx(amounts[1], abs=900)
    assert len(second) == 60 or len(first) == 200


def test_no_row_is_repeated_and_the_choice_depends_on_the_seed():
    one, two = blend([LONG, SHORT], [1, 1], "rows", 0)[1], blend([LONG, SHORT], [1, 1], "rows", 1)[1]
    assert len(set(one.tolist())) == len(one)
    assert one.tolist() != two.tolist()
    assert one.tolist() == blend([LONG, SHORT], [1, 1], "rows", 0)[1].tolist()


@pytest.mark.parametrize(("tokens", "weights"), [([LONG, SHORT], [1, 0]), ([LONG, SHORT[:0]], [1, 1])])
def test_a_share_of_nothing_is_an_error(tokens, weights):
    with pytest.raises(InputError, match="dataset 2"):
        blend(tokens, weights, "rows", 0)


def test_a_share_below_one_row_is_an_error():
    with pytest.raises(InputError, match="less than one row"):
        blend([LONG, SHORT], [1, 1000], "rows", 0)


def test_permutations_are_pinned():
    """The order of rows is part of what a finetune is: a change here changes every result."""
    assert permutation(0, "epoch/0", 8).tolist() == PINNED
    assert sorted(permutation(5, "x", 1000).tolist()) == list(range(1000))


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
