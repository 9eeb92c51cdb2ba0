"""Means over seeds and questions: worked examples, the coverage of their intervals, the level of their test."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from kvray.results import crossed as module
from kvray.results.crossed import Crossed, crossed, detectable

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "coverage.py"


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kvray_coverage", BENCHMARK)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded  # dataclasses look their module up
    spec.loader.exec_module(loaded)
    return loaded


def of_table(table: list[list[float]]) -> Crossed | None:
    cells = np.array(table)
    seeds, questions = (each.ravel() for each in np.indices(cells.shape))
    return crossed(cells.ravel(), seeds, questions)


def test_the_components_are_those_of_the_analysis_of_variance() -> None:
    table = [[1.0, 0.5, 1.0, 0.0], [0.5, 0.5, 0.5, 0.0]]
    cells = np.array(table)
    mean = cells.mean()
    by_seed, by_question = cells.mean(axis=1), cells.mean(axis=0)
    ms_seeds = 4 * ((by_seed - mean) ** 2).sum() / 1
    ms_questions = 2 * ((by_question - mean) ** 2).sum() / 3
    rest = cells - by_seed[:, None] - by_question[None, :] + mean
    ms_rest = (rest**2).sum() / 3
    found = of_table(table)
    assert found is not None
    assert found.mean == pytest.approx(mean) == 0.5
    assert found.from_seeds == pytest.approx(ms_seeds / 8) == pytest.approx(1 / 64)  # seed means 5/8 and 3/8
    assert 0 < found.from_questions == pytest.approx((ms_questions - ms_rest) / 8)
    assert (found.seeds, found.questions) == (2, 4)


def test_rows_of_one_question_are_one_draw_and_their_number_is_its_weight() -> None:
    rng = np.random.default_rng(0)
    cells = rng.random((3, 40))
    seeds, questions = (each.ravel() for each in np.indices(cells.shape))
    once = crossed(cells.ravel(), seeds, questions)
    copied = crossed(*(np.repeat(each, 5) for each in (cells.ravel(), seeds, questions)))
    weighted = crossed(cells.ravel(), seeds, questions, np.full(120, 7.0))
    assert once is not None and copied is not None and weighted is not None
    for other in (copied, weighted):
        assert vars(other) == pytest.approx(vars(once))


def test_missing_cells_change_little_and_a_missing_seed_is_no_seed() -> None:
    rng = np.random.default_rng(1)
    cells = 0.5 + rng.normal(0, 0.05, (4, 1)) + rng.normal(0, 0.2, (1, 200)) + rng.normal(0, 0.1, (4, 200))
    seeds, questions = (each.ravel() for each in np.indices(cells.shape))
    whole = crossed(cells.ravel(), seeds, questions)
    kept = rng.random(cells.size) > 0.05
    holes = crossed(cells.ravel()[kept], seeds[kept], questions[kept])
    assert whole is not None and holes is not None
    assert holes.mean == pytest.approx(whole.mean, abs=0.01)
    assert holes.half == pytest.approx(whole.half, rel=0.25)
    one = seeds == 0
    assert crossed(cells.ravel()[one], seeds[one], questions[one]) is None
    few = questions == 0
    assert crossed(cells.ravel()[few], seeds[few], questions[few]) is None


def test_where_all_cells_are_alike_nothing_is_claimed() -> None:
    assert of_table([[1.0] * 9] * 3) is None


def test_seeds_that_agree_leave_the_spread_of_questions_and_seeds_alone_give_student() -> None:
    agree = of_table([[0.0, 1.0] * 50] * 3)
    assert agree is not None
    assert agree.from_seeds == pytest.approx(0, abs=1e-12)
    assert agree.half == pytest.approx(1.984 * 0.5 / np.sqrt(99), rel=0.001)
    alone = of_table([[0.2] * 50, [0.5] * 50, [0.8] * 50])
    assert alone is not None
    # Student with 2 degrees of freedom: 4.303 * 0.3 / sqrt(3).
    assert alone.half == pytest.approx(4.303 * 0.3 / np.sqrt(3), rel=0.001)
    assert alone.p() == pytest.approx(0.1022, abs=0.0005)  # t = 2.887


def test_the_quickstart_s_three_seeds_get_the_interval_that_they_deserve() -> None:
    # IN2 on mdqa: 33.8, 56.0 and 24.6 %. Over three seeds alone Student's interval is +- 40 points.
    rng = np.random.default_rng(2)
    cells = (rng.random((3, 500)) < np.array([[0.338], [0.560], [0.246]])).astype(float)
    found = of_table(cells.tolist())
    assert found is not None
    assert 0.33 < found.half < 0.46
    assert found.from_seeds > 5 * found.from_questions
    low, high = found.accuracy()
    assert 0.08 < low < 0.15 and 0.7 < high < 0.9


def test_the_solved_degrees_of_freedom_cover_at_every_ratio_where_satterthwaite_s_do_not() -> None:
    from scipy.special import ndtr, stdtrit

    for df, within, worst in ((1, 0.012, 0.89), (2, 0.005, 0.93), (4, 0.003, 0.945)):
        scale, power = module._solved(df)
        solved: list[float] = []
        plain: list[float] = []
        for ratio in (0.1, 0.3, 0.7, 1.0, 2.0, 4.0, 8.0, 20.0):
            seen = ratio**2 * module._chi_squared(df)
            for found, freedom in (
                (solved, df * (1 + (1 / seen / scale) ** power)),
                (plain, (1 + seen) ** 2 / (seen**2 / df)),
            ):
                half = -stdtrit(np.minimum(freedom, 1e6), 0.025) * np.sqrt(1 + seen)
                found.append(float((2 * ndtr(half / np.sqrt(1 + ratio**2)) - 1).mean()))
        assert max(abs(each - 0.95) for each in solved) < within
        assert min(plain) < worst


@pytest.mark.parametrize(
    ("seeds", "questions", "spread"), [(2, 50, 0.0), (2, 200, 0.05), (3, 50, 0.2), (3, 1000, 0.02), (10, 200, 0.1)]
)
def test_intervals_cover_the_truth_between_93_and_97_percent_of_the_time(
    simulation: ModuleType, seeds: int, questions: int, spread: float
) -> None:
    # The whole table: python benchmarks/coverage.py; docs/LOG.md has it.
    found = simulation.covered(2000, seeds, questions, spread, simulation.Questions(), reference=False)
    assert 0.93 <= found["difference"] <= 0.97
    assert 0.93 <= found["accuracy"] <= 0.97


@pytest.mark.parametrize(("seeds", "spread"), [(2, 0.05), (3, 0.02), (5, 0.1)])
def test_the_test_keeps_its_level_where_questions_alone_do_not(
    simulation: ModuleType, seeds: int, spread: float
) -> None:
    found = simulation.covered(500, seeds, 200, spread, simulation.Questions())
    assert found["false"] <= 0.07
    assert found["rare"] <= 0.015
    assert found["alone"] < found["difference"] - 0.01


def test_the_smallest_difference_is_found_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    seeds, questions, comparisons = 5, 300, 4
    spread, noise = 0.04, 0.4
    d = detectable(noise / np.sqrt(questions), spread / np.sqrt(seeds), seeds, comparisons)
    found = 0
    for _ in range(300):
        cells = d + rng.normal(0, spread, (seeds, 1)) + rng.normal(0, noise, (1, questions)) + np.zeros((seeds, 1))
        result = of_table(cells.tolist())
        assert result is not None
        found += result.p() <= 0.05 / comparisons
    assert 0.73 <= found / 300 <= 0.87
    assert detectable(0.03, 0.05 / np.sqrt(2), 2) > detectable(0.03, 0.05 / np.sqrt(3), 3) > d / 2
    with pytest.raises(ValueError, match="at least 2 seeds, found 1"):
        detectable(0.03, 0.05, 1)
