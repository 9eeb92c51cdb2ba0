"""multi_subkey_kv under law ``paper`` follows the published generator in what its texts say, and law strict does not.

Expected counts are derived from ``dict_builder.py`` of edixiong/artificial-needles, at kvray's sizes and probabilities:
keys of 3 or 4 subkeys of 3 digits, of which two are the gold key's with probabilities 1/2 and 1/2. A statistic is about
standard normal under the right law, so that a bound of 5 fails one seed in a million.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kvray.errors import InvalidValueError
from kvray.tasks.kv.subkeys import MultiSubkeyKV

ROWS, DICTIONARIES = 2000, 49
BOUND = 5.0
LINE = re.compile(r"Dictionary \[\d+\] (\{.*\})")
ASKED = re.compile(r"contains the integers ([\d, ]+) \(")
SAME = 1 / 900
"""Chance that two subkeys of 3 digits agree."""


def characters(texts: Sequence[str]) -> NDArray[np.int64]:
    return np.array([len(text) for text in texts])


def made(rows: int = ROWS, **knobs: Any) -> list[dict[str, Any]]:
    task = MultiSubkeyKV(**{"rows": rows, "max_tokens": 10**6, "law": "paper", **knobs})
    rows_made: list[dict[str, Any]] = task.build(0, rows, task.context(characters)).to_pylist()
    return rows_made


def z(count: float, tries: float, chance: float) -> float:
    return float((count - tries * chance) / np.sqrt(tries * chance * (1 - chance)))


def statistics(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return every property's statistic; law paper keeps all of them within :data:`BOUND`."""
    keys_of_gold, sizes, key_sizes, shared, clear, ambiguous, repeated, twice, copied = [], [], [], [], 0, 0, 0, 0, 0
    for row in rows:
        bodies = LINE.findall(row["prompt"])
        dictionaries = [ast.literal_eval(body) for body in bodies]
        copied += sum(body.count(")") - len(read) for body, read in zip(bodies, dictionaries, strict=True))
        asked = [int(n) for n in ASKED.search(row["prompt"])[1].split(", ")]
        gold = ast.literal_eval(re.search(r"is (\(.*?\))", row["answer"])[1])
        assert sorted(gold) == sorted(asked)
        value = int(re.search(r"value is (\d+)", row["answer"])[1])
        assert dictionaries[row["position"] - 1][gold] == value
        keys_of_gold.append(len(dictionaries[row["position"] - 1]))
        sizes += [len(read) for at, read in enumerate(dictionaries, start=1) if at != row["position"]]
        others = [key for read in dictionaries for key in read if key != gold]
        twice += sum(len(read) for read in dictionaries) - len(others) - 1
        twice += sum(found == value for read in dictionaries for found in read.values()) - 1
        key_sizes += map(len, others)
        shared += [len(set(asked) & set(key)) for key in others]
        # Where a private subkey repeats a shared one, every key that shares both has all of them.
        if len(set(asked)) == len(asked):
            clear += len(others)
            ambiguous += sum(set(asked) <= set(key) for key in others)
        repeated += sum(a == b for key in [*others, gold] for a, b in combinations(key, 2))
    keys, prompts = len(shared), len(rows)
    # Both shared subkeys (1/2 times 1/4) and the private one among one or two fresh ones; of three in six orders, the
    # gold key's own is drawn again. One or none of the shared ones and luck besides is a tenth of that at most.
    second = 1 / 8 * SAME * (5 / 6 / 2 + 2 / 2)
    # A fresh subkey is one of the gold key's that is not there with chance 3/900 or less.
    luck = 3 * 3 * SAME
    return {
        "keys of the gold dictionary": BOUND * 2 * sum(size != 3 for size in keys_of_gold),
        "keys of another dictionary": z(sum(size == 3 for size in sizes), len(sizes), 1 / 2),
        "subkeys of a key": z(sum(size == 4 for size in key_sizes), keys, 1 / 2),
        "keys with none of those asked for": BOUND * (abs(shared.count(0) / keys - 5 / 8) / (luck + 0.004)),
        "keys with two of them": BOUND * (abs(shared.count(2) / keys - 1 / 8) / (luck + 0.004)),
        "keys with all of them": z(ambiguous, clear, second),
        "equal subkeys of a key": z(repeated, keys * (3 + 6) / 2, SAME),
        "gold key or value twice": float(twice) * BOUND * 2,
        "keys printed twice": float(copied) * BOUND * 2,
        "prompts": 0.0 if prompts == ROWS else float("inf"),
    }


def broken(rows: list[dict[str, Any]]) -> set[str]:
    return {name for name, statistic in statistics(rows).items() if not abs(statistic) <= BOUND}


@cache
def law(name: str, seed: int = 0) -> list[dict[str, Any]]:
    return made(law=name, seed=seed)


@pytest.mark.parametrize("seed", [0, 1])
def test_two_thousand_rows_follow_the_published_generator(seed: int) -> None:
    assert broken(law("paper", seed)) == set()


def test_ambiguous_prompts_are_as_many_as_in_the_published_generator_and_none_under_law_strict() -> None:
    assert {"keys of the gold dictionary", "keys with all of them", "equal subkeys of a key"} <= broken(law("strict"))

    def share(rows: list[dict[str, Any]]) -> float:
        count = 0
        for row in rows:
            asked = {int(n) for n in ASKED.search(row["prompt"])[1].split(", ")}
            keys = [key for body in LINE.findall(row["prompt"]) for key in ast.literal_eval(body)]
            count += sum(asked <= set(key) for key in keys) > 1
        return count / len(rows)

    assert share(law("strict")) == 0
    # 2.7 % were counted in the published one's output.
    assert 0.015 < share(law("paper")) < 0.04


def test_digits_are_uniform_over_their_range() -> None:
    rows = made(400, subkey_digits=2, subkey_digits_max=3, value_digits=3, value_digits_max=4)
    dictionaries = [ast.literal_eval(body) for row in rows for body in LINE.findall(row["prompt"])]
    subkeys = [subkey for read in dictionaries for key in read for subkey in key]
    values = [value for read in dictionaries for value in read.values()]
    for numbers, least in ((subkeys, 2), (values, 3)):
        lengths = np.array([len(str(number)) for number in numbers])
        assert set(lengths) == {least, least + 1}
        # Subkeys that are shared are drawn once for a prompt, so that they vary more.
        assert abs((lengths == least).mean() - 0.5) < 0.02
    assert made(40, subkey_digits_max=3, value_digits_max=4) == made(40)
    with pytest.raises(InvalidValueError, match=r"subkey_digits_max: found 2, expected at least subkey_digits = 3"):
        MultiSubkeyKV(subkey_digits_max=2)


def test_early_positions_end_at_five_percent_of_the_samples() -> None:
    def placed(**knobs: Any) -> NDArray[np.int64]:
        task = MultiSubkeyKV(rows=400, **knobs)
        found: NDArray[np.int64] = task.context(characters).material.gold(np.arange(400), np.full(400, DICTIONARIES))
        return found

    for name, bound in (("paper", 20), ("strict", 2)):
        early = np.concatenate(
            [
                moved[moved != kept]
                for moved, kept in ((placed(law=name, seed=s), placed(law=name, seed=s, early=0.0)) for s in range(20))
            ]
        )
        assert 200 < len(early) <= 20 * 12
        assert early.max() == bound - 1


def test_a_draft_stays_a_hundred_tokens_below_the_budget() -> None:
    lengths = np.array([len(row["prompt"]) for row in law("paper")])
    budget = int(np.median(lengths)) + 100
    kept = np.array([row["prompt_tokens"] for row in made(200, max_tokens=budget)])
    assert budget - 150 < kept.max() < budget - 100
    strict = np.array([row["prompt_tokens"] for row in made(200, max_tokens=budget, law="strict")])
    assert strict.max() > budget - 100


def test_a_repeated_key_overwrites_and_a_gold_key_is_drawn_once() -> None:
    crowded = {"subkey_digits": 1, "key_size_max": 3, "share_probability": 1.0, "keys_min": 3, "dictionaries": 6}
    rows = made(400, **crowded)
    sizes = []
    for row in rows:
        bodies = LINE.findall(row["prompt"])
        dictionaries = [ast.literal_eval(body) for body in bodies]
        assert [body.count(")") for body in bodies] == [len(read) for read in dictionaries]
        gold = ast.literal_eval(re.search(r"is (\(.*?\))", row["answer"])[1])
        assert sum(gold in read for read in dictionaries) == 1
        sizes += [len(read) for read in dictionaries]
    assert min(sizes) < max(sizes) == 3
