"""Laws: what is drawn by them keeps them, and what is drawn otherwise does not."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from kvray.audit.laws import checks, compare, digits, positions, uniform
from kvray.audit.tally import Tally
from kvray.tasks.kv.simple import SimpleKV
from kvray.tasks.needle.needle import NeedleInHaystack
from kvray.tasks.qa.mdqa import Mdqa

RANDOM = np.random.default_rng(0)


def drawn(rows: int, units: int, first: float = 0.05) -> Tally:
    """Return a tally of gold positions of which a share is at 1."""
    places = np.where(RANDOM.random(rows) < first, 1, RANDOM.integers(1, units + 1, rows))
    return Tally(rows=rows, cells={"gold position": Counter((units, int(place)) for place in places)})


def test_positions_by_the_law_are_kept_and_skewed_ones_are_not() -> None:
    knobs = SimpleKV(rows=2000, dictionaries=20, early=0.0).model_dump()
    (kept,) = checks("simple_kv", knobs, drawn(2000, 20))
    assert kept.kept and kept.p > 0.001
    (skewed,) = checks("simple_kv", knobs, drawn(2000, 20, first=0.15))
    assert not skewed.kept and skewed.p < 1e-6 and skewed.off == pytest.approx(0.1, abs=0.03)


def test_the_published_law_puts_early_positions_by_the_number_of_samples() -> None:
    paper, strict = (SimpleKV(rows=350, law=law).model_dump() for law in ("paper", "strict"))
    by_samples, by_dictionaries = positions(paper, 85, 350), positions(strict, 85, 350)
    assert sum(by_samples.values()) == pytest.approx(1) == sum(by_dictionaries.values())
    # int(350 * 0.05) = 17 early places of the samples, int(85 * 0.05) = 4 of the dictionaries.
    assert by_samples[17] > by_samples[18] == by_samples[85]
    assert by_dictionaries[4] > by_dictionaries[5] == by_dictionaries[85]


def test_documents_stand_at_the_positions_asked_for() -> None:
    assert set(positions(Mdqa().model_dump(), 20, 100)) == {1, 5, 10, 15, 20}
    assert positions(Mdqa(positions=(3, 7)).model_dump(), 20, 100) == {3: 0.5, 7: 0.5}
    assert positions(Mdqa(positions="random").model_dump(), 20, 100) == uniform(1, 20)


def test_digits_of_unique_integers_are_those_of_drawing_them() -> None:
    knobs = {"digits_min": 2, "digits_max": 3}
    counted: Counter[int] = Counter()
    for _ in range(400):
        taken: set[int] = set()
        while len(taken) < 100:
            size = RANDOM.integers(2, 4)
            taken.add(int(RANDOM.integers(10 ** (size - 1), 10**size)))
        counted.update(len(str(number)) for number in taken)
    law = digits(knobs, 100)
    assert law[2] < 0.45
    assert counted[2] / counted.total() == pytest.approx(law[2], abs=0.005)


def test_depths_at_random_are_even() -> None:
    knobs = NeedleInHaystack().model_dump()
    even = Tally(rows=1001, cells={"depth": Counter(round(step / 10, 1) for step in range(1001))})
    (kept,) = checks("needle", knobs, even)
    assert kept.off < 0.001
    (early,) = checks("needle", knobs, Tally(rows=500, cells={"depth": Counter({10.0: 250, 60.0: 250})}))
    assert not early.kept


def test_many_rows_make_a_small_difference_improbable_but_not_visible() -> None:
    check = compare("digits", {3: 5_030_000, 4: 4_970_000}, {3: 5_000_000.0, 4: 5_000_000.0})
    assert check.p < 1e-6 and check.off == pytest.approx(0.003) and check.kept


def test_a_value_that_the_law_does_not_have_is_counted_against_it() -> None:
    check = compare("keys", {3: 400, 4: 400, 9: 200}, {3: 500.0, 4: 500.0})
    assert not check.kept and check.off == pytest.approx(0.2)


def test_p_values_are_even_where_the_law_holds() -> None:
    found = [
        compare("a law", Counter(RANDOM.integers(0, 10, 500).tolist()), {at: 50.0 for at in range(10)}).p
        for _ in range(300)
    ]
    assert 0.02 < np.mean(np.array(found) < 0.05) < 0.09
