"""What a task's law says about the sizes and places that an audit counted, and how far the counts are from it.

Each law gives the expected count of every value, which Pearson's chi-square test compares with the counted ones; values
that few rows are expected of are tested together. Some things are not in these laws: a draft over the token budget is
drawn again, which favours small ones; so is an integer that equals the gold one, and under the published law a key that
comes again in its dictionary is lost, which favours long ones; what is spread evenly on purpose varies less than
chance. So with many rows a p-value alone proves nothing: what fails is a distribution that is both improbable and
visibly another one.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np
from scipy import stats

from kvray.audit.reading import Knobs
from kvray.audit.tally import Tally

IMPROBABLE, VISIBLE = 1e-6, 0.02
"""A law is broken below this p-value, where also more than this share of what was counted stands elsewhere."""
_FEW = 5.0
_BINS = 10

Chances = Mapping[Any, float]
"""The probability of each value."""


@dataclass(frozen=True)
class Check:
    """A law and what was counted.

    ``off`` is the share of the counts that stands elsewhere (total variation), ``chance`` about what it is by chance.
    """

    what: str
    counted: int
    off: float
    chance: float
    p: float

    @property
    def kept(self) -> bool:
        return self.p >= IMPROBABLE or self.off <= VISIBLE


def checks(task: str, knobs: Knobs, tally: Tally) -> list[Check]:
    """Compare everything that was counted of a task with its law, where there is one."""
    found = []
    for what, cells in sorted(tally.cells.items()):
        expected = _expected(task, knobs, what, cells, tally)
        if expected is not None and cells:
            counted, law = expected
            found.append(compare(what, counted, law))
    return found


def compare(what: str, counted: Mapping[Any, int], expected: Mapping[Any, float]) -> Check:
    """Compare counts with the expected ones of each value; both have one sum."""
    values = sorted({*counted, *expected})
    seen = np.array([counted.get(value, 0) for value in values], float)
    law = np.array([expected.get(value, 0.0) for value in values], float)
    total = float(seen.sum())
    off = float(np.abs(seen - law).sum() / (2 * total))
    chance = float(np.sqrt(2 / np.pi * law * (1 - law / total)).sum() / (2 * total))
    seen, law = _pooled(seen, law)
    if len(law) == 1:
        return Check(what, int(total), off, chance, 1.0)
    return Check(what, int(total), off, chance, float(stats.chisquare(seen, law * (seen.sum() / law.sum())).pvalue))


def uniform(low: int, high: int) -> dict[int, float]:
    """Return the chances of the integers from ``low`` to ``high``, all alike."""
    return dict.fromkeys(range(low, high + 1), 1 / (high - low + 1))


def positions(knobs: Knobs, units: int, rows: int) -> Chances:
    """Return the chances of each 1-based gold position among ``units``.

    Dictionaries are first in a share of the rows, among the early ones in another, else anywhere; documents and records
    stand at the positions asked for, or by default at the first place, the quarters and the last.
    """
    if "forced_first" in knobs:
        first, early = (int(rows * knobs[name]) / rows for name in ("forced_first", "early"))
        bound = max(1, min(units, int((rows if knobs.get("law") == "paper" else units) * 0.05)))
        rest = (1 - first - early) / units
        return {at: rest + first * (at == 1) + (early / bound if at <= bound else 0) for at in range(1, units + 1)}
    given = knobs["positions"]
    if given == "random":
        return uniform(1, units)
    each = given or sorted({1, *(max(1, round(units * part / 4)) for part in (1, 2, 3, 4))})
    return dict.fromkeys(each, 1 / len(each))


def digits(knobs: Knobs, drawn: float) -> Chances:
    """Return the chances of each number of digits among ``drawn`` integers of a prompt that all differ.

    Every number of digits is as likely; an integer that was taken is drawn again, number of digits and all, so short
    integers, of which there are few, become rarer.
    """
    sizes = range(knobs["digits_min"], knobs["digits_max"] + 1)
    taken = dict.fromkeys(sizes, 0.0)
    for _ in range(round(drawn)):
        free = {size: 1 - taken[size] / (9 * 10 ** (size - 1)) for size in sizes}
        for size in sizes:
            taken[size] += free[size] / sum(free.values())
    return {size: number / sum(taken.values()) for size, number in taken.items()}


def _expected(
    task: str, knobs: Knobs, what: str, cells: Counter[Any], tally: Tally
) -> tuple[Mapping[Any, int], Mapping[Any, float]] | None:
    """Return the counts to be compared, and the expected ones; None where a task has no law of it."""
    if what == "gold position" and ("positions" in knobs or "forced_first" in knobs):
        return _by_size(cells, lambda units: positions(knobs, units, tally.rows))
    if what == "place of what answers":
        return _binned(cells)
    if what == "depth" and knobs.get("depths") == "random":
        counted = Counter(
            {at: sum(n for depth, n in cells.items() if min(int(depth // 10), 9) == at) for at in range(10)}
        )
        return counted, {at: n * cells.total() for at, n in _tenths().items()}
    chances = _chances(task, knobs, what, cells, tally)
    return None if chances is None else (cells, {value: share * cells.total() for value, share in chances.items()})


def _chances(task: str, knobs: Knobs, what: str, cells: Counter[Any], tally: Tally) -> Chances | None:
    """Return the chances of each value; None where a task has no law of it."""
    even = dict.fromkeys(cells, 1 / len(cells))
    match what:
        case "keys of a dictionary":
            sizes = uniform(knobs["keys_min"], knobs["keys_max"])
            law = _collapsed(knobs, sizes) if knobs.get("law") == "paper" and "digits_min" in knobs else sizes
        case "digits of a key" | "digits of a value":
            differ = what == "digits of a key" and knobs.get("law") != "paper"
            # Keys are drawn for the places, too, that a smaller dictionary leaves empty.
            fill = 2 * knobs["keys_max"] / (knobs["keys_min"] + knobs["keys_max"])
            law = digits(knobs, fill * cells.total() / tally.rows if differ else 1)
        case "subkeys of a key":
            law = uniform(knobs["key_size_min"], knobs["key_size_max"])
        case "asked subkeys in another key" if knobs["law"] == "strict":
            share, each, most = knobs["share_probability"], knobs["subkey_probability"], knobs["common_subkeys"]
            held = {n: share * comb(most, n) * each**n * (1 - each) ** (most - n) for n in range(most + 1)}
            law = {**held, 0: held[0] + 1 - share}
        case "subtask" if task == "in2":
            short, several = knobs["short_share"], knobs["integration_share"]
            law = {"short": short, "integration": (1 - short) * several, "fine_grained": (1 - short) * (1 - several)}
        case "subtask" | "condition":
            law = even
        case "length":
            law = uniform(knobs["length_min"], knobs["length_max"]) if task == "in2" else even
        case _ if what.endswith("that is true"):
            law = {0: 0.5, 1: 0.5}
        case _:
            return None
    return law


def _collapsed(knobs: Knobs, sizes: Chances) -> Chances:
    """Let a repeated key of a dictionary overwrite the earlier one: a pair of equal keys leaves one key less."""
    lengths = range(knobs["digits_min"], knobs["digits_max"] + 1)
    equal = sum(1 / (9 * 10 ** (length - 1)) for length in lengths) / len(lengths) ** 2
    fewer: Counter[int] = Counter()
    for size, chance in sizes.items():
        lost = min(1.0, comb(size, 2) * equal)
        fewer[size] += chance * (1 - lost)
        fewer[size - 1] += chance * lost
    return fewer


def _by_size(
    cells: Counter[tuple[int, int]], law: Callable[[int], Chances]
) -> tuple[Mapping[int, int], Mapping[int, float]]:
    """Sum (units, value) counts over the units, and the law's expectations for as many rows of these units."""
    counted: Counter[int] = Counter()
    expected: dict[int, float] = {}
    rows: Counter[int] = Counter()
    for (units, value), number in cells.items():
        counted[value] += number
        rows[units] += number
    for units, number in rows.items():
        for value, chance in law(units).items():
            expected[value] = expected.get(value, 0.0) + number * chance
    return counted, expected


def _binned(cells: Counter[tuple[int, int]]) -> tuple[Mapping[int, int], Mapping[int, float]]:
    """Return counts by tenth of the prompt of 0-based places among so many, and those of places that are all alike."""
    tenths: Counter[tuple[int, int]] = Counter()
    for (size, at), number in cells.items():
        tenths[size, at * _BINS // size] += number

    def law(size: int) -> Chances:
        return {n: c / size for n, c in Counter(at * _BINS // size for at in range(size)).items()}

    return _by_size(tenths, law)


def _tenths() -> dict[int, float]:
    """Return the chances of each tenth for depths of 0 to 100 percent in steps of a tenth, 100 in the last one."""
    return {at: (100 if at < _BINS - 1 else 101) / 1001 for at in range(_BINS)}


def _pooled(seen: np.ndarray[Any, Any], law: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Join neighbouring values until each is expected :data:`_FEW` times."""
    joined: list[list[float]] = []
    for counted, expected in zip(seen.tolist(), law.tolist(), strict=True):
        if joined and joined[-1][1] < _FEW:
            joined[-1][0] += counted
            joined[-1][1] += expected
        else:
            joined.append([counted, expected])
    if len(joined) > 1 and joined[-1][1] < _FEW:
        counted, expected = joined.pop()
        joined[-1][0] += counted
        joined[-1][1] += expected
    together = np.array(joined)
    return together[:, 0], together[:, 1]
